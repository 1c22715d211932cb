"""Numbers as small JSON: what a figure holds after tensors, arrays and lists have been read.

Real numbers keep five significant digits (three where there are more than 20,000 of them, finer than any
colour scale shows), complex numbers become [re, im], and nan and infinities become null.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vesalius.errors import VesaliusError

MANY = 20_000


def numbers(values: Any) -> Any:
    """`values` (a tensor, an array, a number, or nested sequences of these) as nested lists of short numbers.

    >>> numbers([[1.23456789, float("nan")], [2, 1 + 2j]])
    [[1.2346, None], [2, [1.0, 2.0]]]
    """
    plain = _listed(values)
    digits = 5 if _count(plain) <= MANY else 3
    return _rounded(plain, digits)


def words(values: Iterable[Any] | None) -> list[str] | None:
    """`values` as strings, numbers among them shortened; None stays None."""
    return None if values is None else [v if isinstance(v, str) else _word(numbers(v)) for v in values]


def matrix(values: Any, *, dimensions: tuple[int, ...], name: str) -> Any:
    """`numbers`, after checking that `values` is rectangular with one of these numbers of dimensions."""
    plain = numbers(values)
    found = shape(plain)
    if len(found) not in dimensions:
        expected = " or ".join(str(d) for d in dimensions)
        raise VesaliusError(f"{name} has shape {list(found)}; expected {expected} dimensions")
    return plain


def shape(plain: Any) -> tuple[int, ...]:
    """The shape of nested lists of real numbers; raises where they are ragged."""
    if not isinstance(plain, list):
        return ()
    inner = {shape(item) for item in plain}
    if len(inner) > 1:
        raise VesaliusError(f"values have rows of different shapes {sorted(inner)}; expected a rectangle")
    return (len(plain), *(inner.pop() if inner else ()))


def same_length(named: Mapping[str, Any]) -> None:
    """Raise unless all that are given (not None) have one length."""
    lengths = {name: len(values) for name, values in named.items() if values is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise VesaliusError(f"lengths differ: {found}; expected one length")


def _word(number: Any) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _listed(values: Any) -> Any:
    if isinstance(values, str | int | float | complex) or values is None:
        return values
    if isinstance(values, list | tuple | range):
        return [_listed(item) for item in values]
    return _listed(values.tolist())  # a tensor, an array, or a scalar of either


def _count(plain: Any) -> int:
    return sum(_count(item) for item in plain) if isinstance(plain, list) else 1


def _rounded(plain: Any, digits: int) -> Any:
    if isinstance(plain, list):
        return [_rounded(item, digits) for item in plain]
    if isinstance(plain, complex):
        return [_rounded(plain.real, digits), _rounded(plain.imag, digits)]
    if isinstance(plain, float):
        return float(f"{plain:.{digits - 1}e}") if math.isfinite(plain) else None
    return plain
