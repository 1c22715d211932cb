"""Feature splitting: what one latent of a small dictionary becomes in larger ones.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features). In dictionaries of
growing size of one site:

1. a latent of the smaller and one of the next larger are joined if they fire alike: the cosine of their values over
   the tokens where one of them fires, for either one, exceeds 0.4 in the larger of both ways of choosing;
2. the number of children of each latent, and the share of latents of the larger dictionary that have a parent;
3. the tokens at which most of a latent's activation lies: how many latents each size spends on one token.

Latents that fire in too few rows are left out, since any two of them can agree by chance. Controls: random-init twins
of the network through the same dictionaries, and the larger one's values at other contexts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary
from vesalius.dictionaries.codes import Codes
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.figures import Figure
from vesalius.latents.co_moments import CoFiring
from vesalius.latents.inputs import Inputs, activations_of, coded, inputs_of, reads
from vesalius.method import method, progress
from vesalius.metrics import family_wise, wilson
from vesalius.model import Model
from vesalius.result import Headline, Result

MAIN = 0.5
"""The share of a latent's activation that its main token has at least."""
DRAWN = 24
"""Latents of the smallest dictionary in the picture of the graph, at most."""


@dataclass(frozen=True)
class FeatureSplitting(Result):
    """Dictionaries from the smallest to the largest; a pair is two neighbours in that order."""

    sizes: list
    used: list
    """How many latents of each fired often enough."""
    edges: list
    """Of each pair, `pairs` [edge, 2] of parent and child and their `cosines`."""
    children: list
    """Of each pair, how many children each used latent of the smaller has."""
    parented: list
    """Of each pair, how many used latents of the larger have a parent."""
    shifted: list
    """The same with values at other contexts."""
    twins: Float[Tensor, "twin pair"]
    """The same, as shares, of random-init twins."""
    tokens: list
    """`[token, latents of each size that are mainly on it]`, those that split most first."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows = []
        for number, (parented, sizes) in enumerate(zip(self.parented, zip(self.sizes, self.sizes[1:]))):
            used = self.used[number + 1]
            if not used:
                continue
            low, high = wilson(parented, used, confidence=0.99)
            shifted = self.shifted[number] / used
            chance = max(family_wise(self.twins[:, number]), shifted)
            mean = self.children[number].float().mean().item() if len(self.children[number]) else 0.0
            rows.append(
                Headline(
                    f"share of {sizes[1]} latents with a parent among {sizes[0]}",
                    parented / used,
                    min(chance, 1.0),
                    (low, high),
                    low > chance,
                    f"{mean:.2f} children each; control: random-init twins; {shifted:.2f} at other contexts",
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
    twins: int = 3,
    seed: int = 0,
) -> FeatureSplitting:
    """Which latents of larger dictionaries descend from which of smaller ones, by what they fire for.

    `others` are dictionaries of the same site and of other sizes; `text` is what is read (None: the held-out sample).
    Latents that fire in fewer than `least` rows are left out, and two are joined above `threshold`. Splitting is
    evident if more of the larger dictionary's latents have a parent than on random-init twins of the network.
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
    seen = _Firing(model, opened, inputs)
    drawn = [
        _Firing(model.random_twin(seed + 1 + n), opened, inputs) for n in progress(range(twins), "twins")
    ]
    edges = [seen.edges(pair, threshold, least) for pair in range(len(others))]
    tokens = [] if inputs.ids is None else seen.tokens(model, least)
    return FeatureSplitting(
        sizes=seen.sizes,
        used=[int((counts >= least).sum()) for counts in seen.counts],
        edges=edges,
        children=[
            part["pairs"][:, 0].bincount(minlength=len(counts))[counts >= least]
            for part, counts in zip(edges, seen.counts)
        ],
        parented=[len(part["pairs"][:, 1].unique()) for part in edges],
        shifted=[
            len(seen.edges(pair, threshold, least, shifted=True)["pairs"][:, 1].unique())
            for pair in range(len(others))
        ],
        twins=torch.stack([twin.shares(threshold, least) for twin in drawn]),
        tokens=tokens,
        choices={
            "data": inputs.described,
            "edge": f"Joined above a cosine of {threshold} where one of two fires; {least} rows at least.",
        },
    )


