"""A network that keeps an Othello board in its residual stream, and plays by it: what probes must find, to the square.

What embeds the moves plays them under the rules and writes, for every square, whether it is empty, mine (of who moves
next) or theirs, each along a direction of its own; the layers add nothing. The logits are read off
the stream alone: the board that is nearest to it, and the moves that are legal there. So an edit of the stream
changes what is played exactly as the edited board says. Nothing is trained.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vesalius.architectures import Architecture, Shape
from vesalius.data.othello import Rules, playable
from vesalius.model import Model

LEGAL = 10.0
"""The logit of a legal move; that of any other is 0."""


def board_tracker(size: int = 4, *, seed: int = 0) -> Model:
    """The perfect player of a board of `size`.

    >>> model = board_tracker(4)
    >>> model.logits(torch.tensor([[0]]))[0, 0].nonzero().flatten().tolist()
    [2, 5, 8, 11]
    """
    module = BoardTracker(size, seed).requires_grad_(False)
    return Model(module, bos=0, architecture=ARCHITECTURE, name=f"board-tracker-{size}")


class BoardTracker(nn.Module):
    """`embed` writes the board, `blocks` add nothing, `unembed` reads it."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self.size = size
        width = 3 * size * size
        noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
        self.states = nn.Parameter(torch.linalg.qr(noise).Q)  # a direction for each state of each square
        self.embed = Remember(self.states, size)
        self.blocks = nn.ModuleList([Pass(), Pass()])
        self.unembed = PlayByBoard(self.states, size)

    def forward(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


class Remember(nn.Module):
    """Tokens to boards, along the directions of the states."""

    def __init__(self, states: nn.Parameter, size: int) -> None:
        super().__init__()
        self.states, self.rules = states, Rules(size)

    def forward(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        mine, theirs = self.rules.start(len(input_ids))
        squares = playable(self.rules.size)
        boards = []
        for token in input_ids.T:
            square = squares[(token - 1).clamp(min=0)].numpy().astype(np.uint64)
            if bool((token > 0).any()):  # 0 begins a game and moves nothing
                played = self.rules.play(mine, theirs, np.uint64(1) << square)
                moved = (token > 0).numpy()
                mine, theirs = (np.where(moved, new, old) for new, old in zip(played, (mine, theirs)))
            own, other = (torch.from_numpy(self.rules.unpack(stones)) for stones in (mine, theirs))
            boards.append(torch.stack([~(own | other), own, other], -1).flatten(1))
        return torch.stack(boards, 1).to(self.states) @ self.states


class Pass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0


class PlayByBoard(nn.Module):
    """The legal moves of the board that is nearest to the stream."""

    def __init__(self, states: nn.Parameter, size: int) -> None:
        super().__init__()
        self.states, self.rules = states, Rules(size)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        batch, length, _ = x.shape
        board = (x @ self.states.T).reshape(batch * length, self.rules.squares, 3).argmax(-1)
        bits = np.uint64(1) << np.arange(self.rules.squares, dtype=np.uint64)
        mine, theirs = (((board == state).numpy() * bits).sum(1, dtype=np.uint64) for state in (1, 2))
        legal = torch.from_numpy(self.rules.unpack(self.rules.legal(mine, theirs)))
        moves = LEGAL * legal[:, playable(self.rules.size)].to(x)
        return torch.nn.functional.pad(moves, (1, 0)).reshape(batch, length, -1)


def shape(module: Any) -> Shape:
    squares = module.size**2
    return Shape(n_layers=2, d_model=3 * squares, d_vocab=squares - 3, n_ctx=squares - 4)


ARCHITECTURE = Architecture(
    name="board-tracker",
    modules=("BoardTracker",),
    sites={"resid_pre": "blocks.{}:in", "resid_post": "blocks.{}:out", "logits": "unembed:out"},
    weights={},
    shape=shape,
    norm="none",
    positions="none",
)
