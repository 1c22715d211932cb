"""Feature splitting: what one latent of a small dictionary becomes in larger ones.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features). In dictionaries of
growing size of one site:

1. a latent of the larger has for its parent the one of the next smaller that fires most like it, if the cosine of
   their values over the tokens where one of them fires, the larger for either one, exceeds 0.4, and what all but 1% of
   the latents of random dictionaries reach: where the smaller one's latents fire often, 0.4 is no more than chance;
2. the number of children of each latent, and the share of latents of the larger dictionary that have a parent;
3. the tokens at which most of a latent's activation lies: how many latents each size spends on one token.

Latents that fire in too few rows are left out, since any two of them can agree by chance. Controls: random
dictionaries in the place of the larger one, as large and as sparse, and its own values at other contexts. (A twin of
the network is none: latents of like directions fire alike in any network.)
"""

from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary
from vesalius.dictionaries.codes import Codes
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.figures import Figure
from vesalius.latents.co_moments import CoFiring
from vesalius.latents.inputs import activations_of, coded, firing, inputs_of, random_dictionary, reads
from vesalius.method import method
from vesalius.metrics import family_wise, wilson
from vesalius.model import Model
from vesalius.result import Headline, Result

MAIN = 0.5
"""The share of a latent's activation that its main token has at least."""
CHANCE = 0.01
"""The share of latents of random dictionaries that has a parent, by what a parent is."""
DRAWN = 24
"""Latents of the smallest dictionary in the picture of the graph, at most."""


