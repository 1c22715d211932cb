"""Receptive fields against arithmetic and against what really moves when a pixel does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.preprocessing import Preprocessing
from vesalius.weights.receptive_field import ReceptiveField, receptive_field


def model_of(*layers: nn.Module, size: int = 64) -> vs.Model:
    return vs.Model(
        nn.Sequential(*layers),
        preprocessing=Preprocessing((size, size), (0.0,) * 3, (1.0,) * 3),
        name="layers",
    )


class Same(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: what is odd goes to the bottom and the right."""

    def forward(self, x):
        side, kernel, stride = x.shape[-1], self.kernel_size[0], self.stride[0]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Branches(nn.Module):
    """1×1 and 5×5 side by side, batch norm, a residual sum in place, ReLU6, a depthwise stride."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 5, padding=2)
        self.norm, self.deep = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)

    def forward(self, x):
        x = self.norm(torch.cat([self.narrow(x), self.wide(x)], 1))
        x += F.avg_pool2d(x, 3, 1, 1)
        return F.relu6(self.deep(x))


def test_sizes_strides_and_offsets_add_up():
    model = model_of(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2),
    )  # fmt: skip
    fields = {site: receptive_field(model, site) for site in ("0", "3", "4", "6")}
    assert fields == {
        "0": ReceptiveField(7, 2, 0.5),
        "3": ReceptiveField(11, 4, 0.5),
        "4": ReceptiveField(19, 4, 0.5),
        "6": ReceptiveField(27, 8, 4.5),
    }
    assert receptive_field(model, "6", source="3") == ReceptiveField(5, 2, 1.5)


def test_same_padding_with_even_strides_starts_where_it_does():
    model = model_of(Same(3, 8, 7, 2), nn.ReLU(), Same(8, 8, 3, 2))
    assert receptive_field(model, "2").box(0, 0) == (-2, -2, 9, 9)


@pytest.mark.parametrize("seed", range(3))
def test_only_pixels_inside_move_the_unit_and_all_edges_do(seed):
    """Against the network itself, with random weights: a picture that differs only outside the box changes nothing."""
    torch.manual_seed(seed)
    module = nn.Sequential(Branches(), nn.Conv2d(8, 4, 3), nn.ReLU()).eval()
    model = vs.Model(module, preprocessing=Preprocessing((40, 40), (0.0,) * 3, (1.0,) * 3))
    top, left, bottom, right = receptive_field(model, "1").box(6, 8)
    pixels = torch.rand(1, 3, 40, 40)

    def moved(rows, columns) -> bool:
        changed = pixels.clone()
        changed[:, :, rows, columns] += 1
        with vs.record(model, "1") as before:
            model(pixels)
        with vs.record(model, "1") as after:
            model(changed)
        return not torch.equal(before["1"][0, :, 6, 8], after["1"][0, :, 6, 8])

    inside, outside = torch.zeros(40, dtype=torch.bool), torch.ones(40, dtype=torch.bool)
    outside[top:bottom] = False
    assert not moved(outside, slice(None))
    for row in (top, bottom - 1):
        edge = inside.clone()
        edge[row] = True
        assert moved(edge, slice(left, right))


def test_weights_that_cancel_hide_nothing():
    conv = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    nn.init.zeros_(conv.weight)
    assert receptive_field(model_of(conv, nn.ReLU()), "0").size == 3


def test_a_field_larger_than_the_picture_is_still_found():
    layers = [layer for _ in range(30) for layer in (nn.Conv2d(3, 3, 5, padding=2), nn.ReLU())]
    assert receptive_field(model_of(*layers), "58").size == 1 + 30 * 4
    wide = nn.Conv2d(3, 3, 7, 16, 3), nn.Conv2d(3, 3, 61, padding=30)
    assert receptive_field(model_of(*wide), "1") == ReceptiveField(7 + 60 * 16, 16, 0.5)


def test_gaps_of_a_dilated_window_count():
    assert receptive_field(model_of(nn.Conv2d(3, 3, 3, padding=40, dilation=40)), "0").size == 81


def test_a_site_without_a_field_says_so():
    model = model_of(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(VesaliusError, match="sees all"):
        receptive_field(model, "1")
    with pytest.raises(VesaliusError, match="no maps"):
        receptive_field(model, "3")
    with pytest.raises(VesaliusError, match="does not depend"):
        receptive_field(model, "0", source="1")
