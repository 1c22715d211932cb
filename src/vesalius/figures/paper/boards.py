"""Boards on paper."""

import math
from typing import TYPE_CHECKING, Any

from vesalius.figures.paper.ink import Data, colour_bar, ink_on, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

RADIUS = 0.39
DARK, LIGHT, EDGE, MARK = "#22242a", "#ffffff", "#55585f", "#c2480a"


def board(data: Data, sheet: "SubFigure") -> None:
    across = _across(data)
    panels: Any = sheet.subplots(math.ceil(len(data["boards"]) / across), across, squeeze=False)
    every = [v for one in data["boards"] if one["values"] for row in one["values"] for v in row]
    shades, norm = scale(every, data["diverging"])
    for axes in panels.flat:
        axes.axis("off")
    for axes, one in zip(panels.flat, data["boards"]):
        _drawn(axes, one, shades, norm)
    if every:
        colour_bar(sheet, panels, shades, norm, data["value_label"])


def board_size(data: Data) -> tuple[float, float]:
    across = _across(data)
    rows = math.ceil(len(data["boards"]) / across)
    valued = any(one["values"] for one in data["boards"])
    return 2.35 * across + 0.2, 2.5 * rows + (0.6 if valued else 0.1)


def _across(data: Data) -> int:
    return min(data["columns"] or 4, len(data["boards"]))


def _drawn(axes: "Axes", one: Data, shades, norm) -> None:
    from matplotlib.patches import Circle, Rectangle, Wedge

    size = len(next(one[name] for name in ("dark", "light", "values", "legal") if one[name]))
    axes.set_xlim(-0.62, size)
    axes.set_ylim(size + 0.02, -0.55)
    axes.set_aspect("equal")
    axes.set_title(one["label"], fontsize=7.5, loc="left", pad=3, wrap=True)
    for at in range(size):
        axes.text(
            at + 0.5,
            -0.22,
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[at],
            ha="center",
            va="center",
            fontsize=5.5,
            color="#777",
        )
        axes.text(-0.3, at + 0.5, str(at + 1), ha="center", va="center", fontsize=5.5, color="#777")
    for row in range(size):
        for column in range(size):
            value = one["values"][row][column] if one["values"] else None
            ground = "#f6f6f4" if value is None else shades(norm(value))
            axes.add_patch(Rectangle((column, row), 1, 1, fc=ground, ec="#c9c9c4", lw=0.5))
            middle = (column + 0.5, row + 0.5)
            shares = [one[name][row][column] or 0.0 if one[name] else 0.0 for name in ("dark", "light")]
            turn = -90.0  # from the top, clockwise, since rows go down
            for share, fill in zip(shares, (DARK, LIGHT)):
                if share > 0.02:
                    end = turn + 360 * min(share, 1.0)
                    whole = share > 0.985
                    patch = (
                        Circle(middle, RADIUS, fc=fill, ec=EDGE, lw=0.6)
                        if whole
                        else Wedge(middle, RADIUS, turn, end, fc=fill, ec=EDGE, lw=0.5)
                    )
                    axes.add_patch(patch)
                    turn = end
            if one["legal"] and one["legal"][row][column]:
                axes.add_patch(
                    Circle(
                        middle,
                        0.43,
                        fc="none",
                        ec=ink_on(shades, norm, value or 0.0),
                        lw=0.6,
                        alpha=0.8,
                        ls=(0, (2, 1.6)),
                    )
                )
            if value is not None and sum(shares) < 0.5 and written(value):
                axes.text(
                    *middle,
                    written(value),
                    ha="center",
                    va="center",
                    fontsize=5,
                    color=ink_on(shades, norm, value),
                )
    for row, column in one["marked"]:
        axes.add_patch(
            Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, fc="none", ec=MARK, lw=1.4, zorder=5)
        )


def written(value: float) -> str:
    """Two digits, nothing for what they round to 0."""
    text = f"{value:.2f}" if abs(value) < 9.95 else f"{value:.0f}"
    return "" if float(text) == 0 else text.replace("0.", ".", 1).replace("-", "−")
