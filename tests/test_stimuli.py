"""Stimuli: exact symmetries, exact averages over pixels, and the register."""

import math
import pkgutil

import pytest
import torch

from vesalius import stimuli
from vesalius.errors import VesaliusError
from vesalius.stimuli import families, named

TURNING = [name for name, family in families().items() if family.axes[0].period]


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize("name", TURNING)
def test_turning_the_picture_turns_the_orientation(name, size):
    family = families()[name]
    first = torch.tensor([0.0, 17.0, 40.0, 125.0, 300.0])
    for second in family.axes[1].values(size)[::3]:
        for look in family.variants.values():
            before = family.draw(first, second.expand(5), size=size, **look)
            after = family.draw(first + 90, second.expand(5), size=size, **look)
            torch.testing.assert_close(before.rot90(1, (2, 3)), after, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", families())
def test_pictures_are_the_same_bits_and_within_range(name):
    family = families()[name]
    for look in family.variants:
        pictures = family.pictures(20, size=22, variant=look)
        first, second = family.grid(20)
        assert pictures.shape == (len(first) * len(second), 3, 22, 22)
        assert pictures.dtype == torch.float32
        assert torch.equal(pictures, family.pictures(20, size=22, variant=look))
        assert pictures.min() >= 0 and pictures.max() <= 1


@pytest.mark.parametrize("name", TURNING)
def test_the_period_is_the_period(name):
    family = families()[name]
    second = family.axes[1].values(20)[-1:]
    at = [family.draw(torch.tensor([turn]), second, size=20) for turn in (33.0, 33.0 + family.axes[0].period)]
    torch.testing.assert_close(*at, atol=1e-6, rtol=0)


def test_each_file_is_one_family_of_its_own_name():
    files = {module.name for module in pkgutil.iter_modules(stimuli.__path__)} - {"family", "canvas"}
    assert files == set(families())
    assert all(getattr(stimuli, name) is family.draw for name, family in families().items())


def test_an_unknown_stimulus_is_told_its_neighbours():
    with pytest.raises(VesaliusError, match="the nearest is gabor"):
        named("gabour")
    with pytest.raises(VesaliusError, match="no pixels"):
        stimuli.bar(torch.zeros(1), torch.ones(1), size=0)


@pytest.mark.parametrize("size", [32, 33])
def test_the_origin_is_the_exact_middle(size):
    """A curve facing right is the same upside down; a line leaves as much on either side; a disc is round."""
    curve = stimuli.rounded_corner(torch.zeros(1), torch.tensor([6.0]), size=size)
    torch.testing.assert_close(curve, curve.flip(2), atol=1e-6, rtol=0)
    line = stimuli.rounded_corner(torch.tensor([30.0]), torch.tensor([math.inf]), size=size)
    assert line.mean().item() == pytest.approx(0.5, abs=1e-6)
    disc = stimuli.centre_surround(torch.tensor([9.0]), torch.ones(1), size=size)
    for other in (disc.flip(2), disc.flip(3), disc.mT):
        torch.testing.assert_close(disc, other, atol=1e-6, rtol=0)


def test_the_centre_can_be_elsewhere():
    drawn = [
        stimuli.rounded_corner(torch.tensor([70.0]), torch.tensor([5.0]), size=21, centre=centre)
        for centre in ((10.0, 10.0), (12.0, 7.0))
    ]
    assert torch.equal(drawn[0][..., :-2, 3:], drawn[1][..., 2:, :-3])


def test_a_rounded_corner_goes_from_angle_to_line():
    angle, line = torch.tensor([0.0]), torch.tensor([math.inf])
    right = stimuli.rounded_corner(torch.zeros(1), angle, size=64)
    assert right.mean().item() == pytest.approx(0.25, abs=0.005)  # a right angle: a quarter of the plane
    flat = stimuli.rounded_corner(torch.zeros(1), torch.tensor([7.0]), size=64, angular_width=180.0)
    torch.testing.assert_close(flat, stimuli.rounded_corner(torch.zeros(1), line, size=64))
    areas = [
        stimuli.rounded_corner(torch.zeros(1), torch.tensor([radius]), size=64).mean().item()
        for radius in (0.0, 2.0, 8.0, 32.0, 1000.0, math.inf)
    ]
    assert areas == sorted(areas) and areas[-1] == pytest.approx(0.5)


def test_a_curve_bulges_towards_its_orientation():
    """Facing right, its tip is the rightmost place of the inside."""
    inside = stimuli.rounded_corner(torch.zeros(1), torch.tensor([6.0]), size=21)[0, 0] > 0.4
    columns = inside.nonzero()[:, 1]
    assert columns.max() == 10 and inside[10, 10] and inside[10, 0]


def test_areas_are_those_of_the_formulas():
    disc = stimuli.centre_surround(torch.tensor([9.0]), torch.ones(1), size=40)
    assert (disc[0, 0] * 2 - 1).sum().item() == pytest.approx(math.pi * 81, rel=5e-3)
    for turn in (0.0, 20.0, 45.0):
        bar = stimuli.bar(torch.tensor([turn]), torch.tensor([20.0]), size=40, width=4.0)
        assert bar[0, 0].sum().item() == pytest.approx(80, rel=0.03)


def test_waves_are_averaged_over_pixels():
    """Against the mean of 32 × 32 points in every pixel."""
    fine = stimuli.grating(torch.tensor([27.0]), torch.tensor([5.0 * 32]), size=16 * 32)
    coarse = stimuli.grating(torch.tensor([27.0]), torch.tensor([5.0]), size=16)
    pooled = torch.nn.functional.avg_pool2d(fine, 32)
    torch.testing.assert_close(coarse, pooled, atol=1e-4, rtol=0)


def test_colours_differ_in_hue_alone():
    pictures = stimuli.colour_contrast(torch.tensor([0.0, 50.0]), torch.tensor([0.0, 200.0]), size=16)
    torch.testing.assert_close(pictures.mean(1), torch.full((2, 16, 16), 0.5))
    red_right = pictures[0, :, 8]
    assert red_right[0, -1] > 0.9 and red_right[0, 0] < 0.1


def test_high_frequencies_lie_on_the_side_it_faces():
    picture = stimuli.high_low(torch.zeros(1), torch.tensor([6.0]), size=64)[0, 0]
    steps = picture.diff(dim=0).abs().mean(0)
    assert steps[40:].mean() > 2 * steps[:24].mean()


def test_fading_ends_in_its_colour():
    faded = stimuli.grating(torch.zeros(1), torch.tensor([6.0]), size=41, fade=8.0, fade_over=4.0)
    assert torch.equal(faded[0, :, 0, 0], torch.full((3,), 0.5))
    whole = stimuli.grating(torch.zeros(1), torch.tensor([6.0]), size=41)
    assert torch.equal(faded[..., 18:23, 18:23], whole[..., 18:23, 18:23])
