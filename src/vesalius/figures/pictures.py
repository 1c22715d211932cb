"""Figures of pictures: grids, quilts, circuits drawn with their features, and blind labelling.

Pictures are UInt8 [picture, channel, height, width] (1 channel is grey, 3 RGB, 4 RGBA), and stand in the
figure's data, so that a saved page needs no other file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vesalius.errors import VesaliusError, nearest
from vesalius.figures.data_uri import Pictures, data_uris
from vesalius.figures.encoding import matrix, numbers, same_length, words
from vesalius.figures.figure import Figure

KEYS = 9
"""Classes that the keys 1 to 9 can choose among."""


def images(
    pictures: Pictures,
    *,
    title: str,
    labels: Sequence[Any] | None = None,
    columns: int | None = None,
    caption: str = "",
) -> Figure:
    """A grid of pictures, row by row, `columns` wide (as many as fit if left out), a label under each."""
    drawn = _some(data_uris(pictures), "images")
    same_length({"pictures": drawn, "labels": labels})
    if columns is not None and columns < 1:
        raise VesaliusError(f"images was given {columns} columns; expected at least 1")
    return Figure("images", {"pictures": drawn, "labels": words(labels), "columns": columns}, title, caption)


def gallery(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str,
    columns: Sequence[Any] | None = None,
    caption: str = "",
) -> Figure:
    """Rows of pictures under column headings: a quilt of activation bins, or twins beside each other.

    A row is {"label": str, "pictures": pictures, "texts": [str]}: a text stands under its picture, and may be
    left out. A row may be shorter than others, and a picture may be None: its place stays empty.
    """
    given = list(rows)
    listed = [list(row["pictures"]) for row in given]
    drawn = iter(_some(data_uris([picture for pictures in listed for picture in pictures]), "gallery"))
    shown = []
    for row, pictures in zip(given, listed, strict=True):
        same_length({"pictures": pictures, "texts": row.get("texts")})
        if columns is not None and len(pictures) > len(columns):
            raise VesaliusError(
                f"row '{row['label']}' has {len(pictures)} pictures; expected at most one per column, {len(columns)}"
            )
        quilted = [next(drawn) for _ in pictures]
        shown.append({"label": str(row["label"]), "pictures": quilted, "texts": words(row.get("texts"))})
    return Figure("gallery", {"columns": words(columns), "rows": shown}, title, caption)


def circuit(
    nodes: Iterable[Mapping[str, Any]], edges: Iterable[Mapping[str, Any]], *, title: str, caption: str = ""
) -> Figure:
    """A circuit of features: nodes with pictures in columns, earlier layers left; edges carry their weights' map.

    A node is {"id", "label", "column", "picture"}, its picture [channel, height, width] or None; columns are
    numbers, or names in the order in which they appear. An edge is {"source", "target", "weight", "map",
    "label"}: `map` (or None) is the signed kernel [row, column] in two colours, excitation and inhibition;
    the weight, say the sum of the map, is the edge's width; `label` stands beside it (the weight if left out).
    Colours and widths are relative to the strongest edge into the same node.
    """
    given = list(nodes)
    ids = [str(node["id"]) for node in given]
    if not given:
        raise VesaliusError("circuit was given no node; expected at least one")
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise VesaliusError(f"circuit was given two nodes of id '{twice}'; expected each once")
    pictures = data_uris(_array(node.get("picture")) for node in given)
    drawn = [
        {"id": str(n["id"]), "label": str(n["label"]), "column": numbers(n["column"]), "picture": picture}
        for n, picture in zip(given, pictures, strict=True)
    ]
    return Figure("circuit", {"nodes": drawn, "edges": [_edge(edge, ids) for edge in edges]}, title, caption)


def labelling(
    pictures: Pictures,
    *,
    classes: Sequence[Any],
    keys: Sequence[Any],
    title: str,
    caption: str = "",
) -> Figure:
    """Blind labelling: one picture at a time, in the order given, put into a class by a button or a key 1 to 9.

    The reader copies or downloads their labels as JSON {key: class}. The figure holds nothing else about a
    picture: shuffle the pictures before, and choose keys that tell nothing.
    """
    drawn = _some(data_uris(pictures), "labelling")
    same_length({"pictures": drawn, "keys": keys})
    if None in drawn:
        raise VesaliusError("labelling was given a picture that is None; expected every picture")
    for what, named in (("classes", classes), ("keys", keys)):
        if len(set(named)) < len(named):
            raise VesaliusError(f"labelling was given {what} of which two are alike; expected each once")
    if not 2 <= len(classes) <= KEYS:
        raise VesaliusError(f"labelling was given {len(classes)} classes; expected 2 to {KEYS}, one per key")
    return Figure(
        "labelling", {"pictures": drawn, "classes": words(classes), "keys": words(keys)}, title, caption
    )


def _some(drawn: list[Any], kind: str) -> list[Any]:
    if not any(drawn):
        raise VesaliusError(f"{kind} was given no picture; expected at least one")
    return drawn


def _array(picture: Any) -> Any:
    """A picture on its own may come as a batch of one."""
    return picture[0] if picture is not None and len(picture.shape) == 4 and len(picture) == 1 else picture


def _edge(edge: Mapping[str, Any], ids: Iterable[str]) -> dict[str, Any]:
    source, target = str(edge["source"]), str(edge["target"])
    for end in (source, target):
        if end not in ids:
            near = nearest(end, ids)
            raise VesaliusError(f"an edge names the node '{end}'; expected the id of a node{near}")
    weight = numbers(edge["weight"])
    if weight is None:
        raise VesaliusError(
            f"the edge '{source}' → '{target}' has the weight {edge['weight']}; expected a finite number"
        )
    weights = edge.get("map")
    if weights is not None:
        weights = matrix(weights, dimensions=(2,), name=f"the map of edge '{source}' → '{target}'")
    label = edge.get("label")
    return {
        "source": source,
        "target": target,
        "weight": weight,
        "map": weights,
        "label": None if label is None else str(label),
    }
