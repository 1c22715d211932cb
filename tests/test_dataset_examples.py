"""Dataset examples and labelled ones find what was planted: where in which picture, and what people saw there."""

import json

import pytest
import torch
from torch import nn

import vesalius as vs
from vesalius.data.images import open_images
from vesalius.errors import VesaliusError
from vesalius.examples import crops, field_of, pre_activation
from vesalius.methods.features.dataset_examples import _tail, dataset_examples
from vesalius.methods.features.labelled_examples import labelled_examples
from vesalius.preprocessing import Preprocessing
from vesalius.testbed.curve_network import curve_network

SIZE = 32


def seen(units: int = 6) -> vs.Model:
    """Unit 0 is the mean of the red channel over 4×4 pixels, less 0.25; the others are random."""
    convolution = nn.Conv2d(3, units, 4, stride=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator) / 16)
        convolution.weight[0] = torch.tensor([1 / 16, 0, 0])[:, None, None]
        convolution.bias.zero_()
        convolution.bias[0] = -0.25
    module = nn.Sequential(convolution, nn.ReLU(inplace=True))
    return vs.Model(module, preprocessing=Preprocessing((SIZE, SIZE), (0.0,) * 3, (1.0,) * 3))


def squares(count: int = 40) -> torch.Tensor:
    """Dark noise; picture i has a red square of brightness i / count at a place of its own."""
    pictures = 0.2 * torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for number in range(count):
        top, left = 2 * (number % 13), 2 * (number % 11)
        pictures[number, 0, top : top + 6, left : left + 6] = 0.3 + 0.7 * number / count
    return pictures


def test_the_address_before_the_nonlinearity():
    assert pre_activation(curve_network(), "maps@3") == "maps_pre@3"
    assert pre_activation(curve_network(), "curves") == "curves_pre_relu"
    assert pre_activation(seen(), "1") == "1:in"
    assert pre_activation(seen(), "0") == "0"


def test_the_top_is_where_it_was_put():
    result = dataset_examples(seen(), "1[0]", images=open_images(squares()), top=5, per_bin=3)
    assert result.site == "1:in"
    top = result.rows[0]
    assert top["names"] == [f"picture {number}" for number in (39, 38, 37, 36, 35)]
    columns = (SIZE - 4) // 2 + 1
    for name, position, value, crop in zip(top["names"], top["positions"], top["values"], top["pictures"]):
        number = int(name.split()[1])
        row, column = divmod(int(position), columns)
        assert 0 <= 2 * row - 2 * (number % 13) <= 2 and 0 <= 2 * column - 2 * (number % 11) <= 2
        assert value.item() == pytest.approx(0.3 + 0.7 * number / 40 - 0.25, abs=1e-5)
        assert crop.shape == (3, 4, 4) and (crop[0].float() / 255).mean().item() == pytest.approx(
            value.item() + 0.25, abs=0.01
        )
    assert result.peak_low <= result.peak <= result.peak_high


def test_the_spectrum_covers_the_range_and_counts_every_position():
    model, pictures = seen(), open_images(squares())
    result = dataset_examples(model, "1[0]", images=pictures, per_bin=3)
    values = nn.functional.conv2d(squares(), model.module[0].weight, model.module[0].bias, stride=2)[:, 0]
    assert result.counts.sum() == values.numel()
    assert result.mean == pytest.approx(values.mean().item(), abs=1e-6)
    assert result.sd == pytest.approx(values.std(correction=0).item(), abs=1e-6)
    assert result.firing == pytest.approx((values >= 0).float().mean().item())
    assert torch.equal(torch.histogram(values.flatten(), result.edges).hist.long(), result.counts)
    bins = result.rows[1:-3]
    shown = torch.cat([row["values"] for row in bins])
    assert shown.max() > 0.9 * values.max() and shown.min() < values.min() / 2
    assert all(len(set(row["names"])) == len(row["names"]) <= 3 for row in bins)


def test_a_planted_curve_stands_out_and_a_random_one_does_not():
    trained = dataset_examples(curve_network(), "curves[3]", n_images=128)
    assert trained.headlines()[0].evidence is True
    random = dataset_examples(curve_network().random_twin(50), "curves[3]", n_images=128)
    assert random.headlines()[0].evidence is False


def test_what_is_outside_the_picture_is_grey_and_said():
    model = curve_network()
    pictures = open_images(torch.zeros(1, 3, 60, 60))
    field = field_of(model, "curves")
    shown, outside = crops(
        model, pictures, site="curves", field=field, examples=[0, 0], positions=[0, 15 * 7 + 7]
    )
    assert shown.shape == (2, 3, field.size, field.size)
    assert outside[0] == pytest.approx((shown[0, 0] == 128).float().mean().item())
    assert outside[0] > 0.5 > outside[1]


def test_positions_that_see_the_border_can_be_left_out():
    """Of 15×15 positions whose field is 50 pixels wide and 4 apart, 3×3 lie inside 60×60."""
    result = dataset_examples(curve_network(), "curves[3]", n_images=24, positions="inside")
    assert result.counts.sum() == 24 * 9 and result.choices["positions"] == "inside"
    assert all((row["outside"] == 0).all() for row in result.rows)


