"""Records of Othello games: squares by name, and a record played again under the rules.

Names are the game's own: a column's letter from the left and a row's number from the top, so that A1 is the upper
left corner and black may begin a game on 8×8 with D3, C4, F5 or E6.
"""

import re

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vesalius.data.othello import Games, Rules
from vesalius.errors import VesaliusError, nearest


def square_names(size: int) -> list[str]:
    """The name of every square, in the order of their numbers.

    >>> square_names(4)[:5]
    ['A1', 'B1', 'C1', 'D1', 'A2']
    """
    return [f"{'ABCDEFGH'[column]}{row + 1}" for row in range(size) for column in range(size)]


def square_number(name: str, size: int) -> int:
    """The number of a square by its name; raises VesaliusError if the board has no such square."""
    names = square_names(size)
    if name.upper() not in names:
        raise VesaliusError(
            f"'{name}' is no square of a board of {size}×{size}; it has A1 to {names[-1]}{nearest(name.upper(), names)}"
        )
    return names.index(name.upper())


def read_record(text: str, size: int) -> UInt8[Tensor, "1 ply"]:
    """A game as it is written down, `D3 C5 …` or `d3c5…`, as one row of squares.

    >>> read_record("B1 a1", 4).tolist()
    [[1, 0]]
    """
    names = re.findall(r"[A-Za-z]\d+|[^\s,;.-]+", text)
    if not names:
        raise VesaliusError("the game record is empty; expected moves by name, as in 'D3 C5'")
    return torch.tensor([[square_number(name, size) for name in names]], dtype=torch.uint8)


def replay(moves: UInt8[Tensor, "game ply"], size: int) -> Games:
    """Play recorded games, all of one length, with the board and the legal moves after every ply.

    Raises VesaliusError naming the first move that the rules forbid. A game that comes to a pass is told so: the
    networks read games without passes.
    """
    rules, names = Rules(size), square_names(size)
    longest = rules.squares - 4
    if moves.shape[1] > longest:
        raise VesaliusError(
            f"the game record has {moves.shape[1]} moves; a board of {size}×{size} takes at most {longest}"
        )
    mine, theirs = rules.start(len(moves))
    boards, legal = [], []
    open_squares = rules.unpack(rules.legal(mine, theirs))
    for ply, chosen in enumerate(moves.numpy().T):
        wrong = np.nonzero(~open_squares[np.arange(len(moves)), np.minimum(chosen, rules.squares - 1)])[0]
        if len(wrong) or (chosen >= rules.squares).any():
            game = int(wrong[0]) if len(wrong) else int((chosen >= rules.squares).argmax())
            given = int(chosen[game])
            name = names[given] if given < rules.squares else f"square {given}"
            may = ", ".join(names[square] for square in np.nonzero(open_squares[game])[0])
            reason = f"legal are {may}" if may else "who is to move has to pass, and passes are not read"
            raise VesaliusError(f"move {ply + 1} of the game record, {name}, is not legal; {reason}")
        mine, theirs = rules.play(mine, theirs, np.uint64(1) << chosen.astype(np.uint64))
        open_squares = rules.unpack(rules.legal(mine, theirs))
        black, white = (theirs, mine) if ply % 2 == 0 else (mine, theirs)
        boards.append(rules.unpack(black) + 2 * rules.unpack(white).astype(np.int8))
        legal.append(open_squares)
    return Games(
        size,
        moves,
        torch.from_numpy(np.stack(boards, 1).astype(np.int8)),
        torch.from_numpy(np.stack(legal, 1)),
    )
