"""Figures of boards: stones, or how likely they are, over squares coloured by a number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vesalius.errors import VesaliusError
from vesalius.figures.encoding import matrix, shape
from vesalius.figures.figure import Figure

FILES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def board(
    boards: Iterable[Mapping[str, Any]],
    *,
    title: str,
    stones: Sequence[str] = ("black", "white"),
    value_label: str = "",
    diverging: bool = False,
    columns: int | None = None,
    caption: str = "",
) -> Figure:
    """Boards side by side, their squares named A1, B1, … from the upper left.

    A board is {"label", "dark", "light", "values", "legal", "marked"}, all but the label may be left out. `dark` and
    `light` [row, column] are shares 0..1 of two kinds of stone, which `stones` names: 1 is a stone, less is drawn as
    that part of one. `values` [row, column] colour the squares, on one scale for all boards, and stand in them;
    `legal` [row, column] rings the squares where one may play; `marked` frames some by name. `columns` boards stand
    in a row (as many as fit if left out).
    """
    drawn = [_board(given) for given in boards]
    if not drawn:
        raise VesaliusError("board was given no board; expected at least one")
    if len(stones) != 2:
        raise VesaliusError(f"board was given {len(stones)} names of stones; expected 2")
    if columns is not None and columns < 1:
        raise VesaliusError(f"board was given {columns} columns; expected at least 1")
    data = {
        "boards": drawn,
        "stones": [str(name) for name in stones],
        "value_label": value_label,
        "diverging": diverging,
        "columns": columns,
    }
    return Figure("board", data, title, caption)


def _board(given: Mapping[str, Any]) -> dict[str, Any]:
    """Its layers, all of one square shape, and its marks as [row, column]."""
    layers = {
        name: matrix(given[name], dimensions=(2,), name=f"{name} of board '{given['label']}'")
        for name in ("dark", "light", "values", "legal")
        if given.get(name) is not None
    }
    shapes = {shape(layer) for layer in layers.values()}
    if len(shapes) != 1 or (side := next(iter(shapes)))[0] != side[1]:
        found = ", ".join(f"{name} {list(shape(layer))}" for name, layer in layers.items()) or "nothing"
        raise VesaliusError(
            f"board '{given['label']}' has {found}; expected squares [row, column] of one size"
        )
    size = side[0]
    return {
        "label": str(given["label"]),
        **{name: layers.get(name) for name in ("dark", "light", "values")},
        "legal": [[bool(square) for square in row] for row in layers["legal"]] if "legal" in layers else None,
        "marked": [_place(str(name), size) for name in given.get("marked", ())],
    }


def _place(name: str, size: int) -> list[int]:
    """Row and column of a square by name."""
    column, row = FILES.find(name[:1].upper()), name[1:]
    if not (0 <= column < size and row.isdecimal() and 1 <= int(row) <= size):
        raise VesaliusError(
            f"board was asked to mark '{name}'; expected a square from A1 to {FILES[size - 1]}{size}"
        )
    return [int(row) - 1, column]
