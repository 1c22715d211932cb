"""Training a GPT on random legal games of Othello, and what its card says of it.

Li et al. 2023 (Emergent World Representations, arXiv 2210.13382): the network reads moves and is never shown a board.
A game is a row of tokens: 0 begins it, then one token for each square played, in rows from the top left and without
the four squares that are filled from the start. No game is seen twice. As it learns, two numbers are watched on
held-out games: how often the likeliest next move is legal, and the loss above its exact floor, which for moves drawn
uniformly is the mean logarithm of how many moves were legal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vesalius.architectures.toy import ToyTransformer
from vesalius.data.othello import Games, playable, random_games, tokens_of
from vesalius.recipes.training import fit

SETTINGS = {"batch": 128, "muon": 0.02, "adam": 0.003, "warmup": 200, "weight_decay": 0.01, "clip": 1.0}
HELD_OUT = {"games": 1_000, "seed": 0}
DRAWN = 4_096  # games drawn at once; those of training begin at this seed, away from the held-out one
FIRST_SEED = 1_000


def player(*, size: int, seed: int = 0, **shape: int) -> ToyTransformer:
    """An untrained network for a board of `size`: a token for each square that can be played, and one that begins."""
    moves = size * size - 4
    return ToyTransformer(**shape, d_vocab=moves + 1, n_ctx=moves, norm=True, positions="residual", seed=seed)


def games_hash(size: int) -> str:
    """sha256 over the first games of training: whether games are still drawn as they were."""
    return hashlib.sha256(random_games(size, 64, seed=FIRST_SEED).moves.numpy().tobytes()).hexdigest()


def learn_othello(model: ToyTransformer, size: int, run: Path, settings: dict) -> Path:
    """Train `model` in place on games of a board of `size`; returns the log."""
    batch, seed = settings["batch"], settings["seed"]
    optimiser = {name: value for name, value in settings.items() if name not in ("batch", "seed")}
    held_out = random_games(size, HELD_OUT["games"], seed=HELD_OUT["seed"], labels=True)
    return fit(
        model,
        next_move(model, size, batch=batch, seed=seed),
        run,
        evaluate=lambda model: play_facts(model, held_out),
        evaluate_every=250,
        **optimiser,
    )


def next_move(
    model: nn.Module, size: int, *, batch: int, seed: int = 0, bfloat16: bool = True
) -> Callable[[int], Float[Tensor, ""]]:
    """The loss of a step: cross-entropy of every move of games that no other step sees."""
    parts = DRAWN // batch

    @lru_cache(maxsize=1)
    def drawn(part: int) -> Int[Tensor, "game pos"]:
        games = random_games(size, parts * batch, seed=FIRST_SEED + seed * 1_000_003 + part)
        return tokens_of(games.moves, size)

    def loss(step: int) -> Float[Tensor, ""]:
        part, place = divmod(step, parts)
        games = drawn(part)[place * batch : (place + 1) * batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(games[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), games[:, 1:].flatten())

    return loss


def othello_facts(model: ToyTransformer, size: int) -> dict:
    """What a held-out thousand of games says of a network and of its untrained twin."""
    games = random_games(size, HELD_OUT["games"], seed=HELD_OUT["seed"], labels=True)
    assert games.legal is not None
    facts, twin = play_facts(model, games), play_facts(ToyTransformer(**model.shape, seed=1), games)
    legal = games.legal[:, :-1].sum(-1).double()
    return {
        "held_out": HELD_OUT,
        **facts,
        "floor": legal.log().mean().item(),
        "legal_share_of_twin": twin["legal_share"],
        "above_floor_of_twin": twin["above_floor"],
        "legal_share_of_a_uniform_guess": (legal / (size * size - 4)).mean().item(),
    }


@torch.no_grad()
def play_facts(model: nn.Module, games: Games) -> dict:
    """Of all prefixes of a move or more: how often the likeliest next move is legal, and the loss above its floor."""
    assert games.legal is not None
    tokens, legal = tokens_of(games.moves, games.size), games.legal[:, :-1][..., playable(games.size)]
    logits = torch.cat([model(part)[:, 1:, 1:].float() for part in tokens[:, :-1].split(250)])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 2:].flatten() - 1).double()
    return {
        "legal_share": likeliest_is_legal(logits, legal).double().mean().item(),
        "above_floor": (loss - legal.sum(-1).double().log().mean()).item(),
    }


def likeliest_is_legal(
    logits: Float[Tensor, "game ply move"], legal: Bool[Tensor, "game ply move"]
) -> Bool[Tensor, "game ply"]:
    return legal.gather(2, logits.argmax(-1, keepdim=True))[..., 0]
