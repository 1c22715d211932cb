"""Equivariance: the planted families are found with their permutations, and noise has none."""

import functools

import pytest
import torch

from vesalius import equivariance
from vesalius.errors import VesaliusError
from vesalius.methods.circuits.equivariance import Equivariance
from vesalius.model import Model
from vesalius.orbits import Orbit, invariant, match, modulation, orbits, turned
from vesalius.testbed import curve_network
from vesalius.transformations import TRANSFORMATIONS, transformation, transformed


@functools.cache
def planted() -> Model:
    return curve_network(colour_contrast=True, shuffle=1)


@functools.cache
def found(under: str = "rotation", steps: int = 24) -> Equivariance:
    return equivariance(planted(), under=under, steps=steps, n_images=24, twins=2)


def names(family: dict) -> list[str]:
    return [str(planted().module.units["curves"][unit]) for unit in family["units"]]


def orientations(family: dict) -> list[float]:
    return [planted().module.units["curves"][unit].orientation for unit in family["units"]]


def test_rotation_finds_the_two_planted_families_and_nothing_else():
    curves, contrasts = found().families
    assert {name.split()[0] for name in names(curves)} == {"curve"} and len(names(curves)) == 24
    assert {name.split()[0] for name in names(contrasts)} == {"colour"} and len(names(contrasts)) == 8
    assert found().headlines()[0].evidence


@pytest.mark.parametrize("number", (0, 1))
def test_the_amounts_are_the_orientations(number):
    family = found().families[number]
    turns = [(facing - orientations(family)[0]) % 360 for facing in orientations(family)]
    assert turns == family["amounts"] and family["period"] == 360 and family["consistency"] == 1


def test_symmetry_foretells_the_weights_and_tells_them_in_a_24th():
    circuit = found().circuit
    assert circuit["explained"] > 0.95 and max(circuit["shuffled"]) < 0.1
    assert (circuit["kernels"], circuit["told"]) == (576, 24)
    profile = found().kernels.sum((1, 2))
    assert profile.argmax() == 0 and profile.argmin() == 12
    assert torch.allclose(profile[1:], profile[1:].flip(0), atol=0.02)


def test_mirror_pairs_are_found():
    units = planted().module.units["curves"]
    for family in found("reflection").families:
        first, second = (units[unit] for unit in family["units"])
        assert first.family == second.family
        assert (first.orientation + second.orientation - 180) % 360 == 0
    assert found("reflection").found == 11 + 3  # all but the two of each family that face up and down


def test_turning_hues_by_half_is_turning_colour_contrasts_by_half():
    for family in found("hue", 12).families:
        first, second = orientations(family)
        assert abs(first - second) == 180 and set(names(family)) == {
            f"colour contrast {first:g}°",
            f"colour contrast {second:g}°",
        }
    assert len(found("hue", 12).families) == 4 and len(found("hue", 12).invariant) == 24


def test_an_untrained_network_has_no_families():
    for seed in range(2):
        result = equivariance(curve_network().random_twin(50 + seed), n_images=12, twins=2, steps=12)
        assert not any(headline.evidence for headline in result.headlines())


def test_units_that_never_change_are_no_family():
    steady = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(0)).expand(8, -1, -1)
    assert invariant(steady, threshold=0.9) == list(range(6))
    assert orbits(match(modulation(steady), cyclic=True), threshold=0.7) == []


def test_the_successor_of_a_unit_is_so_many_steps_on():
    orbit = Orbit((7, 3, 9), (0, 2, 3), 4)
    assert orbit.successor(3, 1) == 9 and orbit.successor(9, 1) == 7 and orbit.successor(7, 1) is None


def test_a_quarter_turn_of_a_kernel_is_exact():
    kernels = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(turned(kernels, torch.full((3, 2), 90.0)), kernels.rot90(1, (2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    (
        ("rotation", 90.0, lambda x: x.rot90(1, (2, 3))),
        ("reflection", 1.0, lambda x: x.flip(3)),
        ("scale", 0.0, lambda x: x),
    ),
)
def test_transformations_that_need_no_interpolation_are_exact(name, amount, expected):
    picture = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    moved = transformed(picture, TRANSFORMATIONS[name], amount, radius=100)
    assert torch.allclose(moved, expected(picture), atol=1e-5)


def test_hues_come_full_circle_and_stay_colours():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(-1, -1, 9, 9)
    hues = [
        transformed(red, TRANSFORMATIONS["hue"], degrees, radius=99)[0, :, 4, 4]
        for degrees in (0.0, 120.0, 360.0)
    ]
    assert torch.allclose(hues[0], hues[2], atol=1e-5) and torch.allclose(hues[1], hues[0].roll(1), atol=1e-5)
    assert all(hue.min() >= 0 and hue.max() <= 1 for hue in hues)


def test_bad_input_says_what_was_expected():
    with pytest.raises(VesaliusError, match="4 or more"):
        equivariance(planted(), steps=2)
    with pytest.raises(VesaliusError, match="the nearest is rotation"):
        transformation("rotatoin")
