"""Feature visualisation as an analysis: on the handwritten curve network, and on networks that were never trained."""

from dataclasses import fields

import pytest
import torch

from vesalius.access import record
from vesalius.dictionaries import direction
from vesalius.errors import VesaliusError
from vesalius.methods.features.feature_visualization import feature_visualization
from vesalius.result import Result
from vesalius.testbed import curve_network


@pytest.fixture(autouse=True)
def a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))


FEW = {"steps": 24, "n_images": 16, "untrained": 6}


@pytest.fixture(scope="module")
def model():
    return curve_network()


def test_a_planted_curve_is_driven_beyond_untrained_units_and_the_best_picture(model):
    seen = feature_visualization(model, "curves[3]", steps=48, n_images=16)
    first, natural, _, lowered = seen.headlines()
    assert first.evidence and first.interval[0] > first.control
    assert first.value > natural.value
    assert lowered.value < -1
    assert seen.site == "curves_pre_relu"
    assert seen.positive.shape == (1, 3, 60, 60) and seen.diverse.shape[0] == 4
    assert (seen.history[-1] > seen.history[0]).all()


def test_a_network_that_was_never_trained_gives_no_evidence(model):
    found = [
        feature_visualization(model.random_twin(100 + seed), f"curves[{seed}]", seed=seed, **FEW).headlines()[
            0
        ]
        for seed in range(4)
    ]
    assert not any(headline.evidence for headline in found)


def test_the_pictures_show_the_curve_that_was_planted(model):
    """What the picture of a curve raises most, of the family, is that curve or one beside it."""
    units = model.module.units["curves"]
    settings = {**FEW, "steps": 64, "transforms": "oriented", "objective": "centre"}
    seen = feature_visualization(model, "curves[6]", **settings)
    with record(model, "curves") as acts:
        model(seen.diverse / 255)
    middle = acts["curves"][:, :, 6:9, 6:9].amax((2, 3))
    raised = [units[int(unit)].orientation for unit in middle.argmax(1)]
    apart = [abs((angle - units[6].orientation + 180) % 360 - 180) for angle in raised]
    assert sorted(apart)[2] <= 30  # of four; rings about a curve hold its opposite too


def test_the_same_seed_gives_the_same_bits_and_a_saved_result_loads(model, tmp_path):
    one, two = (feature_visualization(model, "curves[0]", images="shapes", **FEW) for _ in range(2))
    for field in fields(one):
        before, after = getattr(one, field.name), getattr(two, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after)
    loaded = Result.load(one.save(tmp_path / "saved"))
    assert loaded.summary() == one.summary()
    assert loaded.figure().to_json() == one.figure().to_json()


@pytest.mark.parametrize(
    "settings",
    [
        {"parametrisation": "maco", "transforms": "crops"},
        {"parametrisation": "pixel", "transforms": "none"},
        {"colours": "measured", "objective": "centre"},
    ],
    ids=str,
)
def test_every_way_of_making_them_gives_pictures(model, settings):
    seen = feature_visualization(model, "curves[0]", diverse=2, **FEW, **settings)
    assert seen.choices["objective"] == settings.get("objective", "mean")
    assert seen.history[-1].mean() > seen.history[0].mean()


def test_a_direction_is_compared_with_random_directions(model):
    vector = torch.zeros(model.map_shape("curves")[0])
    vector[[0, 1]] = 1.0
    seen = feature_visualization(model, direction("curves", vector, label="two curves"), **FEW)
    assert seen.feature == "two curves" and seen.site == "curves"
    assert len(seen.responses["untrained"]) == FEW["untrained"]


def test_nothing_to_compare_with_is_one_sentence(model, tmp_path):
    with pytest.raises(VesaliusError):
        feature_visualization(model, "curves[0]", images=tmp_path / "nowhere")
    with pytest.raises(VesaliusError, match="expected 0 to"):
        feature_visualization(model, "curves[999]")
