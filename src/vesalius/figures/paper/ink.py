"""What the static figures share: colours and their scales, words, reference lines, grids."""

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import SubFigure

Data = dict[str, Any]
PALETTE = json.loads((Path(__file__).parents[1] / "palette.json").read_text(encoding="utf-8"))
SERIES = PALETTE["series"]


def colour_of(number: int) -> str:
    return SERIES[number % len(SERIES)]


def cyclic(degrees: float) -> tuple[float, ...]:
    """The colour that goes round with an angle, as in the interactive figures."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = PALETTE["cyclic"]
    return LinearSegmentedColormap.from_list("turn", [*stops, stops[0]], N=360)(degrees % 360 / 360)


def scale(values: list[float | None], diverging: bool) -> tuple["Colormap", "Normalize"]:
    """The colours of the interactive figures, with their limits."""
    from matplotlib.colors import Normalize

    known = [value for value in values if value is not None] or [0.0, 1.0]
    low, high = min(known), max(known)
    if diverging:
        most = max(abs(low), abs(high)) or 1.0
        return _shades(True), Normalize(-most, most)
    if low >= 0 and (low <= high / 2 or low == high):
        low = 0.0
    return _shades(False), Normalize(low, high if high > low else low + 1)


@cache
def _shades(diverging: bool) -> "Colormap":
    from matplotlib.colors import LinearSegmentedColormap

    stops = [*reversed(PALETTE["negative"][1:]), *PALETTE["positive"]] if diverging else PALETTE["positive"]
    return LinearSegmentedColormap.from_list("vesalius", stops)


def ink_on(shades: "Colormap", norm: "Normalize", value: float) -> str:
    red, green, blue, _ = shades(norm(value))
    return "#111" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.19 else "#fff"


def label(text: str, *, everywhere: bool = False) -> str:
    """Words with the whitespace that a reader would miss made visible: at the ends, or everywhere."""
    shown = text.replace("\n", "↵").replace("\t", "⇥").replace("\r", "⏎")
    shown = "".join("·" if ord(letter) < 32 else letter for letter in shown)
    if everywhere:
        return shown.replace(" ", "␣")
    core = shown.strip(" ")
    before, after = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    return "␣" * before + core + "␣" * after if core else "␣" * len(shown)


def printable(value: Any) -> Any:
    """The same JSON with every character that the font lacks written as its code, \\u4e2d; pictures as they are."""
    if isinstance(value, str):
        return "".join(c if c in "\n\r\t" or ord(c) in _font() else f"\\u{ord(c):04x}" for c in value)
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(k): v if k in ("src", "bytes") else printable(v) for k, v in value.items()}
    return value


@cache
def _font() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans Mono")).get_charmap())


def gaps(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def matrix(
    axes: "Axes",
    values: Any,
    shades: "Colormap",
    norm: "Normalize",
    *,
    x: Any,
    y: Any,
    x_ticks: Any = None,
    y_ticks: Any = None,
    size: float = 7,
) -> Any:
    cells = [gaps(row) for row in values]
    image = axes.imshow(cells, cmap=shades, norm=norm, aspect="auto", interpolation="nearest")
    sides = ((x, x_ticks, len(values[0]), axes.set_xticks), (y, y_ticks, len(values), axes.set_yticks))
    for words, ticks, count, place in sides:
        if ticks:
            place([at for at, _ in ticks], [word for _, word in ticks], fontsize=size)
            continue
        counted = words is not None and all(re.fullmatch(r"[-−]?[\d.]+°?", word) for word in words)
        step = max(1, math.ceil(count / (12 if counted else 32)))
        at = list(range(0, count, step))
        shown = [label(words[i])[:18] if words else str(i) for i in at]
        turned = (
            90
            if place == axes.set_xticks and words and not counted and max(map(len, shown)) * count > 40
            else 0
        )
        place(at, shown, rotation=turned, fontsize=size)
    return image


def refer(axes: "Axes", references: Any) -> None:
    dashed = {"color": "#777", "ls": "--", "lw": 0.8, "zorder": 0}
    small = {"fontsize": 6.5, "color": "#555"}
    known = [tuple(reference) for reference in references if reference[1] is not None]
    taken = -math.inf
    for kind, at, words in sorted(known):
        if kind == "x":
            axes.axvline(at, **dashed)
            middle = (axes.transScale + axes.transLimits).transform((at, axes.get_ylim()[0]))[0]
            half = 0.006 * len(words)
            if middle - half < taken:  # a word that would cover the one before it stands higher
                words = f"{words}\n"
            else:
                taken = middle + half
            axes.text(at, 1.0, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom", **small)
        elif kind == "y":
            axes.axhline(at, **dashed)
            axes.text(1.0, at, words, transform=axes.get_yaxis_transform(), ha="right", va="bottom", **small)
        else:
            axes.axline((0, at), slope=1, **dashed)
            axes.plot([], [], color="#777", ls="--", lw=0.8, label=words)


def grid(axes: "Axes", along: Literal["both", "x", "y"] = "both") -> None:
    axes.grid(axis=along, color="#e6e6e3", lw=0.6)
    axes.set_axisbelow(True)


def colour_bar(sheet: "SubFigure", axes: "Axes", shades: "Colormap", norm: "Normalize", words: str) -> None:
    from matplotlib.cm import ScalarMappable

    shown = ScalarMappable(norm, shades)
    bar = sheet.colorbar(shown, ax=axes, orientation="horizontal", shrink=0.3, aspect=30, pad=0.02)
    bar.set_label(words, fontsize=6.5)
    bar.ax.tick_params(labelsize=6)
