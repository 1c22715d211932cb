"""Twins and likeness between networks, where they are known: the same family in another order, and noise."""

import pytest
import torch

import vesalius as vs
from vesalius.methods.universality.analogous_features import twins_page
from vesalius.testbed import curve_network


@pytest.fixture(scope="module")
def model() -> vs.Model:
    return curve_network()


@pytest.fixture(scope="module")
def shuffled() -> vs.Model:
    return curve_network(shuffle=3)


@pytest.fixture(scope="module")
def twins(model, shuffled):
    return vs.analogous_features(model, other=shuffled, site="curves", n_images=48, pairs=2, steps=96)


def test_every_curve_finds_itself_in_the_other_order(model, shuffled, twins):
    orientation = [unit.orientation for unit in shuffled.module.units["curves"]]
    truth = [orientation.index(unit.orientation) for unit in model.module.units["curves"]]
    assert set(twins.twin_sites) == {"curves"} and twins.twins.tolist() == truth
    assert twins.mutual.all() and len(twins.found) == 24
    assert twins.correlation.min() > 0.999
    assert twins.checked.min() > 0.999 and twins.checked_behind.max() == 0
    assert [headline.evidence for headline in twins.headlines()] == [True, True, None, None]


def test_the_twin_is_first_under_the_other_s_picture(twins):
    assert twins.picture_behind.max() < 0.2


def test_stimuli_find_the_same_twins(model, shuffled, twins):
    found = vs.analogous_features(model, other=shuffled, site="curves", by="stimuli", n_images=48, pairs=0)
    assert found.twins.tolist() == twins.twins.tolist() and len(found.found) == 24
    assert found.checked.min() > 0.999 and found.choices["checked by"] == "pictures"


def test_a_random_twin_has_none(model):
    found = vs.analogous_features(model, other=model.random_twin(77), site="curves", n_images=48, pairs=0)
    assert not any(headline.evidence for headline in found.headlines()), found.summary()


def test_one_unit_can_be_asked_for(model, shuffled, twins):
    one = vs.analogous_features(model, other=shuffled, site="3b", units=[5], n_images=48, pairs=0)
    assert one.twins.tolist() == [twins.twins[5].item()] and one.mutual.all()


def test_networks_of_another_build_are_compared(model):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 6, 5, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(6, 9, 3), torch.nn.ReLU()
    plain = vs.Model(torch.nn.Sequential(*layers), preprocessing=vs.Preprocessing((48, 40)), name="plain")
    found = vs.analogous_features(model, other=plain, other_sites=["1", "3"], n_images=32, pairs=1, steps=4)
    assert set(found.twin_sites) <= {"1", "3"}
    page = twins_page([found, found])
    rows = page.data["figures"][0]["data"]["rows"]
    assert [row["label"] for row in rows] == ["curve-network, curves", "plain", "plain"]
    table = vs.similarity(model, other=plain, other_sites=["1", "3"], n_images=48).values
    assert table.shape == (5, 5, 2)


def test_the_same_network_in_another_order_is_alike_by_every_measure(model, shuffled):
    found = vs.similarity(model, other=shuffled, n_images=64)
    diagonal = found.values.diagonal(dim1=1, dim2=2)
    assert diagonal[:4].min() > 0.99
    assert diagonal[4].min() > 0.75  # held out, and few pictures for what the last layer sees
    assert found.headlines()[0].evidence and found.headlines()[-1].value == pytest.approx(1)


def test_it_needs_another_network(model):
    for method in (vs.similarity, vs.analogous_features):
        with pytest.raises(vs.VesaliusError, match="name"):
            method(model)
