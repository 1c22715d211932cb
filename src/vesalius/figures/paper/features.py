"""Features on paper: circuits with pictures and signed maps, and the tuning curves of families."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.figures.paper.ink import Data, colour_of, cyclic, gaps, grid, ink_on, label, scale
from vesalius.figures.paper.pictures import PAGE, board, show, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Place = tuple[float, float, float]
"""Centre x and y, and the side of the square; inches."""

NAME = 0.3
KEY = 0.42
"""Inches for a node's name, and for the key above the circuit."""


def circuit(data: Data, sheet: "SubFigure") -> None:
    nodes, edges, width, height = _layout(data)
    axes = board(sheet, width, height)
    signs, most = scale([-1.0, 1.0], True), _strongest(data)
    for edge, (x, y, side) in edges:
        strong, top = most[edge["target"]]
        colour = signs[0](signs[1](math.copysign(0.72, edge["weight"]))) if edge["weight"] else "#999"
        dash = (0, (3, 1.6)) if edge["weight"] < 0 else "-"
        ends = _path(edge, edges, nodes, (x, y, side))
        axes.plot(*ends, color=colour, ls=dash, lw=0.5 + 3 * abs(edge["weight"]) / strong, zorder=1)
        if edge["map"]:
            _kernel(axes, edge["map"], top, (x, y, side))
        told = f"{edge['weight']:+.3g}".replace("-", "−") if edge["label"] is None else label(edge["label"])
        down = y + side / 2 + 0.03 if edge["map"] else y - 0.16
        axes.text(x, down, told, ha="center", va="top", fontsize=6, zorder=4)
    for node in data["nodes"]:
        _node(axes, node, nodes[node["id"]])
    for column in dict.fromkeys(node["column"] for node in data["nodes"]):
        if isinstance(column, str):
            first = next(nodes[node["id"]] for node in data["nodes"] if node["column"] == column)
            axes.text(first[0], KEY, label(column), ha="center", fontsize=7, color="#555")
    if edges:
        _key(axes, signs)
    for text in axes.texts:
        text.set_in_layout(False)


def circuit_size(data: Data) -> tuple[float, float]:
    _, _, width, height = _layout(data)
    return width + 0.2, height


def tuning(data: Data, sheet: "SubFigure") -> None:
    axes = sheet.subplots(subplot_kw={"projection": "polar"}) if data["radial"] else sheet.subplots()
    angles, series = data["angles"], data["series"]
    step = angles[1] - angles[0]
    closed = [*angles, angles[0] + 360] if angles[-1] - angles[0] + step > 359.999 else angles
    many = len(series) > 8
    for number, (name, values) in enumerate(series.items()):
        known = gaps([*values, values[0]] if len(closed) > len(values) else values)
        peak = angles[max(range(len(values)), key=lambda i, v=values: -math.inf if v[i] is None else v[i])]
        style = {"color": cyclic(peak) if many else colour_of(number), "lw": 0.8 if many else 1.3}
        if data["radial"]:
            turns = [math.radians(angle) for angle in closed]
            axes.plot(turns, [max(v, 0.0) for v in known], label=f"{label(name)} ({peak:g}°)", **style)
        else:
            axes.plot(closed, known, label=f"{label(name)} ({peak:g}°)", **style)
    if data["radial"]:
        axes.set_rmin(0)
        axes.set_rlabel_position(67.5)
        axes.yaxis.set_major_locator(_rings())
        axes.spines["polar"].set_color("#bbb")
        axes.set_thetagrids(range(0, 360, 45), [f"{angle}°" for angle in range(0, 360, 45)])
        below = any(v is not None and v < 0 for values in series.values() for v in values)
        told = f"radius: {data['value_label']}" + ("; below 0 at the centre" if below else "")
        axes.set_xlabel(told)
        axes.grid(color="#ddd", lw=0.6)
        axes.tick_params(labelsize=6.5)
    else:
        axes.set_xlabel("angle (degrees)")
        axes.set_ylabel(data["value_label"])
        if closed[-1] - closed[0] >= 180:
            axes.xaxis.set_major_locator(_multiples(45))
        axes.set_xlim(closed[0], closed[-1])
        grid(axes)
    ncols = math.ceil(len(series) / 20)
    place = {"loc": "center left", "bbox_to_anchor": (1.1 if data["radial"] else 1.01, 0.5)}
    axes.legend(frameon=False, fontsize=6, ncols=ncols, title="unit (peak)", title_fontsize=6.5, **place)


