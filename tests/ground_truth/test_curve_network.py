"""The handwritten curve network: what is true of it by construction, and what every vision method must find in it."""

import functools
import math

import pytest
import torch

import vesalius as vs
from vesalius import stimuli
from vesalius.testbed import curve_network

STEP = 7.5
ANGLES = torch.arange(0, 360, STEP)
RADII = torch.tensor([6.0, 10.0, 14.0, 18.0, 24.0, 36.0, math.inf])
LOOKS = ({}, {"filled": False})


def at_centre(model: vs.Model, pictures: torch.Tensor, layer: str = "curves") -> torch.Tensor:
    with torch.no_grad(), vs.record(model, layer, stop=True) as acts:
        model(pictures)
    side = acts[layer].shape[-1]
    return acts[layer][:, :, side // 2, side // 2]


def corners(**look) -> torch.Tensor:
    grid = torch.cartesian_prod(RADII, ANGLES)
    return stimuli.rounded_corner(grid[:, 1], grid[:, 0], size=60, **look)


@functools.cache
def tuning(negative: bool, filled: bool) -> torch.Tensor:
    """[radius, angle, unit], every unit turned back by its orientation, so that 0 is its own curve."""
    model = curve_network(negative=negative)
    responses = at_centre(model, corners(filled=filled)).unflatten(0, (len(RADII), len(ANGLES)))
    turns = [round(unit.orientation / STEP) for unit in model.module.units["curves"]]
    return torch.stack([responses[..., i].roll(-turn, 1) for i, turn in enumerate(turns)], -1)


def echoes(aligned: torch.Tensor) -> torch.Tensor:
    """Per unit, the most within 30° of the opposite over the peak of the mean over radii."""
    mean = aligned.mean(0)
    opposite = (ANGLES - 180).abs() <= 30
    return mean[opposite].amax(0) / mean.amax(0)


@pytest.mark.parametrize("filled", (True, False))
def test_every_unit_responds_most_to_its_own_curve(filled):
    assert (tuning(True, filled).mean(0).argmax(0) == 0).all()


@pytest.mark.parametrize("filled", (True, False))
def test_fifteen_degrees_take_each_unit_to_the_next(filled):
    assert torch.corrcoef(tuning(True, filled).flatten(0, 1).T).min() > 0.99


@pytest.mark.parametrize("filled", (True, False))
def test_negative_weights_silence_the_echo(filled):
    assert echoes(tuning(True, filled)).max() < 0.05
    assert echoes(tuning(False, filled)).min() > 0.2


@pytest.mark.parametrize("size", (60, 64, 96))
def test_a_quarter_turn_takes_each_unit_to_the_sixth_after_it(size):
    model = curve_network(shuffle=3, colour_contrast=True)
    units = model.module.units["curves"]
    turned = {unit: type(unit)(unit.family, (unit.orientation + 90) % 360) for unit in units}
    to = torch.tensor([units.index(turned[unit]) for unit in units])
    pictures = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), vs.record(model, "curves_pre_relu") as acts:
        model(pictures)
        model(pictures.rot90(1, (2, 3)))
    before, after = (run["curves_pre_relu"] for run in acts.runs)
    assert torch.allclose(after[:, to], before.rot90(1, (2, 3)), atol=1e-4)


def test_the_labels_are_the_curves_shown():
    model, angles = curve_network(), torch.arange(0, 360, 15.0)
    pictures = stimuli.rounded_corner(angles, torch.full((24,), 14.0), size=60)
    assert model.logits(pictures).argmax(-1).tolist() == list(range(24))
    assert model.labels[3] == "curve 45°"


def test_a_circle_and_its_negative_are_circles_and_no_evolutes():
    place = torch.arange(60) - 29.5
    disc = (torch.hypot(place, place[:, None]) < 14).float().expand(1, 3, -1, -1)
    shapes = at_centre(curve_network(), torch.cat([disc, 1 - disc]), "shapes")
    assert (shapes[:, 24] > 1).all() and (shapes[:, 25] == 0).all()


def test_the_planted_unit_fires_for_two_unlike_things():
    model = curve_network(polysemantic=True, colour_contrast=True)
    names = [str(unit) for unit in model.module.units["curves"]]
    red = torch.zeros(1, 3, 60, 60)
    red[:, 0] = 1
    curve = stimuli.rounded_corner(torch.tensor([45.0, 225.0]), torch.tensor([14.0, 14.0]), size=60)
    both = at_centre(model, torch.cat([red, curve]))[:, names.index("curve or red 45°")]
    assert (both[:2] > 1).all() and both[2] < 0.05 * both[1]


def test_shuffling_only_renames():
    plain, shuffled = curve_network(), curve_network(shuffle=5)
    assert plain.module.units["curves"] != shuffled.module.units["curves"]
    picture = corners()[100:101]
    assert torch.allclose(plain.logits(picture), shuffled.logits(picture), atol=1e-5)
