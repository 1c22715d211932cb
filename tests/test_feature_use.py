"""Who uses a feature, on the network whose weights follow from rules."""

import pytest
import torch

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.testbed import curve_network


@pytest.fixture(scope="module")
def model() -> vs.Model:
    return curve_network()


def test_a_small_curve_is_used_by_the_curves_that_face_as_it_does_or_against_it(model):
    found = vs.feature_use(model, "small_curves[3]", top=6, steps=0)
    weights = model.module.get_submodule("curves_pre_relu").weight[:, 3]
    torch.testing.assert_close(found.norms, weights.flatten(1).norm(dim=1))
    torch.testing.assert_close(found.maps[:, 0], weights[found.users])
    facing = [model.module.units["curves"][user].orientation for user in found.users]
    assert all(abs((angle - 45 + 90) % 180 - 90) <= 30 for angle in facing)
    assert found.headlines()[0].evidence


def test_a_family_is_ranked_by_its_norm_over_all_members(model):
    members = [3, 4, 5]
    others = [f"small_curves[{unit}]" for unit in members[1:]]
    found = vs.feature_use(model, "small_curves[3]", others=others, steps=0)
    weights = model.module.get_submodule("curves_pre_relu").weight[:, members]
    torch.testing.assert_close(found.norms, weights.flatten(1).norm(dim=1))
    assert found.users == found.norms.topk(8).indices.tolist()
    assert found.family == ["small_curves[3]", *others]


def test_circles_are_the_users_that_read_the_whole_ring_alike(model):
    found = vs.feature_use(
        model, "curves[0]", others=[f"curves[{unit}]" for unit in range(1, 24)], top=26, steps=0
    )
    circle = found.users.index(24)
    assert str(model.module.units["shapes"][24]) == "circle"
    summed = found.maps[circle].sum((1, 2))
    assert summed.sign().unique().numel() == 1 and summed.std() < 0.1 * summed.mean().abs()


@pytest.mark.parametrize("seed", range(3))
def test_a_random_network_has_no_users(model, seed):
    found = vs.feature_use(model.random_twin(50 + seed), "curves[3]", others=["curves[4]"], steps=0)
    assert not found.headlines()[0].evidence


def test_the_figure_draws_the_most_read_members_and_their_pictures(model):
    others = [f"small_curves[{unit}]" for unit in range(4, 10)]
    found = vs.feature_use(model, "small_curves[3]", others=others, top=2, steps=2)
    assert found.pictures.shape[0] == 7 + 2
    circuit = found.figure().to_json()["data"]["figures"][0]["data"]
    assert len(circuit["edges"]) == 6 and all(node["picture"] for node in circuit["nodes"])


def test_what_cannot_be_a_family_or_used_is_refused(model):
    with pytest.raises(VesaliusError, match="a family is of one site"):
        vs.feature_use(model, "curves[3]", others=["lines[0]"], steps=0)
    with pytest.raises(VesaliusError, match="last layer"):
        vs.feature_use(model, "shapes[3]", steps=0)
