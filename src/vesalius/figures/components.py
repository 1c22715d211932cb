"""The kinds of figure: one function each, from plain numbers and words to a `Figure`.

Every number that is drawn was computed by the result that calls; these functions check lengths, shorten
numbers and, for histograms, count.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vesalius.errors import VesaliusError
from vesalius.figures.encoding import matrix, numbers, same_length, shape, words
from vesalius.figures.figure import Figure
from vesalius.figures.ticks import ticks

Reference = tuple[str, float, str]
"""A line to compare with: ("x" | "y" | "diagonal", where, label)."""


def heatmap(
    values: Any,
    *,
    title: str,
    x: Any = None,
    y: Any = None,
    panels: Sequence[str] | None = None,
    x_label: str = "",
    y_label: str = "",
    value_label: str = "",
    diverging: bool = True,
    caption: str = "",
) -> Figure:
    """A matrix [y, x] (or several [panel, y, x], on one colour scale) as coloured cells, row 0 at the top.

    `x` and `y` name the columns and rows (their numbers if left out); where they are many evenly spaced numbers,
    round ones stand at the axis. A diverging scale is symmetric about 0; the other has one colour, from 0 where
    no value is negative and that does not waste half of it.
    """
    plain = matrix(values, dimensions=(2, 3), name="values of a heatmap")
    stacked = plain if len(shape(plain)) == 3 else [plain]
    _, rows, columns = shape(stacked)
    same_length({"x": x, "columns": range(columns)})
    same_length({"y": y, "rows": range(rows)})
    same_length({"panels": panels, "matrices": stacked})
    data = {
        "values": stacked,
        "x": words(x),
        "y": words(y),
        "x_ticks": ticks(numbers(x), x_label),
        "y_ticks": ticks(numbers(y), y_label),
        "panels": words(panels),
        "x_label": x_label,
        "y_label": y_label,
        "value_label": value_label,
        "diverging": diverging,
    }
    return Figure("heatmap", data, title, caption)


def scatter(
    x: Any,
    y: Any,
    *,
    title: str,
    x_label: str,
    y_label: str,
    labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    references: Iterable[Reference] = (),
    caption: str = "",
) -> Figure:
    """Points, coloured by group; `labels` are shown on hover; `references` are lines to compare with."""
    same_length({"x": x, "y": y, "labels": labels, "groups": groups})
    data = {
        "x": numbers(x),
        "y": numbers(y),
        "labels": words(labels),
        "groups": words(groups),
        "x_label": x_label,
        "y_label": y_label,
        "references": _references(references),
    }
    return Figure("scatter", data, title, caption)


def lines(
    x: Any,
    series: Mapping[str, Any],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Mapping[str, tuple[Any, Any]] | None = None,
    marks: Iterable[tuple[float, str]] = (),
    log_x: bool = False,
    caption: str = "",
) -> Figure:
    """Curves over one x; `bands` gives a series its (low, high); `marks` are labelled vertical lines."""
    same_length({"x": x} | {f"series {name}": values for name, values in series.items()})
    for name, (low, high) in (bands or {}).items():
        _known(name, series, "bands")
        same_length({"x": x, "low": low, "high": high})
    if log_x and any(value <= 0 for value in numbers(x)):
        raise VesaliusError("lines(log_x=True) was given an x that is not positive; expected x > 0")
    data = {
        "x": numbers(x),
        "series": {name: numbers(values) for name, values in series.items()},
        "bands": {name: [numbers(low), numbers(high)] for name, (low, high) in (bands or {}).items()},
        "marks": [[numbers(at), str(label)] for at, label in marks],
        "x_label": x_label,
        "y_label": y_label,
        "log_x": log_x,
    }
    return Figure("lines", data, title, caption)


def bars(
    labels: Sequence[Any],
    series: Mapping[str, Any],
    *,
    title: str,
    y_label: str,
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    caption: str = "",
) -> Figure:
    """Bars by label, side by side by series; `intervals` gives a series its (low, high) whiskers."""
    same_length({"labels": labels} | {f"series {name}": values for name, values in series.items()})
    for name, whiskers in (intervals or {}).items():
        _known(name, series, "intervals")
        same_length({"labels": labels, "intervals": whiskers})
    data = {
        "labels": words(labels),
        "series": {name: numbers(values) for name, values in series.items()},
        "intervals": {name: numbers(whiskers) for name, whiskers in (intervals or {}).items()},
        "y_label": y_label,
    }
    return Figure("bars", data, title, caption)


def histogram(
    groups: Mapping[str, Any],
    *,
    title: str,
    x_label: str,
    bins: int = 40,
    references: Iterable[Reference] = (),
    caption: str = "",
) -> Figure:
    """The share of each group's values in each of `bins` equal bins; what is not finite is left out."""
    flat = {name: [v for v in _flat(numbers(values)) if v is not None] for name, values in groups.items()}
    together = [value for values in flat.values() for value in values]
    if not together:
        raise VesaliusError("histogram was given no finite value; expected at least one")
    low, high = min(together), max(together)
    width = (high - low) / bins or 1.0
    data = {
        "edges": numbers([low + width * i for i in range(bins + 1)]),
        "groups": {name: _shares(values, low, width, bins) for name, values in flat.items()},
        "sizes": {name: len(values) for name, values in flat.items()},
        "x_label": x_label,
        "references": _references(references),
    }
    return Figure("histogram", data, title, caption)


