"""Figures: the functions that make them, and `Figure` itself."""

from vesalius.figures.boards import board
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
from vesalius.figures.dashboards import dashboard
from vesalius.figures.families import tuning
from vesalius.figures.figure import Figure
from vesalius.figures.pictures import circuit, gallery, images, labelling

__all__ = [
    "Figure",
    "attention",
    "bars",
    "board",
    "circuit",
    "dashboard",
    "gallery",
    "graph",
    "group",
    "heatmap",
    "histogram",
    "images",
    "labelling",
    "lines",
    "polar",
    "scatter",
    "table",
    "tokens",
    "tuning",
]
