"""Plain networks: convolutions one after the other, rectified, no shortcuts, no norms; the mean over positions is read.

The word is that of He et al. 2015 (arXiv 1512.03385). Maps are `conv1` to `convN`, before the rectifier
`conv1_pre_relu`; a maximum over 2×2 follows those in `pooled`. Pictures of any size are read.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import Maps


class PlainNetwork(nn.ModuleDict):
    """`widths` channels behind kernels of `kernels` × `kernels` pixels, and a linear reading of their mean.

    >>> PlainNetwork(widths=[4, 8], kernels=[5, 3], pooled=[1], classes=3)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, *, widths: list[int], kernels: list[int], pooled: list[int], classes: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.shape = {"widths": widths, "kernels": kernels, "pooled": pooled, "classes": classes}
        self.layers = tuple(f"conv{number}" for number in range(1, len(widths) + 1))
        for name, inputs, width, kernel in zip(self.layers, [3, *widths], widths, kernels):
            self[f"{name}_pre_relu"] = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
            self[name] = nn.ReLU()
        for number in pooled:
            self[f"pool{number}"] = nn.MaxPool2d(2)
        self["classifier"] = nn.Linear(widths[-1], classes)
        generator = torch.Generator().manual_seed(seed)
        for part in self.children():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
                assert part.bias is not None
                nn.init.zeros_(part.bias)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = pixels
        for number, name in enumerate(self.layers, 1):
            x = self[name](self[f"{name}_pre_relu"](x))
            if f"pool{number}" in self:
                x = self[f"pool{number}"](x)
        return self["classifier"](x.mean((2, 3)))
