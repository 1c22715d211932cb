"""Drawn shapes: a function of seed and number, true to their geometry, and the network that learnt them is its card."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import vesalius as vs
from vesalius.data.outlines import CLOSED, OUTLINES
from vesalius.data.shapes import CLASSES, TEXTURES, field, from_outline, places, shapes
from vesalius.errors import VesaliusError
from vesalius.formats import zoo
from vesalius.networks.plain import PlainNetwork
from vesalius.recipes import RECIPES, train
from vesalius.recipes import shapes as recipe
from vesalius.recipes.training import half

SMALL = {"widths": [4, 6], "kernels": [5, 3], "pooled": [1], "classes": 24}
CARD = zoo.SHIPPED / "shapes" / "card.json"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=5), st.integers(0, 3))
def test_a_picture_depends_on_seed_and_number_alone(numbers, seed):
    pictures, labels = shapes(numbers, size=16, seed=seed)
    assert labels.tolist() == [number % 24 for number in numbers]
    for number, picture in zip(numbers, pictures, strict=True):
        alone = shapes([number], size=16, seed=seed)[0][0].int()
        assert (alone - picture.int()).abs().max() <= 1  # groups of other sizes may round otherwise


def test_seeds_differ_and_repeat():
    one, again, other = (shapes(range(24), size=32, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert (one.int() - other.int()).abs().float().mean() > 20


def test_every_picture_has_contrast_and_all_classes_come_equally_often():
    pictures, labels = shapes(range(240), size=32)
    assert labels.bincount().tolist() == [10] * 24
    assert len(set(CLASSES)) == 24
    assert pictures.float().std((2, 3)).amax(1).min() > 2


def test_the_same_picture_at_any_size():
    small, large = shapes(range(48), size=64)[0].float(), shapes(range(48), size=128)[0].float()
    assert (F.avg_pool2d(large, 2) - small).abs().mean() < 6


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_figures(name):
    points = OUTLINES[name](torch.rand(7, 4, generator=torch.Generator().manual_seed(0)))
    assert points.shape[0] == 7 and points.isfinite().all() and points.norm(dim=2).max() < 1.5
    x, y = (axis.flatten() * 3 for axis in places(64))
    distance, inside = from_outline(points, x, y, closed=name in CLOSED)
    assert inside.any(1).all() == (name in CLOSED)
    assert (distance.amin(1) < 0.1).all()


def test_distance_from_a_circle_and_its_inside():
    x, y = (axis.flatten() for axis in places(40))
    distance, inside = from_outline(OUTLINES["circle"](torch.zeros(1, 4)) * 0.3, x, y, closed=True)
    radius = (x**2 + y**2).sqrt()
    torch.testing.assert_close(distance[0], (radius - 0.3).abs(), atol=1e-3, rtol=0)
    clear = (radius - 0.3).abs() > 1e-3
    assert torch.equal(inside[0, clear], radius[clear] < 0.3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6))
def test_the_inside_of_a_triangle(corners):
    points = torch.tensor(corners).view(1, 3, 2)
    x, y = (axis.flatten() for axis in places(16))
    distance, inside = from_outline(points, x, y, closed=True)
    (ax, ay), (bx, by), (cx, cy) = points[0].double()
    sides = [
        (qx - px) * (y - py) - (qy - py) * (x - px)
        for (px, py), (qx, qy) in [((ax, ay), (bx, by)), ((bx, by), (cx, cy)), ((cx, cy), (ax, ay))]
    ]
    turns = torch.stack(sides)
    clear = distance[0] > 1e-4
    assert torch.equal(inside[0, clear], ((turns > 0).all(0) | (turns < 0).all(0))[clear])


def test_handedness_is_a_reflection():
    dice = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(OUTLINES["mirrored s-curve"](dice)[..., 0], -OUTLINES["s-curve"](dice)[..., 0])


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_noise_has_the_spectrum_it_is_said_to_have(decay):
    spectrum = torch.randn(32, 64, 33, 2, generator=torch.Generator().manual_seed(0))
    noise = field(spectrum, torch.full((32,), decay))
    torch.testing.assert_close(noise.var((1, 2)), torch.ones(32))
    power = torch.fft.rfft2(noise).abs().square().mean(0)
    low, high = power[4, 4], power[16, 16]
    assert (low / high).log2().item() / 2 == pytest.approx(2 * decay, abs=0.8)


def test_textures_hold_no_figure_and_fill_the_picture():
    pictures, labels = shapes(range(240), size=32)
    textured = pictures[labels >= 24 - len(TEXTURES)].float()
    quarters = torch.stack(
        [part.std((2, 3)).amax(1) for half_ in textured.chunk(2, 2) for part in half_.chunk(2, 3)]
    )
    assert quarters.min() > 5


def test_folded_norms_compute_the_same():
    model = PlainNetwork(**SMALL)
    recipe.add_norms(model)
    pictures = shapes(range(24), size=32)[0]
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.2, generator=torch.Generator().manual_seed(0))
    model.train()
    model(recipe.prepared(pictures))
    before = model.eval()(recipe.prepared(pictures))
    recipe.fold_norms(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    torch.testing.assert_close(model(recipe.prepared(pictures)), before, atol=1e-4, rtol=1e-4)


def test_training_on_a_few_shapes_writes_a_network_that_loads(monkeypatch, tmp_path):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))
    monkeypatch.setattr(recipe, "PICTURES", 96)
    monkeypatch.setattr(recipe, "HELD_OUT", {"pictures": 48, "seed": 1})
    folder = train("shapes", steps=3, threads=1)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["training"]["pictures_seen"] == 3 * 64
    assert len(card["measured"]["confusion"]) == 24
    parts = zoo.read_folder(folder)
    assert isinstance(parts.module, PlainNetwork) and parts.labels == CLASSES
    with pytest.raises(VesaliusError, match="takes no corpus"):
        train("shapes", corpus=tmp_path)
    del card["labels"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(VesaliusError, match="damaged: it does not say how pictures are prepared"):
        zoo.read_folder(folder)


# ------------------------------------------------------------------------------------------------ the shipped network


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads(CARD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> vs.Model:
    return vs.load("zoo/shapes")


def test_the_card_is_complete_and_its_hash_true(card):
    weights = CARD.parent / "model.safetensors"
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.stat().st_size < 3e6
    assert all(tensor.dtype == torch.float16 for tensor in load_file(weights).values())
    assert card["network"] == "PlainNetwork" and card["licence"] == "Apache-2.0"
    assert card["recipe"]["steps"] == card["training"]["steps"] == RECIPES["shapes"].steps
    assert card["parameters"] == sum(tensor.numel() for tensor in load_file(weights).values())
    confusion = torch.tensor(card["measured"]["confusion"])
    assert confusion.sum(1).tolist() == [recipe.HELD_OUT["pictures"] // 24] * 24
    assert (confusion.diag().sum() / confusion.sum()).item() == pytest.approx(
        card["measured"]["accuracy"], abs=1e-4
    )


def test_it_knows_shapes_it_has_not_seen_as_well_as_its_card_says(card, model):
    facts = card["measured"]
    assert facts["accuracy"] > 0.9 > 0.1 > facts["accuracy_of_twin"]
    pictures, labels = shapes(range(480), seed=recipe.HELD_OUT["seed"])
    guesses = torch.cat([model.logits(part.float() / 255).argmax(1) for part in pictures.split(96)])
    confusion = torch.tensor(facts["confusion"])
    assert (guesses == labels).float().mean().item() == pytest.approx(facts["accuracy"], abs=0.03)
    right = confusion.diag() / confusion.sum(1)
    assert right.min() > 0.7


def test_it_loads_as_a_model_of_pictures(model):
    assert model.labels == CLASSES and {"images", "conv"} <= model.kinds
    assert model.preprocessing.size == (64, 64)
    assert model.architecture.layer_names(model.module) == tuple(f"conv{number}" for number in range(1, 7))
    assert model.map_shape("conv4") == (96, 16, 16)
    with vs.record(model, ["conv4", "conv4_pre_relu"]) as acts:
        model(shapes(range(2), size=96)[0].float() / 255)
    assert torch.equal(acts["conv4"], acts["conv4_pre_relu"].relu())
    assert half(model.module).keys() == load_file(Path(CARD.parent) / "model.safetensors").keys()


@pytest.mark.slow
def test_its_default_layer_holds_a_family_of_curve_detectors(model):
    from vesalius.methods.features.find_curve_detectors import find_curve_detectors

    found = find_curve_detectors(model, n_images=256)
    assert found.site == "conv4" and len(found.units) >= 20
    assert len({int((angle + 22.5) % 360 // 45) for angle in found.orientation.tolist()}) == 8
    assert max(found.twin_candidates) <= 1
