"""Expanded weights: equal to composition where the path is linear, and to one gradient at a time everywhere."""

import pytest
import torch
from torch import nn

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.preprocessing import Preprocessing
from vesalius.weights.expanded import achievable_gradients, example_gradients, expanded_weights
from vesalius.weights.linearised import linearised
from vesalius.weights.receptive_field import receptive_field

PIXELS = Preprocessing((64, 64), (0.0,) * 3, (1.0,) * 3)


class Inception(nn.Module):
    """Four branches side by side, as in Szegedy et al. 2014, concatenated before the ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.one = nn.Conv2d(width, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(width, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1))
        self.five = nn.Sequential(nn.Conv2d(width, 3, 1), nn.ReLU(), nn.Conv2d(3, 6, 5, padding="same"))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(width, 2, 1))

    def forward(self, x):
        return torch.relu(torch.cat([branch(x) for branch in self.children()], 1))


class Mobile(nn.Module):
    """An inverted residual: batch norms, ReLU6, a depthwise convolution and a sum in place."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.norm = nn.Conv2d(width, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.deep, self.down = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, width, 1)

    def forward(self, x):
        y = torch.nn.functional.relu6(self.norm(self.up(x)), inplace=True)
        y = self.down(torch.nn.functional.relu6(self.deep(y)))
        y += x
        return y


@pytest.fixture(scope="module")
def model() -> vs.Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0), Inception(8), nn.MaxPool2d(3, 2, 1),
            Mobile(17), nn.Conv2d(17, 5, 3, dilation=2),
        )  # fmt: skip
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(), part.running_var.uniform_(0.5, 2), part.weight.data.normal_()
    return vs.Model(module, preprocessing=PIXELS, name="branches")


def one_at_a_time(model: vs.Model, source: str, target: str) -> torch.Tensor:
    """A backward pass for each channel over the whole picture, and the field cut out of it."""
    field = receptive_field(model, target, source=source)
    with linearised(), vs.record(model, [source, target], gradients=True) as acts:
        model(torch.full((1, 3, 64, 64), 0.5, requires_grad=True))
    maps, seen = acts[target], acts[source]
    row = maps.shape[2] // 2
    top, left, bottom, right = field.box(row, row)
    gradients = [
        torch.autograd.grad(maps[0, channel, row, row], seen, retain_graph=True)[0][0]
        for channel in range(maps.shape[1])
    ]
    return torch.stack(gradients)[:, :, top:bottom, left:right]


@pytest.mark.parametrize(
    ("source", "target"),
    [("1", "3"), (":in", "0"), (":in", "3"), ("3", "5"), ("1", "5"), ("3", "6"), (":in", "6")],
)
def test_all_targets_at_once_are_each_ones_gradient(model, source, target):
    expected = one_at_a_time(model, source, target)
    torch.testing.assert_close(expanded_weights(model, source, target), expected, atol=1e-6, rtol=1e-5)


def test_over_a_bottleneck_they_are_the_composition():
    narrow, wide = nn.Conv2d(256, 32, 1), nn.Conv2d(32, 96, 5, padding=2)
    module = nn.Sequential(nn.Conv2d(3, 256, 1), nn.Sequential(narrow, nn.ReLU(), wide), nn.ReLU())
    model = vs.Model(module, preprocessing=PIXELS)
    composed = torch.einsum("tbij,bs->tsij", wide.weight, narrow.weight[:, :, 0, 0])
    weights = expanded_weights(model, "0", "2")
    assert (weights - composed).abs().max() < 1e-6

    examples = example_gradients(model, "0", vs.neurons("1")[3], torch.rand(1, 3, 64, 64))
    pair = torch.stack([examples.gradients[0].flatten(), weights[3].flatten()])
    assert torch.corrcoef(pair)[0, 1] < 0.99  # with its ReLU, the bottleneck is not its composition


def test_channels_and_directions_choose_rows(model):
    every = expanded_weights(model, "1", "3")
    torch.testing.assert_close(expanded_weights(model, "1", "3", channels=[4, 2]), every[[4, 2]])
    mixture = torch.randn(1, 17, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        expanded_weights(model, "1", "3", channels=mixture)[0], torch.einsum("t,tsij->sij", mixture[0], every)
    )


