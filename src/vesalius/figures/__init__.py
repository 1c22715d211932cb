"""Figures: the functions that make them, and `Figure` itself."""

from vesalius.figures.components import (
    attention,
    bars,
    graph,
    group,
    heatmap,
    histogram,
    lines,
    polar,
    scatter,
    table,
    tokens,
)
from vesalius.figures.figure import Figure

__all__ = [
    "Figure",
    "attention",
    "bars",
    "graph",
    "group",
    "heatmap",
    "histogram",
    "lines",
    "polar",
    "scatter",
    "table",
    "tokens",
]
