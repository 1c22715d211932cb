"""Expanded weights where nothing was learnt: the same units of untrained twins, for what is read from weights."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries import Feature
from vesalius.model import Model
from vesalius.weights.expanded import expanded_weights

UNITS, TWINS = 200, 6
"""So many units in all, if so many twins have them."""
ROOM = 2**26
"""Numbers held of one twin."""


class Untrained(NamedTuple):
    """A twin, some channels of its target, and their weights."""

    model: Model
    channels: list[int]
    weights: Float[Tensor, "target source row column"]


def untrained_weights(model: Model, source: str, feature: Feature, *, seed: int) -> Iterator[Untrained]:
    """Weights on `source` of units that see as many positions as the feature's own, from one twin after the other.

    Where a layer has branches those are the units of its branch; of a direction, which has none, they are all.
    """
    width = model.map_shape(feature.site)[0]
    own = 0 if feature.index is None else feature.index
    chosen, found, twins = [own], 0, 0
    while found < UNITS and twins < TWINS:
        twin = model.random_twin(seed + 1 + twins)
        if twins == 0:
            size = expanded_weights(twin, source, feature.site, channels=[own]).numel()
            most = max(1, min(256, ROOM // size))
            chosen = sorted({own, *range(0, width, math.ceil(width / most))})
        weights = expanded_weights(twin, source, feature.site, channels=chosen)
        if twins == 0 and feature.index is not None:
            seen = weights.abs().amax(1).gt(0).sum((1, 2))
            alike = seen == seen[chosen.index(own)]
            chosen, weights = [unit for unit, same in zip(chosen, alike.tolist()) if same], weights[alike]
        twins, found = twins + 1, found + len(chosen)
        yield Untrained(twin, chosen, weights)
