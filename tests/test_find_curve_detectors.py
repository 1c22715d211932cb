"""Curve detectors: all of a planted family, none in networks that never saw a curve."""

import pytest
import torch

import vesalius as vs
from vesalius import tuning
from vesalius.errors import VesaliusError
from vesalius.testbed import curve_network

QUICK = {"n_images": 48, "sources": 4}


@pytest.fixture(scope="module")
def network():
    return curve_network(shuffle=3, colour_contrast=True)


@pytest.fixture(scope="module")
def result(network):
    return vs.find_curve_detectors(network, **QUICK)


def test_all_of_the_family_and_nothing_else_is_found(network, result):
    units = network.module.units["curves"]
    assert {units[unit].family for unit in result.units.tolist()} == {"curve"}
    assert len(result.units) == 24
    assert all(headline.evidence is not False for headline in result.headlines())


def test_their_orientations_are_the_planted_ones(network, result):
    planted = torch.tensor(
        [network.module.units["curves"][unit].orientation for unit in result.units.tolist()]
    )
    assert tuning.distance(result.orientation, planted).max() < 2
    assert tuning.distance(result.natural, planted).max() < 15
    assert (result.width > 30).all() and (result.width < 90).all()
    assert result.largest_gap < 20 and result.coverage > 0.5


def test_edges_are_not_curves(network):
    assert len(vs.find_curve_detectors(network, site="edges", **QUICK).units) == 0


def test_a_random_network_has_none(network):
    result = vs.find_curve_detectors(network.random_twin(7), **QUICK)
    assert len(result.units) == 0 and result.twin_candidates == 0
    assert result.headlines()[0].evidence is False
    assert result.figure().to_json()


def test_chance_needs_a_twin(network):
    with pytest.raises(VesaliusError, match="at least one"):
        vs.find_curve_detectors(network, twins=0)


@pytest.mark.slow
def test_at_most_one_random_network_in_twenty_has_any(network):
    alarms = [
        len(vs.find_curve_detectors(network.random_twin(seed), **QUICK).units) > 0 for seed in range(100, 120)
    ]
    assert sum(alarms) <= 1