@dataclass(frozen=True)
class FeatureSplitting(Result):
    """Dictionaries from the smallest to the largest; a pair is two neighbours in that order."""

    sizes: list
    used: list
    """How many latents of each fired often enough."""
    floors: list
    """Of each pair, the cosine above which a parent is one."""
    edges: list
    """Of each pair, `pairs` [edge, 2] of parent and child and their `cosines`."""
    children: list
    """Of each pair, how many children each used latent of the smaller has."""
    parented: list
    """Of each pair, how many used latents of the larger have a parent."""
    shifted: list
    """The same with values at other contexts."""
    random: Float[Tensor, "draw pair"]
    """The same, as shares, of random dictionaries in the place of the larger."""
    tokens: list
    """`[token, latents of each size that are mainly on it]`, those that split most first."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows = []
        for number, (parented, sizes) in enumerate(zip(self.parented, pairwise(self.sizes))):
            used = self.used[number + 1]
            if not used:
                continue
            low, high = wilson(parented, used, confidence=0.99)
            shifted = self.shifted[number] / used
            chance = max(family_wise(self.random[:, number]), shifted)
            mean = self.children[number].float().mean().item() if len(self.children[number]) else 0.0
            rows.append(
                Headline(
                    f"share of {sizes[1]} latents with a parent among {sizes[0]}",
                    parented / used,
                    min(chance, 1.0),
                    (low, high),
                    low > chance,
                    f"{mean:.2f} children each, above {self.floors[number]:.2f}; control: random dictionaries",
                )
            )
        if not rows:
            note = "control: none is needed"
            rows.append(Headline("latents that fired often enough", 0, evidence=False, note=note))
        return rows

    def figure(self) -> Figure:
        counts = {
            f"{small} to {large}": children
            for small, large, children in zip(self.sizes, self.sizes[1:], self.children)
            if len(children)
        }
        drawn = []
        if counts:
            drawn.append(
                figures.histogram(
                    counts,
                    title="Children of a latent",
                    x_label="children",
                    bins=20,
                    caption=self.choices["edge"],
                )
            )
        if self.tokens:
            columns = ["token", *(f"of {size}" for size in self.sizes)]
            drawn.append(
                figures.table(columns, self.tokens[:40], title="Latents that are mainly on one token")
            )
        nodes, edges = self._graph()
        if edges:
            drawn.append(
                figures.graph(nodes, edges, title="The latents that split most, and what they become")
            )
        if not drawn:
            return figures.table(["latents"], [[0]], title="No latent fired often enough to be compared")
        return figures.group(drawn, title=f"Feature splitting: {', '.join(map(str, self.sizes))} latents")

    def _graph(self) -> tuple[list[dict], list[dict]]:
        """The three parents of most children, with all that descends from them."""
        first = self.edges[0]["pairs"]
        if not len(first):
            return [], []
        parents, counts = first[:, 0].unique(return_counts=True)
        shown = {(0, latent) for latent in parents[counts.argsort(descending=True, stable=True)[:3]].tolist()}
        nodes, edges = sorted(shown), []
        for number, part in enumerate(self.edges):
            for (parent, child), cosine in zip(part["pairs"].tolist(), part["cosines"].tolist()):
                if (number, parent) in shown and len(edges) < DRAWN:
                    edges.append((number, parent, child, cosine))
                    if (number + 1, child) not in shown:
                        shown.add((number + 1, child))
                        nodes.append((number + 1, child))
        return (
            [
                {"id": f"{column}/{latent}", "label": str(latent), "column": column}
                for column, latent in nodes
            ],
            [
                {"source": f"{n}/{parent}", "target": f"{n + 1}/{child}", "weight": cosine, "kind": "cosine"}
                for n, parent, child, cosine in edges
            ],
        )


@method()
@torch.no_grad()
def feature_splitting(
    model: Model,
    dictionary: Dictionary,
    *,
    others: list[str | Path | Dictionary] | None = None,
    text: str | None = None,
    images: str = "shapes",
    contexts: int = 64,
    n_images: int = 128,
    length: int = 128,
    threshold: float = 0.4,
    least: int = 10,
    draws: int = 3,
    seed: int = 0,
) -> FeatureSplitting:
    """Which latents of larger dictionaries descend from which of smaller ones, by what they fire for.

    `others` are dictionaries of the same site and of other sizes; `text` is what is read (None: the held-out sample).
    Latents that fire in fewer than `least` rows are left out, and a parent is one above `threshold`. Splitting is
    evident if more of the larger dictionary's latents have a parent than of `draws` random ones, or of its own values
    at other contexts.
    """
    if not others:
        raise Inapplicable("it compares dictionaries of several sizes; name the others")
    opened = [dictionary, *(model.dictionary(other) for other in others)]
    if len({reads(one) for one in opened}) > 1:
        raise VesaliusError(
            f"dictionaries of {', '.join(reads(one) for one in opened)} were given; expected one site"
        )
    inputs = inputs_of(
        model, text=text, images=images, contexts=contexts, n_images=n_images, length=length, seed=seed
    )
    sample = next(activations_of(model, reads(dictionary), inputs)).rows.float().cpu()
    widths = [coded(one, sample[:1]).width for one in opened]
    sizes, opened = zip(*sorted(zip(widths, opened), key=itemgetter(0)))
    random = [
        [random_dictionary(one, sample, seed=seed + 7919 + draw) for one in opened[1:]]
        for draw in range(draws)
    ]
    found, elsewhere, *chance = ([_Pair(*pair) for pair in pairwise(sizes)] for _ in range(2 + draws))
    tokens = [_Tokens(inputs.ids) for _ in sizes if inputs.ids is not None]
    for examples, positions, rows in activations_of(model, reads(dictionary), inputs):
        rows = rows.float().cpu()
        codes = [firing(one, rows) for one in opened]
        rolled = [firing(one, rows.roll(len(rows) // 2, 0)) for one in opened[1:]]
        larger = codes[1:], rolled, *([firing(one, rows) for one in ones] for ones in random)
        for pairs, coded_by in zip((found, elsewhere, *chance), larger):
            for pair, first, second in zip(pairs, codes, coded_by):
                pair.add(first, second)
        for one, seen in zip(codes, tokens):
            seen.add(examples, positions, one)
    used = [pair.used(least) for pair in found]
    reached = [
        torch.cat([torch.zeros(1), *(pair.best(least)[2] for pair in pairs)]) for pairs in zip(*chance)
    ]
    floors = [max(threshold, cosines.quantile(1 - CHANCE).item()) for cosines in reached]
    edges = [pair.edges(floor, least) for pair, floor in zip(found, floors)]
    return FeatureSplitting(
        sizes=list(sizes),
        used=[int(used[0][0].sum()), *(int(larger.sum()) for _, larger in used)],
        floors=floors,
        edges=edges,
        children=[
            part["pairs"][:, 0].bincount(minlength=len(smaller))[smaller]
            for part, (smaller, _) in zip(edges, used)
        ],
        parented=[len(part["pairs"]) for part in edges],
        shifted=[len(pair.edges(floor, least)["pairs"]) for pair, floor in zip(elsewhere, floors)],
        random=torch.tensor(
            [[pair.share(floor, least) for pair, floor in zip(pairs, floors)] for pairs in chance]
        ),
        tokens=_tokens(model, tokens, [used[0][0], *(larger for _, larger in used)]) if tokens else [],
        choices={
            "data": inputs.described,
            "edge": f"The best parent, above a cosine of {threshold} and of random ones; {least} rows at least.",
        },
    )


class _Pair:
    """How the latents of two dictionaries fire together."""

    def __init__(self, smaller: int, larger: int) -> None:
        self.firing = CoFiring(smaller, larger)
        self.counts = [torch.zeros(size, dtype=torch.long) for size in (smaller, larger)]

    def add(self, *codes: Codes) -> None:
        self.firing.add(*codes)
        for count, one in zip(self.counts, codes):
            count += one.latents.bincount(minlength=one.width)

    def used(self, least: int) -> tuple[Bool[Tensor, " smaller"], Bool[Tensor, " larger"]]:
        return self.counts[0] >= least, self.counts[1] >= least

    def best(
        self, least: int
    ) -> tuple[Int[Tensor, " child"], Int[Tensor, " child"], Float[Tensor, " child"]]:
        """The used latents of the larger, which of the smaller fires most like each, and how much."""
        smaller, larger = self.used(least)
        best, parents = self.firing.cosines().where(smaller[:, None], 0).max(0)
        children = larger.nonzero()[:, 0]
        return children, parents[children], best[children]

    def edges(self, floor: float, least: int) -> dict[str, Tensor]:
        children, parents, cosines = self.best(least)
        kept = cosines > floor
        return {"pairs": torch.stack([parents[kept], children[kept]], 1), "cosines": cosines[kept]}

    def share(self, floor: float, least: int) -> float:
        """How many used latents of the larger have a parent."""
        return len(self.edges(floor, least)["pairs"]) / max(int(self.used(least)[1].sum()), 1)


class _Tokens:
    """How much of the activation of each latent lies on which token."""

    def __init__(self, ids: Int[Tensor, "example position"]) -> None:
        self.ids, self.d_vocab = ids, int(ids.max()) + 1
        self.keys, self.masses = torch.zeros(0, dtype=torch.long), torch.zeros(0)

    def add(self, examples: Int[Tensor, " row"], positions: Int[Tensor, " row"], codes: Codes) -> None:
        keys = codes.latents * self.d_vocab + self.ids[examples, positions][codes.rows]
        self.keys, which = torch.cat([self.keys, keys]).unique(return_inverse=True)
        masses = torch.cat([self.masses, codes.values])
        self.masses = masses.new_zeros(len(self.keys)).index_add(0, which, masses)

    def mainly(self, used: Bool[Tensor, " latent"]) -> Int[Tensor, " token"]:
        """For each token, how many latents have most of their activation there."""
        latents, tokens = self.keys // self.d_vocab, self.keys % self.d_vocab
        total = torch.zeros(len(used)).index_add(0, latents, self.masses)
        chosen = (self.masses > MAIN * total[latents]) & used[latents]
        return tokens[chosen].bincount(minlength=self.d_vocab)


def _tokens(model: Model, seen: list[_Tokens], used: list[Bool[Tensor, " _"]]) -> list[list]:
    """The tokens that are the main one of a latent of the largest, and of how many of each size."""
    main = torch.stack([tokens.mainly(which) for tokens, which in zip(seen, used)])
    order = main[-1].argsort(descending=True, stable=True)
    order = order[main[-1][order] > 0].tolist()
    return [[word, *main[:, token].tolist()] for word, token in zip(model.strings(order), order)]
