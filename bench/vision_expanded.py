"""Expanded weights of a whole layer, InceptionV1's 3a → 3b, beside one backward pass for each output channel.

Random weights: nothing is downloaded. The peer linearises the network just as we do, keeps the graph of one picture of
224 pixels, and asks for the gradient of each of the 480 channels at the centre in turn.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

import vesalius as vs
from vesalius.formats.published import NETWORKS
from vesalius.networks.inception_v1 import InceptionV1
from vesalius.weights.expanded import expanded_weights
from vesalius.weights.linearised import linearised

SOURCE, TARGET = "mixed3a", "mixed3b"


@cache
def inception() -> vs.Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vs.Model(
            InceptionV1(), preprocessing=NETWORKS["inceptionv1"].preprocessing, name="inceptionv1"
        )


def all_at_once() -> Callable[[], Tensor]:
    model = inception()
    return lambda: expanded_weights(model, SOURCE, TARGET)


def one_by_one() -> Callable[[], Tensor]:
    model, picture = inception(), torch.full((1, 3, 224, 224), 0.5)

    @torch.enable_grad()
    def run() -> Tensor:
        with linearised(), vs.record(model, [SOURCE, TARGET], stop=True, gradients=True) as acts:
            model(picture)
        maps, seen = acts[TARGET], acts[SOURCE]
        row, column = maps.shape[2] // 2, maps.shape[3] // 2
        rows = []
        for channel in range(maps.shape[1]):
            (gradient,) = torch.autograd.grad(maps[0, channel, row, column], seen, retain_graph=True)
            rows.append(gradient[0, :, row - 2 : row + 3, column - 2 : column + 3].clone())
        return torch.stack(rows)

    return run