class _Firing:
    """What dictionaries, sorted by size, do on one stream."""

    def __init__(self, model: Model, dictionaries: Sequence[Dictionary], inputs: Inputs) -> None:
        first = next(activations_of(model, reads(dictionaries[0]), inputs, batch=1)).rows.float().cpu()
        widths = [coded(one, first).width for one in dictionaries]
        self.dictionaries = [dictionaries[i] for i in sorted(range(len(widths)), key=widths.__getitem__)]
        self.sizes = sorted(widths)
        self.counts = [torch.zeros(size, dtype=torch.long) for size in self.sizes]
        pairs = list(zip(self.sizes, self.sizes[1:]))
        self.firing, self.shifted = ([CoFiring(*sizes) for sizes in pairs] for _ in range(2))
        self.masses: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.sizes]
        self.d_vocab = 0 if inputs.ids is None else int(inputs.ids.max()) + 1
        for examples, positions, rows in activations_of(model, reads(self.dictionaries[0]), inputs):
            rows = rows.float().cpu()
            codes = [_rectified(one, rows) for one in self.dictionaries]
            rolled = [_rectified(one, rows.roll(len(rows) // 2, 0)) for one in self.dictionaries[1:]]
            for pair in range(len(pairs)):
                self.firing[pair].add(codes[pair], codes[pair + 1])
                self.shifted[pair].add(codes[pair], rolled[pair])
            for number, one in enumerate(codes):
                self.counts[number] += one.latents.bincount(minlength=one.width)
                if inputs.ids is not None:
                    here = inputs.ids[examples, positions][one.rows]
                    self.masses[number] = [
                        _summed([*self.masses[number], (one.latents * self.d_vocab + here, one.values)])
                    ]

    def edges(self, pair: int, threshold: float, least: int, *, shifted: bool = False) -> dict[str, Tensor]:
        cosines = (self.shifted if shifted else self.firing)[pair].cosines()
        cosines[self.counts[pair] < least] = 0
        cosines[:, self.counts[pair + 1] < least] = 0
        pairs = (cosines > threshold).nonzero()
        return {"pairs": pairs, "cosines": cosines[pairs[:, 0], pairs[:, 1]]}

    def shares(self, threshold: float, least: int) -> Float[Tensor, " pair"]:
        """How many used latents of the larger dictionary have a parent."""
        parented = [
            len(self.edges(pair, threshold, least)["pairs"][:, 1].unique())
            for pair in range(len(self.firing))
        ]
        used = [max(int((counts >= least).sum()), 1) for counts in self.counts[1:]]
        return torch.tensor(parented) / torch.tensor(used)

    def tokens(self, model: Model, least: int) -> list[list]:
        """For each token, how many latents of each size have most of their activation there."""
        main = torch.zeros(len(self.sizes), self.d_vocab, dtype=torch.long)
        for number, ((keys, masses),) in enumerate(self.masses):
            latents, tokens = keys // self.d_vocab, keys % self.d_vocab
            total = torch.zeros(self.sizes[number]).index_add(0, latents, masses)
            chosen = (masses > MAIN * total[latents]) & (self.counts[number][latents] >= least)
            main[number] = tokens[chosen].bincount(minlength=self.d_vocab)
        order = main[-1].argsort(descending=True, stable=True)
        order = order[main[-1][order] > 0].tolist()
        return [[word, *main[:, token].tolist()] for word, token in zip(model.strings(order), order)]


def _rectified(dictionary: Dictionary, rows: Float[Tensor, "row width"]) -> Codes:
    codes = coded(dictionary, rows)
    kept = codes.values > 0
    counts = codes.rows[kept].bincount(minlength=len(codes))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Codes(starts, codes.latents[kept], codes.values[kept].float(), codes.width)


def _summed(parts: list[tuple[Tensor, Tensor]]) -> tuple[Int[Tensor, " key"], Float[Tensor, " key"]]:
    """Values of the same key added up."""
    keys, which = torch.cat([keys for keys, _ in parts]).unique(return_inverse=True)
    values = torch.cat([values for _, values in parts])
    return keys, values.new_zeros(len(keys)).index_add(0, which, values)
