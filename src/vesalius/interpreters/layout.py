"""Which pieces of text a feature is explained with, and which others the explanation is scored on.

As in Bricken et al. 2023 (transformer-circuits.pub/2023/monosemantic-features): 49 pieces of 9 tokens to explain, 10 of
the highest activations, 2 of each of 12 intervals, 5 at random and 10 elsewhere with the token it is highest on; 60 to
score, 6, 2 of each interval, 10 and 20. Every second context is for explaining and the others for scoring, so that
they share nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.interpreters.snippets import LEVELS, Snippet

INTERVALS = 12
WINDOW = 9
EXPLAINED = {"top": 10, "interval": 2, "random": 5, "token": 10}
"""How many of each; of every interval so many."""
SCORED = {"top": 6, "interval": 2, "random": 10, "token": 20}


@dataclass(frozen=True)
class Pieces:
    """Windows of contexts, `WINDOW` tokens each."""

    contexts: Int[Tensor, " piece"]
    starts: Int[Tensor, " piece"]
    weights: Float[Tensor, " piece"]
    """Importance: 1 of a random piece; of others, how often the feature is as active as in it."""

    def __len__(self) -> int:
        return len(self.contexts)

    def of(self, table: Tensor) -> Tensor:
        """The part of a table `[context, position]` that each shows."""
        return table[self.contexts[:, None], self.starts[:, None] + torch.arange(WINDOW)]


@dataclass(frozen=True)
class Layout:
    """Of one feature."""

    explained: Pieces
    scored: Pieces
    silent: Pieces
    """Pieces in which it is never active, as many as active ones are scored."""


def layout_of(
    values: Float[Tensor, "context pos"],
    ids: Int[Tensor, "context pos"],
    counts: Bool[Tensor, "context pos"],
    *,
    generator: torch.Generator,
) -> Layout:
    """Drawn for one feature; fewer pieces where there are fewer contexts, or intervals without activations."""
    values = torch.where(counts, values, 0.0)
    chosen = [
        _drawn(values, ids, counts, half, wanted, generator) for half, wanted in ((0, EXPLAINED), (1, SCORED))
    ]
    scored = chosen[1]
    active = int((scored.of(values) > 0).any(1).sum())
    return Layout(chosen[0], scored, _silent(values, counts, active, generator))


def snippets_of(
    pieces: Pieces, values: Float[Tensor, "context pos"], tokens: Sequence[Sequence[str]]
) -> tuple[Snippet, ...]:
    """With activations as levels: 0 where silent, 1 to 9 up to the maximum of all contexts."""
    top = values.max().clamp(min=1e-30)
    levels = (pieces.of(values) / top * (LEVELS - 1)).ceil().clamp(0, LEVELS - 1).int()
    return tuple(map(Snippet, texts_of(pieces, tokens), map(tuple, levels.tolist())))


def texts_of(pieces: Pieces, tokens: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The tokens of each."""
    places: list[tuple[int, int]] = list(zip(pieces.contexts.tolist(), pieces.starts.tolist()))
    return [tuple(tokens[context][start : start + WINDOW]) for context, start in places]


def _drawn(
    values: Tensor, ids: Tensor, counts: Tensor, half: int, wanted: dict[str, int], generator: torch.Generator
) -> Pieces:
    """The pieces of every second context."""
    mine = torch.zeros_like(counts)
    mine[half::2] = counts[half::2]
    top = values.max()
    interval = (values / top.clamp(min=1e-30) * INTERVALS).ceil().long().clamp(0, INTERVALS)  # 0 is silent
    best = torch.where(mine, values, 0.0).max(1)
    order = best.values.argsort(descending=True, stable=True)[: wanted["top"]]
    order = order[best.values[order] > 0]
    tops = list(zip(order.tolist(), best.indices[order].tolist()))
    levels = [
        _some(mine & (interval == level), wanted["interval"], generator) for level in range(1, INTERVALS + 1)
    ]
    token = ids.flatten()[values.argmax()]
    elsewhere = _some(mine & (ids == token), wanted["token"], generator)
    pieces = [("other", place) for place in chain(tops, *levels, elsewhere)]
    total = wanted["random"] + len(pieces)
    anywhere = [("random", place) for place in _some(mine, 2 * total, generator)]

    counted = counts.sum().clamp(min=1)
    share = torch.bincount(interval[counts], minlength=INTERVALS + 1) / counted
    density = 1 - share[0]
    first, last = int(counts.float().argmax(1).min()), values.shape[1] - WINDOW
    seen: dict[tuple[int, int], float] = {}
    for kind, (context, centre) in chain(anywhere[: wanted["random"]], pieces, anywhere[wanted["random"] :]):
        if len(seen) == total:
            break
        weight = 1.0 if kind == "random" else float(share[interval[context, centre]] * density)
        seen.setdefault((context, max(first, min(centre - WINDOW // 2, last))), weight)
    places = torch.tensor(list(seen)).reshape(-1, 2)
    return Pieces(places[:, 0], places[:, 1], torch.tensor(list(seen.values())))


def _silent(values: Tensor, counts: Tensor, count: int, generator: torch.Generator) -> Pieces:
    """At random among the contexts to score."""
    windows = ((values > 0) | ~counts).unfold(1, WINDOW, 1).any(2)
    windows[::2] = True
    places = torch.tensor(_some(~windows, count, generator)).reshape(-1, 2).long()
    return Pieces(places[:, 0], places[:, 1], torch.ones(len(places)))


def _some(mask: Bool[Tensor, "context pos"], count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    places = mask.nonzero()
    chosen = torch.randperm(len(places), generator=generator)[:count]
    return [(context, position) for context, position in places[chosen].tolist()]