def tuning_size(data: Data) -> tuple[float, float]:
    listed = 1.1 * math.ceil(len(data["series"]) / 20)
    return (3.9 if data["radial"] else 5.4) + listed, 3.7 if data["radial"] else 3.0


@dataclass(frozen=True)
class Column:
    """Nodes above each other, the side of their pictures, and that of the maps on the edges that leave them."""

    name: Any
    nodes: list[Data]
    side: float
    kernel: float
    pitch: float

    @property
    def width(self) -> float:
        return self.side + 0.15 + (self.kernel + 0.3 if self.kernel else 0.0)


def _layout(data: Data) -> tuple[dict[str, Place], list[tuple[Data, Place]], float, float]:
    """Where nodes and the maps of edges stand, and the size of it all."""
    columns = _columns(data)
    rank = {node["id"]: number for number, column in enumerate(columns) for node in column.nodes}
    tall = max(len(column.nodes) * column.pitch for column in columns)
    spare = PAGE - sum(column.width + 0.15 for column in columns)
    run = min(max(spare / max(len(columns) - 1, 1), 0.7), 1.5)
    top = KEY + (0.08 if any(isinstance(column.name, str) for column in columns) else 0.0)
    if any(rank[edge["target"]] > rank[edge["source"]] + 1 for edge in data["edges"]):
        top += 0.25
    places: dict[str, Place] = {}
    x = 0.15
    for column in columns:
        for number, node in enumerate(column.nodes):
            middle = top + tall * (number + 0.5) / len(column.nodes) - NAME / 2
            places[node["id"]] = (x + column.side / 2, middle, column.side)
        x += column.width + run
    edges = []
    for column in columns:
        for node in column.nodes:
            across, down, side = places[node["id"]]
            out = [edge for edge in data["edges"] if edge["source"] == node["id"]]
            out.sort(key=lambda edge: (-rank[edge["target"]], places[edge["target"]][1]))
            for number, edge in enumerate(out):
                lane = down + (number - (len(out) - 1) / 2) * (column.kernel + 0.16)
                edges.append((edge, (across + side / 2 + 0.2 + column.kernel / 2, lane, column.kernel)))
    return places, edges, max(x - run, 4.6), top + tall


def _columns(data: Data) -> list[Column]:
    """From left to right: by number, or as their names first appear."""
    names = list(dict.fromkeys(node["column"] for node in data["nodes"]))
    if all(isinstance(name, int | float) for name in names):
        names.sort()
    found = []
    for name in names:
        nodes = [node for node in data["nodes"] if node["column"] == name]
        lanes = max(sum(edge["source"] == node["id"] for edge in data["edges"]) for node in nodes)
        side = 1.0 if len(nodes) <= 3 else 0.72 if len(nodes) <= 7 else 0.52
        kernel = 0.0 if lanes == 0 else 0.46 if lanes == 1 else 0.36
        found.append(Column(name, nodes, side, kernel, max(side + NAME, lanes * (kernel + 0.16)) + 0.1))
    return found


def _strongest(data: Data) -> dict[str, tuple[float, float]]:
    """The largest |weight| and the largest |cell| of the edges into each node."""
    found = {}
    for node in data["nodes"]:
        into = [edge for edge in data["edges"] if edge["target"] == node["id"]]
        cells = [abs(v) for edge in into for row in edge["map"] or [] for v in row if v is not None]
        found[node["id"]] = (
            max([abs(edge["weight"]) for edge in into], default=1.0) or 1.0,
            max(cells, default=1.0) or 1.0,
        )
    return found


