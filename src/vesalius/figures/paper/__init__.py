"""The static twin of every figure, drawn by matplotlib for papers: same numbers, same axes, same labels.

The same figure gives the same bytes: fixed sizes, a fixed font, no dates in the files.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.figures.figure import Figure
from vesalius.figures.paper import boards, charts, circuits, dashboards, features, pictures
from vesalius.figures.paper.ink import Data, printable

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "svg.hashsalt": "vesalius",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,
}

DRAWN: dict[str, Callable[[Data, "SubFigure"], None]] = {
    "heatmap": charts.heatmap,
    "scatter": charts.scatter,
    "lines": charts.lines,
    "bars": charts.bars,
    "histogram": charts.histogram,
    "polar": charts.polar,
    "attention": circuits.attention,
    "tokens": circuits.tokens,
    "graph": circuits.graph,
    "table": circuits.table,
    "images": pictures.images,
    "gallery": pictures.gallery,
    "labelling": pictures.labelling,
    "circuit": features.circuit,
    "tuning": features.tuning,
    "board": boards.board,
    "dashboard": dashboards.dashboard,
}

SIZES: dict[str, Callable[[Data], tuple[float, float]]] = {
    "images": pictures.images_size,
    "gallery": pictures.gallery_size,
    "labelling": pictures.labelling_size,
    "circuit": features.circuit_size,
    "tuning": features.tuning_size,
    "board": boards.board_size,
    "dashboard": dashboards.dashboard_size,
}
"""Those whose size follows from how their parts are laid out."""


def draw(figure: Figure, path: Path) -> None:
    """Draw `figure` into a `.png`, `.webp`, `.pdf` or `.svg` file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    figure = Figure(**printable(figure.to_json()))
    with matplotlib.rc_context(STYLE):
        width, height = _size(figure)
        sheet = Sheet(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(sheet)
        _compose(figure, sheet.subfigures(1, 1, squeeze=False)[0, 0])
        undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {"Software": None}}
        sheet.savefig(path, dpi=120 if path.suffix == ".webp" else 200, metadata=undated.get(path.suffix))


def _compose(figure: Figure, sheet: "SubFigure") -> None:
    if figure.component == "group":
        parts = [Figure(**part) for part in figure.data["figures"]]
        heights = [_size(part)[1] for part in parts]
        rows = sheet.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)
        for part, row in zip(parts, rows[:, 0], strict=True):
            _compose(part, row)
    else:
        DRAWN[figure.component](figure.data, sheet)
    sheet.suptitle(figure.title, fontsize=10, fontweight="bold", x=0.01, ha="left", wrap=True)
    if figure.caption:
        sheet.supxlabel(figure.caption, fontsize=7.5, color="#555", x=0.01, ha="left", wrap=True)


def _size(figure: Figure) -> tuple[float, float]:
    """Inches: the width of a page's column or of the page, and the height that the kind asks for."""
    data = figure.data
    if figure.component == "group":
        sizes = [_size(Figure(**part)) for part in data["figures"]]
        return max(width for width, _ in sizes), sum(height for _, height in sizes) + 0.3
    if figure.component in SIZES:
        width, height = SIZES[figure.component](data)
        title, caption = len(figure.title) / (11 * width), len(figure.caption) / (17 * width)
        return width, height + 0.12 + 0.19 * math.ceil(title) + 0.14 * math.ceil(caption)
    if figure.component == "heatmap":
        panels, rows, columns = len(data["values"]), len(data["values"][0]), len(data["values"][0][0])
        across = min(panels, 3)
        wide = min(max(columns * 0.36, 1.4), 4.6)
        tall = min(max(rows * 0.26, 0.9), 4.2)
        return min(max(1.8 + across * wide, 4.0), 9.5), 1.0 + math.ceil(panels / across) * (tall + 0.7)
    if figure.component == "attention":
        across = min(len(data["heads"]), 4)
        return 1.2 + 2.1 * across, 1.0 + 2.1 * math.ceil(len(data["heads"]) / across)
    if figure.component == "polar":
        across = min(len(data["panels"]), 4)
        return 2.5 * across + 0.4, 1.0 + 2.5 * math.ceil(len(data["panels"]) / across)
    if figure.component == "tokens":
        lines = [circuits.line_count(row["tokens"] or data["tokens"]) for row in data["rows"]]
        scales = {layer for row in data["rows"] for layer in row["layers"]}
        return 7.0, 0.4 + 0.5 * max(len(scales), 1) + sum(0.3 + count * 0.34 for count in lines)
    if figure.component == "table":
        return 7.0, 0.9 + 0.21 * (min(len(data["rows"]), circuits.ROWS) + 1)
    if figure.component == "graph":
        columns = [node["column"] for node in data["nodes"]]
        return 7.0, 1.0 + 0.34 * max(columns.count(column) for column in columns)
    if figure.component == "bars" and charts.long(data["labels"]):
        return 5.5, 1.2 + len(data["labels"]) * max(0.16 * len(data["series"]), 0.24)
    return 5.5, 3.4
