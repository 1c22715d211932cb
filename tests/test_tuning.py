"""Tuning curves: closed forms, planted shifts and permutations, and the published curves of InceptionV1."""

import json
import math
from pathlib import Path

import pytest
import torch

from vesalius import tuning

CANDIDATES = [
    Path(__file__).parents[1] / "shared/data/curve-circuits",
    Path(__file__).parents[2] / "shared/data/curve-circuits",
]


def bumps(centres, count=360, sd=20.0):
    return torch.exp(-0.5 * (tuning.distance(tuning.angles(count), torch.tensor(centres)[:, None]) / sd) ** 2)


def test_a_gaussian_is_as_wide_as_its_formula():
    width = tuning.width(bumps([0.0, 37.0, 359.0]))
    torch.testing.assert_close(
        width, torch.full((3,), 2 * math.sqrt(2 * math.log(2)) * 20), atol=0.01, rtol=0
    )


def test_a_rectified_cosine():
    """Half maximum at ±60°; Σcos² / Σ|cos| is π/4."""
    curve = (tuning.angles(720) - 90).deg2rad().cos().clamp(min=0)
    direction, length = tuning.circular_mean(curve)
    assert tuning.preferred(curve) == 90
    assert tuning.width(curve).item() == pytest.approx(120, abs=0.01)
    assert direction.item() == pytest.approx(90, abs=1e-3)
    assert length.item() == pytest.approx(math.pi / 4, abs=1e-4)
    assert tuning.echo_ratio(curve) == 0


def test_a_second_bump_is_an_echo():
    curve = bumps([10.0])[0] + 0.3 * bumps([205.0])[0]
    assert tuning.echo_ratio(curve).item() == pytest.approx(0.3, abs=1e-3)
    assert tuning.echo_ratio(curve, within=5.0) < 0.3


def test_a_flat_curve_is_as_wide_as_the_circle_and_a_silent_one_has_no_width():
    assert tuning.width(torch.ones(36)) == 360
    assert tuning.width(torch.zeros(36)).isnan()
    assert tuning.echo_ratio(-torch.ones(36)).isnan()
    assert tuning.circular_mean(torch.zeros(36))[1].isnan()


def test_coverage_and_gaps_of_a_family():
    even = bumps([0.0, 90.0, 180.0, 270.0], sd=30.0)
    least = math.exp(-0.5 * (45 / 30) ** 2)
    assert tuning.coverage(even).min().item() == pytest.approx(least, abs=1e-6)
    assert tuning.coverage(torch.cat([7 * even, torch.zeros(1, 360)])).max().item() == pytest.approx(1)
    torch.testing.assert_close(
        tuning.gaps(torch.tensor([350.0, 20.0, 200.0])), torch.tensor([180.0, 150.0, 30.0])
    )


def test_distance_goes_the_short_way():
    first, second = torch.tensor([350.0, 10.0, 0.0]), torch.tensor([10.0, 350.0, 180.0])
    assert tuning.distance(first, second).tolist() == [20, 20, 180]
    assert tuning.distance(torch.tensor(170.0), 10.0, period=180.0) == 20


def test_curves_are_moved_by_their_own_steps():
    curves = bumps([0.0, 0.0], count=36)
    moved = tuning.turned(curves, torch.tensor([3, -5]))
    assert tuning.preferred(moved).tolist() == [30, 310]


def test_alignment_finds_planted_shifts():
    generator = torch.Generator().manual_seed(0)
    shape = bumps([0.0])[0] + 0.5 * bumps([70.0])[0]
    shifts = torch.randint(360, (40,), generator=generator)
    curves = tuning.turned(shape.expand(40, -1), shifts) + 0.05 * torch.randn(40, 360, generator=generator)
    steps = tuning.aligned(curves)
    off = tuning.distance((steps + shifts).float(), 0.0)
    assert off.max() <= 3
    assert tuning.distance(tuning.preferred(tuning.turned(curves, steps).mean(0)), 0.0) <= 1


def test_correlation_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 12, generator=generator), torch.randn(3, 12, generator=generator)
    for steps in (0, 5):
        whole = torch.corrcoef(torch.cat([first.roll(steps, 1), second]))[:2, 2:]
        torch.testing.assert_close(tuning.cross_correlation(first, second)[..., steps], whole)


def test_a_turn_permutes_a_family():
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    curves = bumps((order * 15.0).tolist(), sd=12.0)
    for degrees in (15, 90, 180):
        target, score = tuning.permutation(curves, degrees=degrees)
        assert torch.equal(order[target], (order + degrees // 15) % 24)
        torch.testing.assert_close(score, torch.ones(24), atol=1e-4, rtol=0)
    among = order < 6
    target, score = tuning.permutation(curves, degrees=15, among=among)
    assert torch.equal(target[~among], torch.arange(24)[~among]) and score[~among].isnan().all()


def test_a_family_without_members_stays_where_it_is():
    target, score = tuning.permutation(bumps([0.0, 90.0]), degrees=90, among=torch.zeros(2, dtype=torch.bool))
    assert target.tolist() == [0, 1] and score.isnan().all()


def test_smoothing_keeps_the_mean():
    curve = torch.zeros(2, 72)
    curve[:, 5] = 1.0
    smooth = tuning.smoothed(curve, sd=10.0)
    torch.testing.assert_close(smooth.mean(1), curve.mean(1))
    assert tuning.preferred(smooth).tolist() == [25, 25]


def published(layer):
    folder = next((folder for folder in CANDIDATES if folder.is_dir()), None)
    if folder is None:
        pytest.skip("the published tuning curves (shared/data/curve-circuits) are not here")
    document = json.loads((folder / f"curves-{layer}.json").read_text(encoding="utf-8"))
    return torch.tensor(list(document["activations"].values()), dtype=torch.float64)


def test_published_curves_of_mixed3b():
    curves = published("mixed3b")
    wanted = [22.5, 66.5, 91.5, 110, 145, 181, 243, 268.5, 290, 358]
    assert sorted(tuning.preferred(curves).tolist()) == wanted
    width = tuning.width(curves)
    assert (width.min().round(), width.max().round()) == (28, 69) and width.mean().item() == pytest.approx(
        49, abs=1
    )
    gaps = tuning.gaps(tuning.preferred(curves))
    assert (gaps.min(), gaps.max()) == (18.5, 68)
    assert (tuning.coverage(curves) > 0.5).double().mean().item() == pytest.approx(0.9, abs=0.005)


@pytest.mark.parametrize(
    ("layer", "echo"), [("conv2d2", 0.44), ("mixed3a", 0.26), ("mixed3b", 0.01), ("mixed4a", 0.29)]
)
def test_published_echoes(layer, echo):
    assert tuning.echo_ratio(published(layer)).mean().item() == pytest.approx(echo, abs=0.006)