def _path(
    edge: Data, edges: list[tuple[Data, Place]], nodes: dict[str, Place], at: Place
) -> tuple[list[float], list[float]]:
    """From the source to the map, and on to the target's left side (its right side, where it stands before)."""
    (x1, y1, from_side), (x2, y2, to_side) = nodes[edge["source"]], nodes[edge["target"]]
    into = sorted((place[1], id(other)) for other, place in edges if other["target"] == edge["target"])
    rank = into.index((at[1], id(edge))) - (len(into) - 1) / 2
    end = (x2 + math.copysign(to_side / 2, x1 - x2 + 1e-9), y2 + rank * min(0.14, 0.8 * to_side / len(into)))
    start, (x, y, side) = (x1 + from_side / 2, y1), at
    eased = [(t / 24, 3 * (t / 24) ** 2 - 2 * (t / 24) ** 3) for t in range(25)]
    reach = 0.0 if end[0] > x else 0.5
    skips = any(end[0] > place[0] + place[2] / 2 and place[0] - place[2] / 2 > x for place in nodes.values())
    over = 0.75 * to_side if skips else 0.0  # an edge that skips a column goes over its nodes
    xs = [start[0], x - side / 2, x + side / 2]
    xs += [x + side / 2 + (end[0] - x - side / 2) * t + reach * math.sin(math.pi * t) for t, _ in eased]
    return xs, [start[1], y, y, *[y + (end[1] - y) * e - over * math.sin(math.pi * t) for t, e in eased]]


def _kernel(axes: "Axes", values: Any, top: float, at: Place) -> None:
    """The signed map: where it inhibits, a minus says so in black and white."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    shades, norm = scale([-top, top], True)[0], Normalize(-top, top)
    x, y, side = at
    rows, columns = len(values), len(values[0])
    cell = side / max(rows, columns)
    left, up = x - cell * columns / 2, y - cell * rows / 2
    extent = (left, left + cell * columns, up + cell * rows, up)
    cells = [gaps(row) for row in values]
    axes.imshow(cells, cmap=shades, norm=norm, extent=extent, interpolation="nearest", zorder=2)
    axes.set_autoscale_on(False)
    frame = Rectangle((left, up), cell * columns, cell * rows, fc="none", ec="#777", lw=0.6, zorder=3)
    axes.add_patch(frame)
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            if cell > 0.045 and value is not None and value < -0.12 * top:
                middle, ink = up + (r + 0.5) * cell, ink_on(shades, norm, value)
                ends = [left + (c + 0.28) * cell, left + (c + 0.72) * cell]
                axes.plot(ends, [middle, middle], color=ink, lw=0.7, zorder=3, solid_capstyle="butt")


def _node(axes: "Axes", node: Data, at: Place) -> None:
    from matplotlib.patches import Rectangle

    x, y, side = at
    named = {"ha": "center", "fontsize": 6.5, "linespacing": 1.1, "zorder": 6}
    axes.add_patch(
        Rectangle((x - side / 2, y - side / 2), side, side, fc="white", ec="#777", lw=0.6, zorder=4)
    )
    if node["picture"]:
        show(axes, node["picture"], x - side / 2, y - side / 2, side)
        axes.images[-1].set_zorder(5)
        axes.text(x, y + side / 2 + 0.03, wrapped(node["label"], side + 0.2, 2), va="top", **named)
    else:
        axes.text(x, y, wrapped(node["label"], side - 0.05, 5), va="center", **named)


def _key(axes: "Axes", signs: Any) -> None:
    """What the two colours mean, above the circuit, in words."""
    from matplotlib.patches import Rectangle

    shades, norm = signs
    for x, sign, words in ((0.15, 1, "excitation (+)"), (1.15, -1, "inhibition (−, dashed)")):
        axes.add_patch(Rectangle((x, 0.02), 0.1, 0.1, fc=shades(norm(0.72 * sign)), ec="none"))
        axes.text(x + 0.14, 0.07, words, va="center", fontsize=6.5)
    axes.plot([1.17, 1.23], [0.07, 0.07], color="white", lw=0.9, solid_capstyle="butt")
    rule = "colour, width: relative to the strongest edge into the same node"
    axes.text(0.15, 0.22, rule, va="center", fontsize=6.5, color="#555")


def _rings() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, prune="lower")


def _multiples(step: float) -> Any:
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(step)
