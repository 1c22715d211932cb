"""Synthetic stimuli on curve detectors whose orientations are known, and on networks that know nothing."""

import pytest
import torch

import vesalius as vs
from vesalius import tuning
from vesalius.errors import VesaliusError
from vesalius.examples import field_of
from vesalius.responses import answers, window
from vesalius.stimuli import rounded_corner
from vesalius.testbed import curve_network

QUICK = {"n_images": 32, "twins": 1}


@pytest.fixture(scope="module")
def network():
    return curve_network(shuffle=3)


@pytest.fixture(scope="module")
def result(network):
    return vs.synthetic_stimuli(network, "curves[5]", **QUICK)


def test_the_planted_orientation_is_preferred(network, result):
    truth = network.module.units["curves"][5].orientation
    assert result.tuning["preferred"] == truth
    assert result.best["first"] == truth
    assert tuning.distance(torch.tensor(result.tuning["direction"]), truth) < 3
    assert 30 < result.tuning["width"] < 90


def test_all_units_of_the_layer_are_tuned_to_their_own(network, result):
    truth = torch.tensor([unit.orientation for unit in network.module.units["curves"]])
    assert torch.equal(tuning.preferred(result.curves), truth)


def test_curves_filled_or_not_are_the_same_to_it_and_lines_are_nothing(result):
    assert result.answered[:4] == ["filled", "filled, dark", "line", "line, dark"]
    assert result.invariance > 0.95
    line = result.response[:4, :, 0].amax()
    assert line < 0.2 * result.response[:4].amax()


def test_it_stands_out(result):
    assert result.headlines()[0].evidence is True


def test_a_random_network_does_not(network):
    fired = [
        vs.synthetic_stimuli(network.random_twin(seed), "curves[0]", **QUICK).headlines()[0].evidence
        for seed in (101, 102, 103)
    ]
    assert not any(fired)


@pytest.mark.parametrize(("negative", "low", "high"), [(True, 0.0, 0.05), (False, 0.2, 1.0)])
def test_negative_weights_remove_echoes(negative, low, high):
    network = curve_network(negative=negative)
    seen = window(network, "curves")
    angles, radius = tuning.angles(24), torch.full((24,), 14.0)
    pictures = rounded_corner(angles, radius, size=seen.size, centre=seen.centre, filled=False)
    echo = tuning.echo_ratio(answers(network, "curves", pictures, seen=seen).T)
    assert (echo >= low).all() and (echo < high).all()


def test_a_window_is_all_that_a_unit_sees(network):
    """The same values as in the whole picture, for every layer whose field is smaller than it."""
    picture = torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    for site in ("edges", "lines", "small_curves", "curves"):
        seen, field = window(network, site), field_of(network, site)
        row = column = 30 // field.stride
        top, left = (edge - seen.start for edge in field.box(row, column)[:2])
        with vs.record(network, site) as acts:
            network(picture)
        part = picture[..., top : top + seen.size, left : left + seen.size]
        torch.testing.assert_close(
            answers(network, site, part, seen=seen)[0], acts[site][0, :, row, column], atol=1e-5, rtol=1e-4
        )


def test_a_direction_is_asked_like_a_unit(network, result):
    vector = torch.zeros(24)
    vector[5] = 2.0
    twice = vs.synthetic_stimuli(network, vs.direction("curves", vector, label="twice"), **QUICK)
    torch.testing.assert_close(twice.response, result.response, atol=1e-3, rtol=1e-3)
    assert twice.feature == "twice" and twice.best == result.best


def test_every_family_can_be_shown(network):
    for stimulus in vs.stimuli.families():
        result = vs.synthetic_stimuli(network, "edges[0]", stimulus=stimulus, n_images=16, twins=1)
        assert result.response.isfinite().all() and result.headlines()


def test_an_edge_is_found_by_an_edge_detector(network):
    edge = vs.synthetic_stimuli(network, "edges[2]", stimulus="gabor", **QUICK)
    index = edge.looks.index("edge")
    facing = edge.first[edge.response[index].amax(1).argmax()].item()
    assert facing == network.module.units["edges"][2].orientation


def test_a_stimulus_that_does_not_exist(network):
    with pytest.raises(VesaliusError, match="rounded_corner"):
        vs.synthetic_stimuli(network, "curves[0]", stimulus="rounded_corners")
