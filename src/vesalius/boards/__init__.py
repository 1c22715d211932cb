"""The board inside a network that plays Othello: games as its inputs, directions between boards, edits of boards."""

from vesalius.boards.cases import Cases, Change, cases, demand_moves, errors, random_cases
from vesalius.boards.directions import BoardDirections, Push, board_directions, layer_range, push
from vesalius.boards.positions import (
    STATES,
    Positions,
    next_moves,
    other_colour,
    positions,
    random_positions,
    size_of,
    squares_of,
    streams,
)

__all__ = [
    "STATES",
    "BoardDirections",
    "Cases",
    "Change",
    "Positions",
    "Push",
    "board_directions",
    "cases",
    "demand_moves",
    "errors",
    "layer_range",
    "next_moves",
    "other_colour",
    "positions",
    "push",
    "random_cases",
    "random_positions",
    "size_of",
    "squares_of",
    "streams",
]
