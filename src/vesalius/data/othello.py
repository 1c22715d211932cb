"""Othello: the rules on bitboards, many games at once, and random legal games as a language of moves.

Li et al. 2023 (Emergent World Representations, arXiv 2210.13382) train a GPT on such games to ask whether it keeps
the board in mind. A board of `size` × `size` squares (4, 6 or 8) is two 64-bit words, the stones of the player to move
and those of the other; square `row · size + column` is bit of that number. Black begins; who cannot move passes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Int8, UInt8, UInt64
from numpy import ndarray
from torch import Tensor

from vesalius.errors import VesaliusError

SIZES = (4, 6, 8)
EMPTY, BLACK, WHITE = 0, 1, 2

Stones = UInt64[ndarray, " game"]


@dataclass(frozen=True)
class Rules:
    """The rules on a board of one size.

    >>> Rules(8).perft(5)
    1396
    """

    size: int = 8

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise VesaliusError(f"an Othello board of size {self.size} was asked for; expected 4, 6 or 8")

    @property
    def squares(self) -> int:
        return self.size * self.size

    def start(self, games: int) -> tuple[Stones, Stones]:
        """The opening position, black to move: black on the rising diagonal of the middle."""
        low = self.size // 2 - 1
        black = self._word([(low, low + 1), (low + 1, low)])
        white = self._word([(low, low), (low + 1, low + 1)])
        return np.full(games, black), np.full(games, white)

    def legal(self, mine: Stones, theirs: Stones) -> Stones:
        """The squares where the player to move may put a stone."""
        found = np.zeros_like(mine)
        for _, beyond in self._runs(mine, theirs):
            found |= beyond
        return found & ~(mine | theirs) & self._board

    def play(self, mine: Stones, theirs: Stones, move: Stones) -> tuple[Stones, Stones]:
        """Put a stone on the one square of `move` (none: pass), turn what it closes in, and change sides."""
        turned = np.zeros_like(mine)
        for run, beyond in self._runs(move, theirs):
            turned |= np.where(beyond & mine != 0, run, np.uint64(0))
        return theirs & ~turned, mine | turned | move

    def perft(self, depth: int) -> int:
        """How many games of up to `depth` plies there are; a pass is a ply, and a game that is over stays one."""
        mine, theirs = self.start(1)
        finished = 0
        for _ in range(depth):
            moves = self.legal(mine, theirs)
            stuck = moves == 0
            over = stuck & (self.legal(theirs, mine) == 0)
            finished += int(over.sum())
            bits = (moves[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
            game, square = np.nonzero(bits)
            game = np.concatenate([game, np.nonzero(stuck & ~over)[0]])
            move = np.concatenate(
                [np.uint64(1) << square.astype(np.uint64), np.zeros(len(game) - len(square), np.uint64)]
            )
            mine, theirs = self.play(mine[game], theirs[game], move)
        return len(mine) + finished

    def unpack(self, stones: Stones) -> Bool[ndarray, "game square"]:
        """Each word as a row of squares."""
        octets = stones[:, None].view(np.uint8).reshape(len(stones), 8)
        return np.unpackbits(octets, axis=1, bitorder="little")[:, : self.squares].astype(bool)

    def _runs(self, first: Stones, theirs: Stones) -> Iterator[tuple[Stones, Stones]]:
        """In each direction, the other's stones that follow on `first` without a gap, and the squares one further."""
        for shift, allowed in self._directions:
            inner = theirs & allowed
            run = _moved(first, shift) & inner
            for _ in range(self.size - 3):
                run |= _moved(run, shift) & inner
            yield run, _moved(run, shift)

    def _word(self, squares: list[tuple[int, int]]) -> np.uint64:
        return np.uint64(sum(1 << (row * self.size + column) for row, column in squares))

    @cached_property
    def _board(self) -> np.uint64:
        return np.uint64((1 << self.squares) - 1)

    @cached_property
    def _columns(self) -> tuple[np.uint64, np.uint64]:
        """All squares but those of the first column, and all but those of the last."""
        first = self._word([(row, 0) for row in range(self.size)])
        last = self._word([(row, self.size - 1) for row in range(self.size)])
        return self._board & ~first, self._board & ~last

    @cached_property
    def _directions(self) -> list[tuple[int, np.uint64]]:
        """Each direction as a shift of bits, with the squares where a closed-in stone can lie: no step wraps there."""
        inner = self._columns[0] & self._columns[1]
        vertical = {self.size, -self.size}
        steps = (1, self.size - 1, self.size, self.size + 1)
        return [
            (shift, self._board if shift in vertical else inner) for step in steps for shift in (step, -step)
        ]


