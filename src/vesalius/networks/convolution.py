"""TensorFlow's convolutions, poolings and local response norm, exactly, in torch modules.

SAME padding follows TensorFlow's documentation: ⌈size / stride⌉ outputs, and of the rows and columns of zeros
that these need, the odd one goes to the bottom and the right. Local response normalisation (Krizhevsky et al.
2012) divides alpha by the size of the window in torch and Caffe, and not in TensorFlow.
"""

from jaxtyping import Float
from torch import Tensor, cat, nn, tensor
from torch.nn import functional

Maps = Float[Tensor, "_batch _channel _row _column"]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Rows of padding before and after an axis of `size` under the rule SAME.

    >>> same_padding(224, kernel=7, stride=2), same_padding(112, kernel=3, stride=2), same_padding(7, 5, 1)
    ((2, 3), (0, 1), (2, 2))
    """
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, whatever the size of its input."""

    def forward(self, x: Maps) -> Maps:
        sides = zip(x.shape[2:], self.kernel_size, self.stride)
        (top, bottom), (left, right) = (same_padding(*side) for side in sides)
        if top != bottom or left != right:
            x = functional.pad(x, (left, right, top, bottom))
            top = left = 0
        return functional.conv2d(x, self.weight, self.bias, self.stride, (top, left), 1, self.groups)


class SameMaxPool2d(nn.Module):
    """The maximum over windows with SAME padding, which is never the maximum."""

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Maps) -> Maps:
        before = tuple(same_padding(size, self.kernel_size, self.stride)[0] for size in x.shape[2:])
        return functional.max_pool2d(x, self.kernel_size, self.stride, before, ceil_mode=True)


class SameAvgPool2d(nn.AvgPool2d):
    """The mean over windows of odd size and stride 1; what is padded does not count."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__(kernel_size, 1, kernel_size // 2, count_include_pad=False)


class Concatenation(nn.Module):
    """Branches side by side, in order: `parts` are their addresses in the network."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, *branches: Maps) -> Maps:
        return cat(branches, 1)

    def extra_repr(self) -> str:
        return " | ".join(self.parts)


class LocalResponseNorm(nn.Module):
    """`x / (bias + alpha · Σ x²)^beta`, the sum over the channels within `depth_radius`, as TensorFlow has it.

    The four numbers are buffers, since a published graph holds them beside its weights.
    """

    depth_radius: Tensor
    bias: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, *, depth_radius: int, bias: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.register_buffer("depth_radius", tensor(depth_radius))
        self.register_buffer("bias", tensor(bias))
        self.register_buffer("alpha", tensor(alpha))
        self.register_buffer("beta", tensor(beta))

    def forward(self, x: Maps) -> Maps:
        size = 2 * int(self.depth_radius) + 1
        alpha, beta, bias = float(self.alpha), float(self.beta), float(self.bias)
        return functional.local_response_norm(x, size, alpha=alpha * size, beta=beta, k=bias)
