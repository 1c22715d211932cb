"""What a feature is built from, on the network whose weights follow from rules."""

import pytest
import torch

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.testbed import curve_network

QUICK = {"steps": 0, "n_images": 24}


@pytest.fixture(scope="module")
def model() -> vs.Model:
    return curve_network()


@pytest.fixture(scope="module")
def found(model) -> vs.Result:
    return vs.feature_weights(model, "curves[3]", **QUICK)


def test_the_weights_are_the_rule_s(model, found):
    torch.testing.assert_close(found.weights, model.module.get_submodule("curves_pre_relu").weight[3])


def test_small_curves_that_face_as_it_does_excite_and_opposite_ones_inhibit(model, found):
    units = model.module.units["small_curves"]
    turns = [abs((unit.orientation - 45 + 180) % 360 - 180) for unit in units[:24]]
    angles = torch.tensor(turns)
    summed = found.weights[:24].sum((1, 2))
    assert summed[angles <= 30].min() > 0 > summed[angles >= 150].max()
    assert torch.corrcoef(torch.stack([angles, summed]))[0, 1] < -0.9


def test_it_stands_against_its_controls_and_a_twin_does_not(model, found):
    assert [headline.evidence for headline in found.headlines()] == [True, True, None, None]
    twin = vs.feature_weights(model.random_twin(7), "curves[3]", **QUICK)
    assert not any(headline.evidence for headline in twin.headlines())


def test_one_layer_further_down_the_expansion_no_longer_is_the_gradient(model):
    found = vs.feature_weights(model, "curves[3]", source="lines", **QUICK)
    mean, low, high = found.agreement
    assert low <= mean <= high < 0.999 and found.other_cosine < mean
    assert 0 < found.cancelled < 1


def test_the_groups_are_what_excites_and_what_inhibits(found):
    first, second = found.group_maps
    assert torch.cosine_similarity(first.flatten(), second.flatten(), 0) < -0.5
    assert found.explained > 0.6


def test_pictures_are_drawn_where_they_are_asked_for(model):
    found = vs.feature_weights(model, "curves[3]", top=3, steps=2, n_images=8)
    assert found.pictures.shape[0] == 4
    nodes = found.figure().to_json()["data"]["figures"][0]["data"]["nodes"]
    assert all(node["picture"] for node in nodes)


def test_the_first_layer_reads_colours(model):
    found = vs.feature_weights(model, "edges[0]", **QUICK)
    assert found.source == ":in" and sorted(found.names) == ["blue", "green", "red"]
    assert found.headlines()[0].evidence is None


def test_a_source_that_it_does_not_depend_on_is_refused(model):
    with pytest.raises(VesaliusError, match="does not depend"):
        vs.feature_weights(model, "lines[0]", source="curves", **QUICK)
