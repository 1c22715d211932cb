"""Texts and circuits on paper: attention patterns, token strips, graphs, tables."""

import math
from typing import TYPE_CHECKING, Any

from vesalius.figures.paper.ink import Data, colour_bar, colour_of, ink_on, label, matrix, scale

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

MONO: Any = {"fontsize": 6.5, "family": "DejaVu Sans Mono"}
LINE = 96
"""Characters in a line of tokens."""
ROWS = 40
"""A table on paper shows so many rows and says how many there are."""


def attention(data: Data, sheet: "SubFigure") -> None:
    shades, norm = scale([v for head in data["patterns"] for row in head for v in row], False)
    across = min(len(data["heads"]), 4)
    panels = sheet.subplots(math.ceil(len(data["heads"]) / across), across, squeeze=False)
    words = [label(token, everywhere=True) for token in data["tokens"]]
    for place, axes in enumerate(panels.flat):
        if place >= len(data["heads"]):
            axes.axis("off")
            continue
        few = words if len(words) <= 24 else None
        image = matrix(axes, data["patterns"][place], shades, norm, x=few, y=few, size=5)
        axes.set_title(data["heads"][place], loc="left")
        axes.set_xlabel("key (attended)")
        axes.set_ylabel("query")
    sheet.colorbar(image, ax=panels, label="attention (0 to 1)", shrink=0.6, aspect=18)


def tokens(data: Data, sheet: "SubFigure") -> None:
    axes = sheet.subplots()
    axes.axis("off")
    layers = list(dict.fromkeys(layer for row in data["rows"] for layer in row["layers"]))
    scales: dict[str, tuple[Any, Any]] = {}
    for layer in layers:
        values = [v for row in data["rows"] for v in row["layers"].get(layer, [])]
        scales[layer] = scale(values, any(v is not None and v < 0 for v in values))
    down = 0.0
    for row in data["rows"]:
        axes.text(0, down, row["label"], fontsize=7.5, fontweight="bold", va="center")
        across, down = 0.0, down + 1.0
        for place, token in enumerate(row["tokens"] or data["tokens"]):
            words = label(token, everywhere=True)
            if across + len(words) + 1 > LINE:
                across, down = 0.0, down + 1.4
            ink = "#111"
            for depth, (layer, values) in enumerate(row["layers"].items()):
                value = values[place]
                if value is None:
                    continue
                shades, norm = scales[layer]
                top, tall = (down - 0.45, 0.8) if depth == 0 else (down + 0.15 + 0.22 * depth, 0.18)
                axes.add_patch(_box(across, top, len(words) + 0.6, tall, shades(norm(value))))
                if depth == 0:
                    ink = ink_on(shades, norm, value)
            axes.text(across + 0.3, down, words, va="center", color=ink, **MONO)
            across += len(words) + 1.0
        down += 1.8
    axes.set_xlim(0, LINE)
    axes.set_ylim(down, -0.8)
    for depth, layer in enumerate(layers):
        shades, norm = scales[layer]
        place = ("token", "bar", "second bar")[min(depth, 2)]
        colour_bar(sheet, axes, shades, norm, f"{layer} ({place})" if len(layers) > 1 else layer)


def graph(data: Data, sheet: "SubFigure") -> None:
    axes = sheet.subplots()
    axes.axis("off")
    columns = list(dict.fromkeys(node["column"] for node in data["nodes"]))
    if all(isinstance(column, int | float) for column in columns):
        columns.sort()
    places = {}
    for across, column in enumerate(columns):
        members = [node for node in data["nodes"] if node["column"] == column]
        for number, node in enumerate(members):
            places[node["id"]] = (across, number - (len(members) - 1) / 2)
    kinds = list(dict.fromkeys(edge["kind"] for edge in data["edges"]))
    most = max((abs(edge["weight"]) for edge in data["edges"]), default=1.0) or 1.0
    for edge in data["edges"]:
        (x1, y1), (x2, y2) = places[edge["source"]], places[edge["target"]]
        steps = [step / 24 for step in range(25)]
        eased = [3 * t**2 - 2 * t**3 for t in steps]
        axes.plot(
            [x1 + (x2 - x1) * t for t in steps],
            [y1 + (y2 - y1) * e for e in eased],
            color=colour_of(kinds.index(edge["kind"])),
            lw=0.4 + 3.5 * abs(edge["weight"]) / most,
            ls="--" if edge["weight"] < 0 else "-",
            alpha=0.65,
            zorder=1,
        )
    for node in data["nodes"]:
        frame = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "#666", "lw": 0.7}
        x, y = places[node["id"]]
        axes.text(x, y, label(node["label"]), ha="center", va="center", fontsize=6.5, bbox=frame, zorder=2)
    for number, kind in enumerate(kinds):
        axes.plot([], [], color=colour_of(number), lw=2, label=kind or "edges")
    if any(edge["weight"] < 0 for edge in data["edges"]):
        axes.plot([], [], color="#666", ls="--", label="negative")
    axes.plot([], [], lw=0, label=f"width: |weight|, up to {most:.3g}")
    axes.set_xlim(-0.4, len(columns) - 0.6)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=6.5, ncols=len(kinds) + 2, loc="lower left", bbox_to_anchor=(0, 1))


def table(data: Data, sheet: "SubFigure") -> None:
    from matplotlib.transforms import Bbox

    axes = sheet.subplots()
    axes.axis("off")
    rows = data["rows"][:ROWS]
    values = [cell["value"] for row in data["rows"] for cell in row if isinstance(cell, dict)]
    shades, norm = scale(values, any(v is not None and v < 0 for v in values))
    words = [[_cell(cell) for cell in row] for row in rows]
    lines = [data["columns"], *words]
    lengths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    shares = [length / sum(lengths) for length in lengths]
    empty = [[""] * len(lengths)]
    drawn = axes.table(words or empty, colLabels=data["columns"], colWidths=shares, bbox=Bbox.unit())
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(6.5)
    for (r, c), cell in drawn.get_celld().items():
        cell.set_linewidth(0.3)
        cell.set_edgecolor("#ccc")
        cell.set_text_props(ha="left", weight="bold" if r == 0 else "normal")
        source = rows[r - 1][c] if r and rows else None
        if isinstance(source, dict) and source["value"] is not None:
            cell.set_facecolor(shades(norm(source["value"])))
            cell.set_text_props(color=ink_on(shades, norm, source["value"]), family=MONO["family"])
    if values:
        colour_bar(sheet, axes, shades, norm, "value of coloured cells")
    if len(data["rows"]) > ROWS:
        axes.set_title(f"the first {ROWS} of {len(data['rows'])} rows", fontsize=7, loc="left")


def line_count(tokens: list[str]) -> int:
    return math.ceil(sum(len(token) + 1 for token in tokens) / LINE)


def _cell(cell: Any) -> str:
    if isinstance(cell, dict):
        return label(cell["text"], everywhere=True)
    if cell is None:
        return "–"
    return label(cell) if isinstance(cell, str) else f"{cell:.4g}".replace("-", "−")


def _box(x: float, y: float, width: float, height: float, colour: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=colour, edgecolor="none")