def _moved(stones: Stones, shift: int) -> Stones:
    return stones << np.uint64(shift) if shift > 0 else stones >> np.uint64(-shift)


@dataclass(frozen=True)
class Games:
    """Games as rows of moves, with what was true after each."""

    size: int
    moves: UInt8[Tensor, "game ply"]
    """The square played."""
    boards: Int8[Tensor, "game ply square"] | None
    """After the move: 0 empty, 1 black, 2 white."""
    legal: Bool[Tensor, "game ply square"] | None
    """Where the next player may then play."""


def random_games(size: int, count: int, *, seed: int = 0, labels: bool = False, batch: int = 4096) -> Games:
    """Games of uniformly random legal moves that fill the board without a pass, as Othello-GPT is trained on.

    Games with a pass are drawn again. With `labels`, the board and the legal moves after every ply.
    """
    rules, generator = Rules(size), torch.Generator().manual_seed(seed)
    parts = list(_kept(rules, count, generator, labels, batch))
    moves, boards, legal = (
        torch.from_numpy(np.concatenate(part)) if part[0] is not None else None for part in zip(*parts)
    )
    assert moves is not None
    return Games(size, moves, boards, legal)


def playable(size: int) -> Int[Tensor, " move"]:
    """The squares that can be played, which are all but the four that are filled from the start."""
    low = size // 2 - 1
    middle = {row * size + column for row in (low, low + 1) for column in (low, low + 1)}
    return torch.tensor([square for square in range(size * size) if square not in middle])


def tokens_of(moves: UInt8[Tensor, "game ply"], size: int) -> Int[Tensor, "game pos"]:
    """Games as a network of ours reads them: 0 begins, then 1 + the place of each move's square among `playable`."""
    token = torch.zeros(size * size, dtype=torch.long)
    token[playable(size)] = torch.arange(1, size * size - 3)
    return F.pad(token[moves.long()], (1, 0))


def _kept(
    rules: Rules, count: int, generator: torch.Generator, labels: bool, batch: int
) -> Iterator[tuple[ndarray, ndarray | None, ndarray | None]]:
    """Batches of whole games until there are `count`."""
    left = count
    while left > 0:
        moves, boards, legal = _played(rules, batch, generator, labels)
        yield _of(moves, boards, legal, games=slice(left))
        left -= len(moves)


def _played(
    rules: Rules, count: int, generator: torch.Generator, labels: bool
) -> tuple[ndarray, ndarray | None, ndarray | None]:
    """Random games side by side; those that come to a pass are dropped as soon as they do."""
    plies = rules.squares - 4
    mine, theirs = rules.start(count)
    moves = np.zeros((count, plies), np.uint8)
    boards = np.zeros((count, plies, rules.squares), np.int8) if labels else None
    legal = np.zeros((count, plies, rules.squares), bool) if labels else None
    alive = np.arange(count)
    open_squares = rules.unpack(rules.legal(mine, theirs))
    for ply in range(plies):
        chosen = _picked(open_squares, generator)
        moves[alive, ply] = chosen
        mine, theirs = rules.play(mine, theirs, np.uint64(1) << chosen.astype(np.uint64))
        open_squares = rules.unpack(rules.legal(mine, theirs))
        if boards is not None and legal is not None:
            black, white = (theirs, mine) if ply % 2 == 0 else (mine, theirs)
            boards[alive, ply] = rules.unpack(black) + 2 * rules.unpack(white)
            legal[alive, ply] = open_squares
        if ply < plies - 1:
            going = open_squares.any(1)
            alive, mine, theirs, open_squares = alive[going], mine[going], theirs[going], open_squares[going]
    return _of(moves, boards, legal, games=alive)


def _of(
    moves: ndarray, boards: ndarray | None, legal: ndarray | None, *, games: slice | ndarray
) -> tuple[ndarray, ndarray | None, ndarray | None]:
    return moves[games], None if boards is None else boards[games], None if legal is None else legal[games]


def _picked(allowed: Bool[ndarray, "game square"], generator: torch.Generator) -> ndarray:
    """One allowed square of each row, uniformly."""
    chance = torch.rand(len(allowed), generator=generator, dtype=torch.float64).numpy()
    rank = (chance * allowed.sum(1)).astype(np.int64)
    return (allowed.cumsum(1, dtype=np.int16) > rank[:, None]).argmax(1)
