"""The handwritten curve network: what is true of it by construction, and what every vision method must find in it."""

import functools
import math

import pytest
import torch

import vesalius as vs
from vesalius import stimuli, tuning
from vesalius.data.images import Images, open_images
from vesalius.methods.features.joint_tuning import JointTuning
from vesalius.testbed import curve_network
from vesalius.weights.expanded import expanded_weights

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
def tuned(negative: bool, filled: bool) -> torch.Tensor:
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
    assert (tuned(True, filled).mean(0).argmax(0) == 0).all()


@pytest.mark.parametrize("filled", (True, False))
def test_fifteen_degrees_take_each_unit_to_the_next(filled):
    assert torch.corrcoef(tuned(True, filled).flatten(0, 1).T).min() > 0.99


@pytest.mark.parametrize("filled", (True, False))
def test_negative_weights_silence_the_echo(filled):
    assert echoes(tuned(True, filled)).max() < 0.05
    assert echoes(tuned(False, filled)).min() > 0.2


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


def test_building_it_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    curve_network(shuffle=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_shuffling_only_renames():
    plain, shuffled = curve_network(), curve_network(shuffle=5)
    assert plain.module.units["curves"] != shuffled.module.units["curves"]
    picture = corners()[100:101]
    assert torch.allclose(plain.logits(picture), shuffled.logits(picture), atol=1e-5)


# ------------------------------------------------------------------------------------- what the methods must find in it


@functools.cache
def planted() -> vs.Model:
    """Both families and the polysemantic unit, in no order."""
    return curve_network(shuffle=2, polysemantic=True, colour_contrast=True)


def numbered(family: str) -> list[int]:
    return [n for n, unit in enumerate(planted().module.units["curves"]) if unit.family == family]


def facing(unit: int) -> float:
    return planted().module.units["curves"][unit].orientation


@functools.cache
def curves() -> Images:
    """Curves of all orientations, in four looks."""
    grid = torch.cartesian_prod(torch.tensor([14.0]), torch.arange(0, 360, 15.0))
    looks = stimuli.named("rounded_corner").variants
    drawn = [
        stimuli.rounded_corner(grid[:, 1], grid[:, 0], size=60, **looks[look])
        for look in ("filled", "filled, dark", "line", "line, dark")
    ]
    return open_images(torch.cat(drawn))


@functools.cache
def jointly_tuned() -> JointTuning:
    feature = f"curves[{numbered('curve')[0]}]"
    return vs.joint_tuning(
        planted(), feature, images=curves(), n_images=300, n_examples=8, angles=72, twins=1
    )


def test_joint_tuning_finds_the_family_and_each_orientation_in_it():
    found = jointly_tuned()
    assert set(numbered("curve")) <= set(found.members.tolist())
    assert set(found.members.tolist()) <= set(numbered("curve") + numbered("curve or red"))
    for unit, angle in zip(found.members.tolist(), found.orientations.tolist()):
        expected = facing(unit) - facing(numbered("curve")[0])
        assert tuning.distance(torch.tensor(angle), expected) <= 5


@pytest.mark.parametrize("degrees", (15, 45, 90, 180))
def test_joint_tuning_recovers_the_planted_permutation_exactly(degrees):
    units = numbered("curve")
    among = torch.zeros(len(planted().module.units["curves"]), dtype=torch.bool)
    among[units] = True
    target, score = tuning.permutation(jointly_tuned().curves, degrees=degrees, among=among)
    moved = {round((facing(int(target[unit])) - facing(unit)) % 360) for unit in units}
    assert moved == {degrees}
    assert score[units].min() > 0.95


def test_the_curve_detectors_are_found_each_facing_its_way():
    found = vs.find_curve_detectors(planted(), images=curves(), n_images=300, twins=2)
    assert set(numbered("curve")) <= set(found.units.tolist())
    assert set(found.units.tolist()) <= set(numbered("curve") + numbered("curve or red"))
    for unit, orientation in zip(found.units.tolist(), found.orientation):
        assert tuning.distance(orientation, facing(unit)) < 5


def test_expanded_weights_are_the_kernels_multiplied_out():
    module = curve_network().module
    late, early = module.curves_pre_relu.weight, module.small_curves_pre_relu.weight
    target, between, source = late.shape[0], early.shape[0], early.shape[1]
    composed = torch.zeros(target, source, 9, 9)
    for row in range(5):
        for column in range(5):
            part = torch.einsum("tb,bsij->tsij", late[:, :, row, column], early)
            composed[:, :, row : row + 5, column : column + 5] += part
    assert between == late.shape[1]
    pooled = composed.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4  # each tap is the mean of four
    expanded = expanded_weights(curve_network(), "lines", "curves")
    assert expanded.shape == pooled.shape and torch.allclose(expanded, pooled, atol=1e-6)
    assert torch.allclose(expanded_weights(curve_network(), "small_curves", "curves"), late, atol=1e-6)


@functools.cache
def reds_and_curves() -> Images:
    """Red blots of many sizes, and the curves that face 45°, in equal numbers."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(60) - 29.5
    blots = []
    for _ in range(36):
        x, y = (torch.rand(2, generator=generator) * 10 - 5).tolist()
        width = 8 + 10 * torch.rand(1, generator=generator)
        blot = torch.exp(-((place - x) ** 2 + (place[:, None] - y) ** 2) / (2 * width**2))
        blots.append(0.5 + torch.stack([blot, -blot / 2, -blot / 2]) / 2)  # as bright as the ground
    radii = torch.linspace(10, 20, 9).repeat(4)
    looks = stimuli.named("rounded_corner").variants
    drawn = [
        stimuli.rounded_corner(torch.full((9,), 45.0), radii[:9], size=60, **looks[look])
        for look in ("filled", "filled, dark", "line", "line, dark")
    ]
    return open_images(torch.cat([torch.stack(blots).clamp(0, 1), *drawn]))


def test_the_planted_unit_is_found_polysemantic_and_a_pure_one_is_not():
    double, pure = numbered("curve or red")[0], next(n for n in numbered("curve") if facing(n) == 45)
    found = [
        vs.polysemantic_neurons(planted(), f"curves[{unit}]", images=reds_and_curves(), examples=48, null=24)
        for unit in (double, pure)
    ]
    assert found[0].separate and len(found[0].groups) == 2
    assert not found[1].separate


@pytest.mark.slow
@pytest.mark.parametrize("name", ("find_curve_detectors", "joint_tuning", "polysemantic_neurons"))
def test_an_untrained_network_gives_no_evidence(name):
    twin, method = curve_network().random_twin(17), vs.methods()[name]
    quick = {"n_images": 64, "n_examples": 8, "angles": 36, "twins": 2, "null": 24}
    feature = ["curves[0]"] if method.subject == "feature" else []
    result = method.function(twin, *feature, **{k: v for k, v in quick.items() if k in method.parameters})
    assert not [headline.claim for headline in result.headlines() if headline.evidence]
