"""Joint tuning on a family that is known: turns are exact, and the planted permutation comes back."""

import pytest
import torch

import vesalius as vs
from vesalius import tuning
from vesalius.errors import VesaliusError
from vesalius.responses import Window, turned_answers, turns, window
from vesalius.stimuli import rounded_corner
from vesalius.testbed import curve_network

QUICK = {"n_images": 96, "n_examples": 8, "angles": 72, "twins": 1}


@pytest.fixture(scope="module")
def network():
    return curve_network(shuffle=3)


@pytest.fixture(scope="module")
def truth(network):
    return torch.tensor([unit.orientation for unit in network.module.units["curves"]])


@pytest.fixture(scope="module")
def result(network):
    return vs.joint_tuning(network, "curves[5]", **QUICK)


@pytest.mark.parametrize("size", [20, 21])
def test_a_quarter_turn_is_exact_and_counter_clockwise(size):
    crop = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    seen = Window(size, size, 0, None, (size - 1) / 2)
    straight, quarter = turns(crop, torch.tensor([0.0, 90.0]), seen=seen)
    torch.testing.assert_close(quarter, straight.rot90(1, (1, 2)), atol=1e-6, rtol=0)


def test_the_middle_is_as_it_was_and_the_corners_are_gone():
    crop = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    turned = turns(crop, torch.tensor([0.0]), seen=Window(40, 30, 5, None, 19.5))[0]
    torch.testing.assert_close(turned[:, 13:27, 13:27], crop[:, 13:27, 13:27], atol=1e-5, rtol=0)
    corners = torch.stack([turned[:, 0, 0], turned[:, -1, 0], turned[:, 5, 5]])
    torch.testing.assert_close(corners, corners[:1].expand(3, 3))


def test_the_planted_permutation_comes_back_exactly(network, truth):
    """One drawn curve is enough: a quarter turn of the picture takes each unit to the one 90° on."""
    seen = window(network, "curves")
    drawn = rounded_corner(
        truth[5:6],
        torch.tensor([14.0]),
        size=seen.size,
        centre=seen.centre,
        filled=False,
        background=(0.5,) * 3,
    )
    curves = turned_answers(network, "curves", drawn, seen=seen, degrees=tuning.angles(360))[0].T
    for degrees in (15, 90, 345):
        found, _ = tuning.permutation(curves, degrees=degrees)
        assert torch.equal(truth[found], (truth + degrees) % 360)


def test_the_family_and_its_orientations_come_from_pictures_alone(result, truth):
    assert set(result.members.tolist()) == set(range(24))
    wanted = (truth[result.members] - truth[5]) % 360
    assert tuning.distance(result.orientations, wanted).max() <= 10
    assert torch.equal(truth[result.permutation], (truth + 90) % 360)
    assert result.returns == 1.0
    assert result.headlines()[0].evidence is True
    assert result.coverage > 0.6 and result.echo < 0.1


def test_random_networks_hand_nothing_over(network):
    for seed in (101, 102):
        twin = network.random_twin(seed)
        result = vs.joint_tuning(twin, "curves[1]", **QUICK)
        assert result.headlines()[0].evidence is False
        assert result.relay < 0.3


def test_shuffled_units_cover_less(result):
    assert result.shuffled_relays.max() < result.relay_interval[0]


def test_a_feature_that_nothing_raises(network):
    with pytest.raises(VesaliusError, match="nothing to turn"):
        vs.joint_tuning(network, vs.direction("curves", -torch.ones(24)), **QUICK)
