"""The linear network: what becomes of each nonlinearity, and that its gradient is the weights multiplied out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vesalius.errors import VesaliusError
from vesalius.weights.linearised import linearised

RECTIFIERS = [
    *(
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.ReLU6(inplace=True),
        nn.LeakyReLU(),
        nn.PReLU(),
        nn.ELU(),
    ),
    *(nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Mish(), nn.Softplus(), nn.Tanh(), nn.Hardtanh(), nn.SELU()),
    *(torch.relu, torch.relu_, torch.Tensor.relu, lambda x: x.clamp(min=0), lambda x: torch.clamp(x, 0, 6)),
]


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rectifier", RECTIFIERS)
def test_rectifiers_are_left_out(rectifier, maps):
    with linearised():
        assert torch.equal(rectifier(maps.clone()), maps)


@pytest.mark.parametrize(
    "pool", [dict(kernel_size=2), dict(kernel_size=3, stride=2, padding=1, ceil_mode=True)]
)
def test_a_max_pool_is_the_average_of_its_window(pool, maps):
    with linearised():
        pooled = nn.MaxPool2d(**pool)(maps)
    assert torch.equal(pooled, F.avg_pool2d(maps, count_include_pad=False, **pool))


def test_padding_with_the_lowest_number_is_padding_with_nothing(maps):
    with linearised():
        assert F.pad(maps, (0, 1, 0, 1), value=float("-inf")).isfinite().all()


def test_response_normalisation_is_its_slope_at_zero(maps):
    norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.5, k=2.0)
    with linearised():
        linear = norm(maps)
    torch.testing.assert_close(linear, norm(maps * 1e-3) * 1e3)


@pytest.mark.parametrize(
    "gated",
    [
        lambda x: x * torch.sigmoid(x),
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda x: x / (2 + x.pow(2).sum(1, keepdim=True)).pow(0.5),
        lambda x: x / (2 + (x**2).sum(1, keepdim=True)).sqrt(),
        lambda x: x * F.softmax(x, 1),
    ],
)
def test_gates_and_scales_are_held(gated, maps):
    maps.requires_grad_()
    with linearised():
        value = gated(maps)
    (slope,) = torch.autograd.grad(value.sum(), maps)
    torch.testing.assert_close(slope * maps, gated(maps))


def test_the_network_is_affine_within_and_itself_after(maps):
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(8, 3, 1)
    ).eval()
    before, other = net(maps), maps.flip(0)
    with linearised():
        straight = net(maps) + net(other) - 2 * net((maps + other) / 2)
    assert straight.abs().max() < 1e-5
    assert torch.equal(net(maps), before)


def test_what_no_linear_operation_stands_for_is_refused(maps):
    with linearised(), pytest.raises(VesaliusError, match="dilated"):
        nn.MaxPool2d(2, dilation=2)(maps)
