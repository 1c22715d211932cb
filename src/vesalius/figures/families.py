"""Figures of families: the units that answer alike, each to its own orientation."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from vesalius.errors import VesaliusError
from vesalius.figures.encoding import numbers, same_length
from vesalius.figures.figure import Figure


def tuning(
    angles: Any,
    series: Mapping[str, Any],
    *,
    title: str,
    value_label: str = "response",
    caption: str = "",
    radial: bool = True,
) -> Figure:
    """The tuning curves of a family: a response per unit at each of `angles`, in degrees, rising.

    Radial: all units on one circle, the angle counter-clockwise from the right, the radius the response (below
    0 is the centre). Otherwise the same curves unrolled over degrees. Angles that go round, say 0 to 359, close
    the circle. Colours follow the angle of each unit's highest response, where there are more than eight.
    """
    degrees = numbers(angles)
    same_length({"angles": degrees} | {f"series {name}": values for name, values in series.items()})
    if not series or len(degrees) < 2:
        raise VesaliusError(
            f"tuning was given {len(series)} units and {len(degrees)} angles; expected at least one unit, two angles"
        )
    if None in degrees or any(after <= before for before, after in pairwise(degrees)):
        raise VesaliusError("tuning was given angles that do not rise; expected each above the one before")
    if degrees[-1] - degrees[0] > 360:
        raise VesaliusError(
            f"tuning was given angles over {degrees[-1] - degrees[0]:g}°; expected at most 360°"
        )
    data = {
        "angles": degrees,
        "series": {str(name): numbers(values) for name, values in series.items()},
        "value_label": value_label,
        "radial": radial,
    }
    return Figure("tuning", data, title, caption)
