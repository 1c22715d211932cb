"""Examples of every unit of a layer in one pass, against the pass alone.

InceptionV1 untrained, up to mixed3b: 480 units. The network is stopped at the layer on both sides. `PICTURES` are
fewer than the 5,000 that are asked for: the reducers cost most at the beginning, while every picture changes them, so
that a longer stream is relatively cheaper.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import vesalius as vs
from vesalius.access import record
from vesalius.examples import by_unit
from vesalius.formats.published import NETWORKS
from vesalius.networks.inception_v1 import InceptionV1
from vesalius.store.reducers import Spectrum, TopExamples

SITE, UNITS, PICTURES, BATCH = "mixed3b_pre_relu", 480, 640, 16


def stream() -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """The layer's values, batch by batch; sixteen smooth pictures, each time at another brightness."""
    generator = torch.Generator().manual_seed(0)
    model = vs.Model(InceptionV1(), preprocessing=NETWORKS["inceptionv1"].preprocessing, name="inceptionv1")
    model = model.random_twin(0)
    coarse = torch.rand(BATCH, 3, 28, 28, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bilinear")

    def run() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, PICTURES, BATCH):
            with torch.no_grad(), record(model, SITE, stop=True, gradients=True) as acts:
                model(pixels.roll(first * 7 // BATCH, 3) * (0.5 + 0.5 * first / PICTURES))
            yield torch.arange(first, first + BATCH), acts[SITE]

    return run


def top_and_spectrum() -> Callable[[], Tensor]:
    values = stream()

    def run() -> Tensor:
        reducers = TopExamples(UNITS, 16), Spectrum(UNITS, bins=32, size=8)
        for numbers, acts in values():
            for reducer in reducers:
                reducer.add(by_unit(acts), numbers)
        return reducers[0].values

    return run


def forward_alone() -> Callable[[], Tensor]:
    values = stream()

    def run() -> Tensor:
        for _, acts in values():
            kept = acts
        return kept

    return run
