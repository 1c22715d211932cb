"""Charts on paper: heatmap, scatter, lines, bars, histogram, polar."""

import math
import textwrap
from typing import TYPE_CHECKING

from vesalius.figures.paper.ink import SERIES, Data, colour_of, gaps, grid, label, matrix, refer, scale

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

REGIONS = {"copying": SERIES[0], "anti-copying": SERIES[1], "imaginary": SERIES[4]}


def heatmap(data: Data, sheet: "SubFigure") -> None:
    values = data["values"]
    named = {key: data[key] for key in ("x", "y", "x_ticks", "y_ticks")}
    shades, norm = scale([v for panel in values for row in panel for v in row], data["diverging"])
    across = min(len(values), 3)
    panels = sheet.subplots(math.ceil(len(values) / across), across, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(values):
            axes.axis("off")
            continue
        image = matrix(axes, values[place], shades, norm, **named)
        axes.set_xlabel(data["x_label"])
        axes.set_ylabel(data["y_label"])
        if data["panels"]:
            axes.set_title(data["panels"][place], loc="left")
    sheet.colorbar(image, ax=panels, label=textwrap.fill(data["value_label"], 30), shrink=0.9, aspect=18)


def scatter(data: Data, sheet: "SubFigure") -> None:
    axes = sheet.subplots()
    groups = data["groups"] or [""] * len(data["x"])
    names = list(dict.fromkeys(groups))
    for number, name in enumerate(names):
        points = [
            (x, y)
            for x, y, group in zip(data["x"], data["y"], groups, strict=True)
            if group == name and x is not None and y is not None
        ]
        shown = zip(*points, strict=True) if points else ([], [])
        size = 14 if len(groups) < 300 else 4
        axes.scatter(*shown, s=size, color=colour_of(number), alpha=0.8, lw=0, label=name)
    refer(axes, data["references"])
    axes.set_xlabel(data["x_label"])
    axes.set_ylabel(data["y_label"])
    grid(axes)
    if len(names) > 1:
        axes.legend(frameon=False)


def lines(data: Data, sheet: "SubFigure") -> None:
    axes = sheet.subplots()
    marker = "o" if len(data["x"]) <= 40 else ""
    for number, (name, values) in enumerate(data["series"].items()):
        axes.plot(data["x"], gaps(values), color=colour_of(number), lw=1.4, marker=marker, ms=2.5, label=name)
        if name in data["bands"]:
            low, high = map(gaps, data["bands"][name])
            axes.fill_between(data["x"], low, high, color=colour_of(number), alpha=0.2, lw=0)
    if data["log_x"]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    refer(axes, [("x", at, words) for at, words in data["marks"]])
    axes.set_xlabel(data["x_label"])
    axes.set_ylabel(data["y_label"])
    grid(axes)
    if len(data["series"]) > 1:
        axes.legend(frameon=False)


def bars(data: Data, sheet: "SubFigure") -> None:
    axes = sheet.subplots()
    lying = long(data["labels"])
    each = 0.8 / len(data["series"])
    for number, (name, values) in enumerate(data["series"].items()):
        at = [place - 0.4 + each * (number + 0.5) for place in range(len(values))]
        heights = gaps(values)
        (axes.barh if lying else axes.bar)(at, heights, each * 0.94, color=colour_of(number), label=name)
        for place, (low, high) in zip(at, data["intervals"].get(name, []), strict=False):
            if low is not None and high is not None:
                ends = ([low, high], [place, place]) if lying else ([place, place], [low, high])
                axes.plot(*ends, color="#222", lw=1)
    words = [label(word) for word in data["labels"]]
    if lying:
        axes.set_yticks(range(len(words)), words)
        axes.invert_yaxis()
        axes.set_xlabel(data["y_label"])
        axes.axvline(0, color="#222", lw=0.8)
    else:
        axes.set_xticks(range(len(words)), words)
        axes.set_ylabel(data["y_label"])
        axes.axhline(0, color="#222", lw=0.8)
    grid(axes, "x" if lying else "y")
    if len(data["series"]) > 1:
        axes.legend(frameon=False)


def histogram(data: Data, sheet: "SubFigure") -> None:
    axes = sheet.subplots()
    many = len(data["groups"]) > 1
    for number, (name, shares) in enumerate(data["groups"].items()):
        named = f"{name} (n = {data['sizes'][name]:,})"
        shade = {"color": colour_of(number), "alpha": 0.5 if many else 0.9}
        axes.stairs(shares, data["edges"], fill=True, label=named, **shade)
    refer(axes, data["references"])
    axes.set_xlabel(data["x_label"])
    axes.set_ylabel("share of values per bin")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    grid(axes, "y")
    axes.legend(frameon=False)


def polar(data: Data, sheet: "SubFigure") -> None:
    across = min(len(data["panels"]), 4)
    rows = math.ceil(len(data["panels"]) / across)
    panels = sheet.subplots(rows, across, squeeze=False, subplot_kw={"projection": "polar"})
    every = [[complex(*pair) for pair in values if None not in pair] for values in data["panels"].values()]
    low, high = _decades([abs(value) for values in every for value in values])
    for axes in list(panels.flat)[len(every) :]:
        axes.axis("off")
    for axes, name, values in zip(panels.flat, data["panels"], every, strict=False):
        for region, colour in REGIONS.items():
            chosen = [value for value in values if _region(value) == region]
            angles = [math.atan2(value.imag, value.real) for value in chosen]
            radii = [_radius(abs(value), low) for value in chosen]
            axes.scatter(angles, radii, s=7, color=colour, alpha=0.85, lw=0, label=region)
        for centre, colour in ((0.0, SERIES[0]), (math.pi, SERIES[1])):
            axes.bar(centre, high - low + 0.5, width=math.pi / 2, bottom=0, color=colour, alpha=0.09)
        axes.set_rlim(0, high - low + 0.5)
        logs = range(low, high + 1)
        axes.set_rticks([log - low + 0.5 for log in logs], [f"{10.0**log:g}" for log in logs])
        axes.set_rlabel_position(-90)
        axes.set_thetagrids([0, 90, 180, 270], ["0°", "90°", "180°", "270°"])
        axes.tick_params(labelsize=6)
        axes.grid(color="#ddd", lw=0.6)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("angle arg λ, radius |λ| (log)", fontsize=6.5)
    panels.flat[0].legend(frameon=False, fontsize=6, loc="upper left", bbox_to_anchor=(-0.25, 1.2))


def _decades(sizes: list[float]) -> tuple[int, int]:
    known = sorted(size for size in sizes if size > 0)
    if not known:
        return -1, 1
    high = math.ceil(math.log10(known[-1]) + 1e-9)
    low = math.floor(math.log10(known[int(len(known) * 0.02)]))
    return max(min(low, high - 1), high - 5), high


def _radius(size: float, low: int) -> float:
    return max(math.log10(size), low - 0.4) - low + 0.5 if size > 0 else 0.0


def _region(value: complex) -> str:
    angle = abs(math.atan2(value.imag, value.real))
    return "copying" if angle < math.pi / 4 else "anti-copying" if angle > 3 * math.pi / 4 else "imaginary"


def long(labels: list[str]) -> bool:
    return max(map(len, labels), default=0) * len(labels) > 64