@pytest.mark.parametrize(("source", "target"), [("1", "3"), ("3", "5"), ("1", "6")])
def test_paths_of_either_sign_add_up(model, source, target):
    weights = expanded_weights(model, source, target)
    lowest, highest = achievable_gradients(model, source, target)
    assert lowest.max() <= 0 <= highest.min()
    torch.testing.assert_close(lowest + highest, weights, atol=1e-5, rtol=1e-4)


def test_the_bounds_of_a_bottleneck_are_its_paths():
    narrow, wide = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3)
    model = vs.Model(nn.Sequential(narrow, nn.ReLU(), wide), preprocessing=PIXELS)
    paths = wide.weight[:, :, None] * narrow.weight[:, :, 0, 0][None, :, :, None, None]
    lowest, highest = achievable_gradients(model, ":in", "2")
    torch.testing.assert_close(highest, paths.clamp(min=0).sum(1))
    torch.testing.assert_close(lowest, paths.clamp(max=0).sum(1))


def test_cases_that_cancel_are_seen_in_the_paths_and_on_pictures():
    """A boundary detector of both polarities: |a - b| as relu(a - b) + relu(b - a), whose expansion is 0."""
    first, second = nn.Conv2d(1, 2, (1, 2), bias=False), nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[[[1.0, -1.0]]], [[[-1.0, 1.0]]]]))
        second.weight.fill_(1.0)
    model = vs.Model(
        nn.Sequential(first, nn.ReLU(), second), preprocessing=Preprocessing((8, 8), (0.0,), (1.0,))
    )
    assert expanded_weights(model, ":in", "2").abs().max() == 0
    lowest, highest = achievable_gradients(model, ":in", "2")
    assert highest[0, 0, 0, :2].tolist() == [1, 1] and lowest[0, 0, 0, :2].tolist() == [-1, -1]
    pixels = torch.zeros(2, 1, 8, 8)
    pixels[0, :, :, 4:], pixels[1, :, :, :4] = 1, 1
    examples = example_gradients(model, ":in", vs.neurons("2")[0], pixels)
    assert examples.values.tolist() == [1, 1]
    assert [sorted(one.flatten().tolist()) for one in examples.gradients[:, 0, :1]] == [[-1, 1]] * 2


def test_example_gradients_are_the_network_s_own(model):
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with vs.record(model, "3") as acts:
        model(pixels)
    unit = int(acts["3"].amax((2, 3)).amin(0).argmax())
    maps = acts["3"][:, unit]
    values, gradients = example_gradients(model, "1", vs.neurons("3")[unit], pixels)
    step = 1e-3 * torch.randn(8, *gradients.shape[2:], generator=torch.Generator().manual_seed(2))
    field = receptive_field(model, "3", source="1")
    for picture in range(3):
        row, column = divmod(int((maps[picture] == values[picture]).flatten().nonzero()[0]), maps.shape[2])
        top, left, bottom, right = field.box(row, column)

        def moved(seen: torch.Tensor, picture=picture, box=(top, left, bottom, right)) -> torch.Tensor:
            seen = seen.clone()
            seen[picture, :, box[0] : box[2], box[1] : box[3]] += step
            return seen

        with vs.intervene(model, {"1": moved}), vs.record(model, "3") as acts:
            model(pixels)
        change = acts["3"][picture, unit, row, column] - values[picture]
        assert abs(change - (gradients[picture] * step).sum()) < 1e-5


def test_what_does_not_exist_is_said(model):
    with pytest.raises(VesaliusError, match="no channel 17"):
        expanded_weights(model, "1", "3", channels=[17])
    with pytest.raises(VesaliusError, match="expected \\[direction, 17\\]"):
        expanded_weights(model, "1", "3", channels=torch.ones(1, 3))
    with pytest.raises(VesaliusError, match="does not depend"):
        expanded_weights(model, "3", "1")
