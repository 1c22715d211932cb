"""What a network that plays Othello is asked about: its games, and the board after every move it has read.

A network plays Othello if its sizes say so: a token for each square that can be played and one more, and a context
of the moves of a game, less the last. With our own, token 0 begins the game; the published ones have no such token
and read one position fewer (Li et al. 2023, arXiv 2210.13382).

The board is told as the network's next move sees it (Nanda et al. 2023, arXiv 2309.00941): a square is empty, mine
(of the player who moves next) or theirs. Told absolutely, it is empty, black or white.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from vesalius.access import record
from vesalius.data.othello import Games, playable, random_games, tokens_of
from vesalius.model import Model
from vesalius.networks.othello_gpt import board_size

View = Literal["mine/theirs", "black/white"]
STATES: dict[str, tuple[str, str, str]] = {
    "mine/theirs": ("empty", "mine", "theirs"),
    "black/white": ("empty", "black", "white"),
}
EMPTY, MINE, THEIRS = 0, 1, 2


@dataclass(frozen=True)
class Positions:
    """Games as a network reads them, and what is true at every ply but the last."""

    size: int
    tokens: Int[Tensor, "game pos"]
    first: int
    """The position at which the network has read one move: 1 after a token that begins the game, else 0."""
    boards: Int8[Tensor, "game ply square"]
    """0 empty, 1 mine, 2 theirs, where I am to move."""
    legal: Bool[Tensor, "game ply square"]

    @property
    def black_and_white(self) -> Int8[Tensor, "game ply square"]:
        """The same boards told absolutely: 0 empty, 1 black, 2 white."""
        return other_colour(self.boards)

    def seen(self, view: str) -> Int8[Tensor, "game ply square"]:
        return self.boards if view == "mine/theirs" else self.black_and_white

    def moves(self, logits: Float[Tensor, "game pos token"]) -> Float[Tensor, "game ply move"]:
        """The logits of the next move at every ply, in the order of `playable`."""
        return logits[:, self.first :, 1:].float()


def positions(model: Model, games: Games) -> Positions:
    """Labelled games as inputs of this network; a whole game's last move is nothing that it reads."""
    assert games.boards is not None and games.legal is not None
    begins = begins_with_token(model)
    plies = min(games.moves.shape[1], model.d_vocab - 2)
    tokens = tokens_of(games.moves[:, :plies], games.size)
    return Positions(
        games.size,
        tokens if begins else tokens[:, 1:],
        int(begins),
        other_colour(games.boards[:, :plies]),
        games.legal[:, :plies],
    )


def random_positions(model: Model, count: int, *, seed: int) -> Positions:
    """`count` random games, of a size that the network's own sizes tell."""
    return positions(model, random_games(size_of(model), count, seed=seed, labels=True))


def size_of(model: Model) -> int:
    """The side of the board that a network plays on."""
    size = board_size(model.d_vocab, model.n_ctx)
    assert size is not None  # as the kind "othello" has made sure
    return size


def begins_with_token(model: Model) -> bool:
    return model.n_ctx == model.d_vocab - 1


def other_colour(boards: Int8[Tensor, "game ply square"]) -> Int8[Tensor, "game ply square"]:
    """From black and white to mine and theirs, or back: the two change places after black's moves."""
    told = boards.clone()
    told[:, ::2] = (3 - told[:, ::2]) % 3
    return told


@torch.no_grad()
def streams(
    model: Model, given: Positions, sites: tuple[str, ...] = ("resid_post@*",), *, batch: int = 256
) -> Float[Tensor, "site game ply d_model"]:
    """What is at each of `sites` at every ply: after every layer, if none are named."""
    parts = []
    for tokens in given.tokens.split(batch):
        with record(model, sites, stop=True) as acts:
            model(tokens)
        found = torch.cat([acts.stack(site) for site in sites])
        parts.append(found[:, :, given.first :].float().cpu())
    return torch.cat(parts, 1)


@torch.no_grad()
def next_moves(model: Model, given: Positions, *, batch: int = 256) -> Float[Tensor, "game ply move"]:
    """The logits of every next move."""
    return torch.cat([given.moves(model.logits(tokens)).cpu() for tokens in given.tokens.split(batch)])


def squares_of(
    moves: Float[Tensor, "*batch move"], size: int, *, fill: float = 0.0
) -> Float[Tensor, "*batch square"]:
    """Values of moves laid out on the board; the four squares that are never played get `fill`."""
    laid = moves.new_full((*moves.shape[:-1], size * size), fill)
    laid[..., playable(size)] = moves
    return laid