def test_tokens_are_shown_with_their_whole_picture():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut = nn.Conv2d(3, 8, 8, stride=8)
            self.mix = nn.Linear(8, 8)

        def forward(self, pixels):
            return self.mix(self.cut(pixels).flatten(2).mT)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = vs.Model(Patches(), preprocessing=Preprocessing((SIZE, SIZE), (0.0,) * 3, (1.0,) * 3))
    result = dataset_examples(model, "mix[5]", images=open_images(squares()), top=3)
    assert result.rows[0]["pictures"].shape == (3, 3, SIZE, SIZE)
    assert result.counts.sum() == 40 * 16
    direction = vs.direction("mix", torch.ones(8), label="sum")
    assert dataset_examples(model, direction, images=open_images(squares()), top=3).feature == "sum"


def test_tails_are_told_apart():
    """An exponential tail of scale 104, as published for 3b:379, is read back; a Gaussian's is called one."""
    generator = torch.Generator().manual_seed(0)
    bulk = 100 * torch.randn(800_000, generator=generator)
    mixed = torch.cat([bulk - 200, torch.empty(100_000).exponential_(1 / 104, generator=generator)])
    for values, exponential in ((mixed, True), (bulk, False)):
        counts, edges = torch.histogram(values, bins=64)
        tail = _tail(edges, counts.long(), values.mean().item())
        assert (tail["straight"] > tail["gaussian"]) is exponential
        if exponential:
            assert tail["scale"] == pytest.approx(104, rel=0.05) and tail["straight"] > 0.99


def test_a_dead_unit_is_no_evidence():
    model = seen()
    with torch.no_grad():
        model.module[0].weight[0], model.module[0].bias[0] = 0.0, -1.0
    result = dataset_examples(model, "1[0]", images=open_images(squares()))
    assert result.sd == 0 and result.headlines()[0].evidence is False
    result.figure()


# ------------------------------------------------------------------------------------------------------------ labels


def labelled(tmp_path, name_of, **parameters):
    """The result after a person has called each crop `name_of(its value)`."""
    blind = labelled_examples(seen(), "1[0]", images=open_images(squares()), **parameters)
    given = {key: name_of(value) for key, value in zip(blind.keys, blind.values.tolist())}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({key: name for key, name in given.items() if name}))
    return blind, labelled_examples(seen(), "1[0]", images=open_images(squares()), labels=path, **parameters)


def test_the_form_is_blind(tmp_path):
    blind, _ = labelled(tmp_path, lambda value: "feature")
    figure = blind.figure()
    assert figure.component == "labelling"
    assert set(figure.data) == {"pictures", "classes", "keys"}
    order = blind.values.argsort().argsort().double()
    drift = torch.corrcoef(torch.stack([order, torch.arange(len(order)).double()]))[0, 1]
    assert abs(drift) < 0.35, "the order tells nothing of the values"
    counts = blind.bins.bincount()
    assert counts.max() <= 8


def test_the_share_of_the_expected_value_is_the_one_that_was_planted(tmp_path):
    """Who calls everything above 0.25 the feature gives it the share of the expectation that lies there."""
    _, result = labelled(tmp_path, lambda value: "feature" if value > 0.25 else "unrelated")
    centres = (result.edges[1:] + result.edges[:-1]) / 2
    mass = centres.clamp(min=0) * result.density
    value, low, high = result.together
    assert low <= value <= high
    assert value == pytest.approx((mass[centres > 0.25].sum() / mass.sum()).item(), abs=0.02)
    assert result.headlines()[-1].evidence is True
    assert result.covered == pytest.approx(1.0)
    assert result.expected["unrelated"][0] == pytest.approx(1 - value)
    labelled_shares = result.shares[:, result.shares.isfinite().all(0)]
    assert torch.allclose(labelled_shares.sum(0), torch.ones(labelled_shares.shape[1]))


def test_labels_that_tell_nothing_are_no_evidence(tmp_path):
    coin = torch.Generator().manual_seed(4)
    _, result = labelled(
        tmp_path, lambda value: "feature" if torch.rand((), generator=coin) < 0.5 else "unrelated"
    )
    assert result.headlines()[-1].evidence is False


def test_bad_labels_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "labels.json"
    for text, match in (
        ("{", "is not JSON"),
        ("[1]", "holds no labels"),
        ('{"abc": "feature"}', "none of these crops"),
        ('{"abc": "featur"}', "class 'featur'"),
    ):
        path.write_text(text)
        with pytest.raises(VesaliusError, match=match):
            labelled_examples(seen(), "1[0]", images=open_images(squares()), labels=path)
    with pytest.raises(VesaliusError, match="is not a file"):
        labelled_examples(seen(), "1[0]", images=open_images(squares()), labels=tmp_path / "none.json")
    with pytest.raises(VesaliusError, match="counted names 'x'"):
        labelled_examples(seen(), "1[0]", images=open_images(squares()), counted=["x"])
