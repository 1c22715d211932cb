"""Boards to be edited: a position of a random game, one square of it changed, and what is then legal.

The benchmark of Li et al. 2023 (arXiv 2210.13382): the likeliest moves, as many as are legal on the edited board, are
compared with those that are; errors are false positives plus false negatives. Their games are 5 to 30 moves of 60
long; ours, the same part of the game.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from vesalius.boards.positions import Positions, random_positions, squares_of
from vesalius.data.othello import Rules, playable
from vesalius.data.othello_records import square_names
from vesalius.errors import VesaliusError
from vesalius.model import Model

Change = Literal["flip", "erase"]


@dataclass(frozen=True, eq=False)
class Cases:
    """Positions, the square of each that changes, and what is legal before and after."""

    size: int
    tokens: Int[Tensor, "case pos"]
    position: Int[Tensor, " case"]
    """Where in `tokens` the last move stands; what follows is not looked at."""
    boards: Int8[Tensor, "case square"]
    squares: Int[Tensor, " case"]
    old: Int[Tensor, " case"]
    new: Int[Tensor, " case"]
    before: Bool[Tensor, "case square"]
    after: Bool[Tensor, "case square"]

    def __len__(self) -> int:
        return len(self.tokens)

    def chosen(self, which: Int[Tensor, " chosen"]) -> "Cases":
        """Some of them."""
        parts = (getattr(self, field.name)[which] for field in fields(self)[1:])
        return Cases(self.size, *parts)

    def name(self, case: int) -> str:
        """The square that changes, as 'C3'."""
        return square_names(self.size)[int(self.squares[case])]

    def scores(self, logits: Float[Tensor, "case pos token"]) -> Float[Tensor, "case square"]:
        """The logits of the next move, on the board."""
        moves = logits[torch.arange(len(self)), self.position, 1:].float().cpu()
        return squares_of(moves, self.size, fill=-torch.inf)


def random_cases(model: Model, count: int, *, change: Change, seed: int) -> Cases:
    """Random positions with a random stone turned, or taken away, after which there still is a legal move."""
    games = random_positions(model, count + count // 4 + 16, seed=seed)
    plies = games.boards.shape[1]
    generator = torch.Generator().manual_seed(seed)
    ply = torch.randint((plies + 1) // 12, (plies + 1) // 2, (len(games.boards),), generator=generator)
    boards = games.boards[torch.arange(len(ply)), ply]
    takeable = boards > 0
    if change == "erase":
        takeable &= torch.zeros(boards.shape[1]).index_fill(0, playable(games.size), 1) > 0
    squares = torch.multinomial(takeable.float(), 1, generator=generator)[:, 0]
    old = boards[torch.arange(len(ply)), squares].long()
    new = 3 - old if change == "flip" else torch.zeros_like(old)
    made = cases(games, ply, squares, new)
    good = made.after.any(1).nonzero()[:count, 0]
    return made.chosen(good)


def cases(
    games: Positions,
    ply: Int[Tensor, " case"],
    squares: Int[Tensor, " case"],
    new: Int[Tensor, " case"],
    *,
    game: int | None = None,
) -> Cases:
    """Each game at its ply, with one square in a new state; or all cases in one `game`."""
    case = torch.arange(len(ply))
    row = case if game is None else torch.full_like(case, game)
    boards = games.boards[row, ply]
    edited = boards.clone()
    edited[case, squares] = new.to(boards)
    return Cases(
        games.size,
        games.tokens[row],
        ply + games.first,
        boards,
        squares,
        boards[case, squares].long(),
        new,
        games.legal[row, ply],
        legal_on(edited, games.size),
    )


def legal_on(boards: Int8[Tensor, "case square"], size: int) -> Bool[Tensor, "case square"]:
    """Where I may play, on boards of 0 empty, 1 mine, 2 theirs."""
    rules = Rules(size)
    mine, theirs = (_words(boards == state) for state in (1, 2))
    return torch.from_numpy(rules.unpack(rules.legal(mine, theirs)))


def errors(
    scores: Float[Tensor, "case square"], legal: Bool[Tensor, "case square"]
) -> Float[Tensor, " case"]:
    """False positives plus false negatives of the likeliest moves, as many as are legal; 0 is perfect."""
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    top = rank < legal.sum(1, keepdim=True)
    return (top != legal).sum(1).float()


def demand_moves(found: Cases, what: str) -> None:
    """Raise VesaliusError if after the edit there is nothing to predict."""
    if not bool(found.after.any()):
        raise VesaliusError(f"after {what} no move is legal on the board; choose another square or state")


def _words(stones: Bool[Tensor, "case square"]) -> np.ndarray:
    """Rows of squares as 64-bit words."""
    bits = np.uint64(1) << np.arange(stones.shape[1], dtype=np.uint64)
    return (stones.numpy() * bits).sum(1, dtype=np.uint64)
