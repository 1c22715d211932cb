"""Round numbers along an axis of many evenly spaced ones, so that 360 columns carry nine numbers."""

import math
from itertools import pairwise
from typing import Any

MANY = 24
"""An axis of at most so many cells names each of them, if their numbers are short."""
TURN = (1, 2, 5, 10, 15, 30, 45, 90, 180)
"""Steps of an axis in degrees."""


def ticks(values: Any, label: str) -> list[list[Any]] | None:
    """[place, words] of the round numbers along `values`, in places counted from 0; None where each is named.

    That is where `values` are few and short, are not numbers, or are not evenly spaced. An axis whose label
    speaks of degrees counts in parts of a turn.

    >>> ticks(range(0, 360), "orientation (°)")[:3]
    [[0.0, '0'], [45.0, '45'], [90.0, '90']]
    """
    axis = list(values) if values is not None else []
    if len(axis) < 2 or not all(isinstance(v, int | float) for v in axis):
        return None
    if len(axis) <= MANY and all(float(f"{v:.3g}") == v for v in axis):
        return None
    step = (axis[-1] - axis[0]) / (len(axis) - 1)
    if step == 0 or any(abs(b - a - step) > 1e-3 * abs(step) for a, b in pairwise(axis)):
        return None
    low, high = min(axis), max(axis)
    by = _step(high - low, "°" in label or "degree" in label.lower())
    first, last = math.ceil(low / by - 1e-6), math.floor(high / by + 1e-6)
    round_numbers = [n * by for n in range(first, last + 1)]
    return [[round((n - axis[0]) / step, 3) + 0.0, f"{n:.6g}".replace("-", "−")] for n in round_numbers]


def _step(span: float, degrees: bool) -> float:
    """The smallest round step with at most nine numbers along `span`."""
    if degrees and 8 <= span <= 8 * TURN[-1]:
        return next(step for step in TURN if span / step <= 8)
    power = 10.0 ** math.floor(math.log10(span / 8))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 8 * (1 + 1e-9))
