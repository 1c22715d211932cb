"""Handwritten units in the place of natural ones: planted families are recovered, others and noise are not."""

import functools

import pytest
import torch

import vesalius as vs
from vesalius import handwritten
from vesalius.drawn_curves import drawn_curves
from vesalius.errors import VesaliusError
from vesalius.methods.features.handwritten import Handwritten
from vesalius.surgery import outputs, recovered, transplant
from vesalius.testbed import curve_network
from vesalius.tuning import distance


@functools.cache
def planted() -> vs.Model:
    return curve_network(shuffle=1, colour_contrast=True)


@functools.cache
def result() -> Handwritten:
    return handwritten(planted(), "curves[2]", n_images=24, steps=2)


def test_the_family_and_its_orientations_are_found():
    units = planted().module.units["curves"]
    assert {units[unit].family for unit in result().units} == {"curve"} and len(result().units) == 24
    facing = torch.tensor([units[unit].orientation for unit in result().units])
    assert distance(torch.tensor(result().orientations), facing).max() < 3


def test_each_unit_gets_the_counterpart_that_it_is():
    units = planted().module.units["curves"]
    assert result().choices["counterparts"] == [str(units[unit]) for unit in result().units]


def test_handwritten_units_recover_all_and_the_controls_nothing():
    assert result().recovered == pytest.approx(1, abs=1e-3)
    assert result().interval[0] > 0.99 > 0 > result().chance
    assert result().headlines()[0].evidence


def test_the_comparisons_agree():
    assert result().alike.min() > 0.99 and result().unlike < 0.2
    assert result().weights["correlation"] > 0.99 > result().weights["shuffled"]
    assert result().saliency_alike > 0.99 > result().saliency_unlike
    assert torch.equal(result().saliency[0], result().saliency[1])


def test_labels_are_counted_where_there_are_any():
    from vesalius import stimuli
    from vesalius.data.images import Images

    angles = torch.arange(0, 360, 15.0).repeat(2)
    drawn = stimuli.rounded_corner(angles, torch.full((48,), 14.0), size=60)
    pictures = Images(
        [str(n) for n in range(48)],
        lambda number, _: drawn[number],
        digest=lambda: "drawn",
        classes=[f"curve {angle:g}°" for angle in angles.tolist()],
    )
    found = handwritten(planted(), "curves[2]", images=pictures, n_images=48, steps=1)
    assert found.metric == "accuracy" and found.recovered == 1
    assert found.loss["original"] == found.loss["handwritten"] == 0 and found.loss["ablated"] > 0.9


def test_an_untrained_network_is_not_recovered():
    for seed in range(2):
        found = handwritten(curve_network().random_twin(40 + seed), "curves[0]", n_images=24, steps=1)
        assert not any(headline.evidence for headline in found.headlines())


def test_a_transplant_of_itself_changes_nothing():
    model, pixels = curve_network(), torch.rand(4, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    units = [0, 5, 7]
    same = transplant(
        model,
        "curves",
        units,
        pixels=pixels,
        written=curve_network(),
        written_site="curves",
        written_units=units,
    )
    before = model.logits(pixels)
    assert torch.allclose(outputs(model, "curves", units, pixels, instead=same), before, atol=1e-4)


def test_a_transplant_sees_what_the_natural_units_see_in_a_magnified_picture():
    model = curve_network()
    pixels = vs.stimuli.rounded_corner(torch.tensor([0.0, 90.0]), torch.tensor([14.0, 14.0]), size=60)
    larger = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear")
    same = transplant(
        model, "curves", [0, 6], pixels=larger, written=curve_network(), written_site="curves",
        written_units=[0, 6], magnified=0.5,
    )  # fmt: skip
    middle = same.maps(larger, rows=30, columns=30)[:, :, 14:16, 14:16].mean((2, 3))
    assert middle[0, 0] > 5 * middle[0, 1] and middle[1, 1] > 5 * middle[1, 0]


def test_the_fraction_is_one_for_the_original_and_nought_for_the_ablated():
    original, ablated = torch.zeros(20), torch.rand(20, generator=torch.Generator().manual_seed(0))
    assert recovered(original, ablated, original, seed=0) == (1.0, (1.0, 1.0))
    assert recovered(original, ablated, ablated, seed=0)[0] == 0
    assert recovered(original, ablated, ablated / 2, seed=0)[0] == pytest.approx(0.5)


def test_drawn_curves_measure_the_planted_radius():
    asked = drawn_curves(planted(), "curves")
    assert 11 < asked.radius(result().units) < 17


@pytest.mark.parametrize(
    ("parameters", "words"),
    (
        ({"others": ["lines[0]"]}, "not a unit of 'curves'"),
        ({"n_images": 3}, "4 or more"),
        ({"metric": "accuracy"}, "do not have the network's labels"),
    ),
)
def test_bad_input_says_what_was_expected(parameters, words):
    with pytest.raises(VesaliusError, match=words):
        handwritten(planted(), "curves[2]", **{"n_images": 8, "steps": 1} | parameters)


def test_a_direction_is_no_unit():
    with pytest.raises(VesaliusError, match="expected a unit"):
        handwritten(planted(), vs.direction("curves", torch.ones(32)))