def polar(panels: Mapping[str, Any], *, title: str, caption: str = "") -> Figure:
    """Complex numbers by angle and log10 radius, panels side by side on one scale, say trained | random.

    Within 45° of the positive axis is the region of copying, within 45° of the negative that of anti-copying.
    """
    data = {"panels": {name: [_complex(v) for v in numbers(values)] for name, values in panels.items()}}
    return Figure("polar", data, title, caption)


def attention(
    patterns: Any, tokens: Sequence[str], *, title: str, heads: Sequence[str], caption: str = ""
) -> Figure:
    """Attention patterns [head, query, key] over one text.

    The reader picks a head, points at a token, and sees what it attends to or what attends to it. Weights are
    kept to a thousandth.
    """
    plain = matrix(patterns, dimensions=(3,), name="patterns of attention")
    plain = [[[_thousandth(weight) for weight in row] for row in head] for head in plain]
    _, queries, keys = shape(plain)
    same_length({"heads": heads, "patterns": plain})
    same_length({"tokens": tokens, "queries": range(queries), "keys": range(keys)})
    data = {"patterns": plain, "tokens": words(tokens), "heads": words(heads)}
    return Figure("attention", data, title, caption)


def tokens(
    tokens: Sequence[str], rows: Iterable[Mapping[str, Any]], *, title: str, caption: str = ""
) -> Figure:
    """A text once per row, its tokens coloured by up to three layers of numbers.

    A row is {"label": str, "layers": {name: one value per token}}, and may bring its own "tokens". The first
    layer colours the token's ground, the second a bar under it, the third a second bar; a layer has one scale
    over all rows. Pointing at a token shows its numbers.
    """
    drawn = []
    for row in rows:
        own = row.get("tokens", tokens)
        if len(row["layers"]) > 3:
            raise VesaliusError(f"row '{row['label']}' has {len(row['layers'])} layers; expected at most 3")
        same_length({"tokens": own} | {f"layer {name}": values for name, values in row["layers"].items()})
        layers = {name: numbers(values) for name, values in row["layers"].items()}
        drawn.append({"label": str(row["label"]), "tokens": words(row.get("tokens")), "layers": layers})
    return Figure("tokens", {"tokens": words(tokens), "rows": drawn}, title, caption)


def graph(
    nodes: Iterable[Mapping[str, Any]], edges: Iterable[Mapping[str, Any]], *, title: str, caption: str = ""
) -> Figure:
    """A circuit: nodes {"id", "label", "column"} from left to right, and the edges between them.

    An edge is {"source", "target", "weight", "kind"}: its width is the size of the weight, it is dashed where
    the weight is negative, and its colour is the kind.
    """
    drawn = [{"id": str(n["id"]), "label": str(n["label"]), "column": numbers(n["column"])} for n in nodes]
    ids = {node["id"] for node in drawn}
    links = []
    for edge in edges:
        ends = {"source": str(edge["source"]), "target": str(edge["target"])}
        for end in ends.values():
            if end not in ids:
                raise VesaliusError(f"an edge names the node '{end}'; expected one of {sorted(ids)}")
        links.append({**ends, "weight": numbers(edge["weight"]), "kind": str(edge.get("kind", ""))})
    return Figure("graph", {"nodes": drawn, "edges": links}, title, caption)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str, caption: str = "") -> Figure:
    """Rows of cells: words, numbers, or {"text", "value"} for a token coloured by a number."""
    drawn = []
    for row in rows:
        same_length({"columns": columns, "row": row})
        drawn.append([_cell(cell) for cell in row])
    return Figure("table", {"columns": words(columns), "rows": drawn}, title, caption)


def group(figures: Iterable[Figure], *, title: str, caption: str = "") -> Figure:
    """Several figures as one, each with its own title and caption."""
    return Figure("group", {"figures": [figure.to_json() for figure in figures]}, title, caption)


def _thousandth(weight: float | None) -> float | None:
    return None if weight is None else round(weight, 3) or 0


def _references(references: Iterable[Reference]) -> list[list[Any]]:
    drawn = [[kind, numbers(at), str(label)] for kind, at, label in references]
    for kind, *_ in drawn:
        _known(kind, ("x", "y", "diagonal"), "references")
    return drawn


def _known(name: str, names: Iterable[str], what: str) -> None:
    if name not in names:
        raise VesaliusError(f"{what} names '{name}'; expected one of {', '.join(names)}")


def _flat(plain: Any) -> list[Any]:
    return [v for item in plain for v in _flat(item)] if isinstance(plain, list) else [plain]


def _shares(values: list[float], low: float, width: float, bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return numbers([count / max(len(values), 1) for count in counts])


def _complex(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value, 0.0]


def _cell(cell: Any) -> Any:
    if isinstance(cell, Mapping):
        return {"text": str(cell["text"]), "value": numbers(cell["value"])}
    return cell if isinstance(cell, str) or cell is None else numbers(cell)
