"""How alike the layers of two networks are: every layer of one against every layer of the other, by five measures.

Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) is estimated without bias over minibatches of whole maps (Nguyen
et al. 2020, arXiv 2010.15327). SVCCA (Raghu et al. 2017), PWCCA (Morcos et al. 2018) and linear predictivity (Yamins
et al. 2014) compare maps averaged over the cells of a coarse grid, a sample for each picture and cell; RSA
(Kriegeskorte et al. 2008) compares pictures. Controls: random twins of the second network, which share its
architecture and so much of what any such network computes; and the same layers with the pictures exchanged.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.data.images import Images, open_images
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, require_finite
from vesalius.model import Model, load
from vesalius.representations import (
    canonical_correlations,
    cells,
    dissimilarity_correlations,
    gram,
    hsic,
    linear_cka,
    predictivity,
)
from vesalius.result import Headline, Result

MEASURES = ("CKA", "SVCCA", "PWCCA", "RSA", "predictivity")
GRID = 3
"""Cells along each side of a map."""
BATCH = 16


@dataclass(frozen=True)
class Similarity(Result):
    """Tables `[measure, layer, other layer]` in the order CKA, SVCCA, PWCCA, RSA, predictivity: 1 is alike, and what
    unrelated layers give is the control's to say."""

    layers: list
    other_layers: list
    other: str
    values: Float[Tensor, "measure layer other"]
    twins: Float[Tensor, "twin measure layer other"]
    """The same with random twins of the other network."""
    exchanged: Float[Tensor, "measure layer other"]
    """The same with the other network's pictures in another order."""
    cka_interval: list
    """Of the mean best CKA: over minibatches, from jackknife pseudo-values."""
    images: str

    def headlines(self) -> list[Headline]:
        rows = []
        for number, measure in enumerate(MEASURES):
            value = _best(self.values[number]).item()
            twins = family_wise(_best(self.twins[:, number]), level=0.01 / len(MEASURES))
            control = min(max(twins, _best(self.exchanged[number]).item()), 1.0)
            interval = tuple(self.cka_interval) if measure == "CKA" else None
            stands = (interval[0] if interval else value) > control
            partners = ", ".join(self.other_layers[i] for i in self.values[number].argmax(1).tolist())
            claim = f"{measure} of a layer with its best match in {self.other}, mean over layers"
            rows.append(
                Headline(claim, value, control, interval, stands, f"best matches in order: {partners}")
            )
        order = _rank_correlation(self.values[0].argmax(1).double())
        rows.append(Headline("rank correlation of depth with the depth of the best match by CKA", order))
        return rows

    def figure(self) -> Figure:
        twin = self.twins.mean(0)
        tables = [
            figures.heatmap(
                torch.stack([self.values[number], twin[number]]),
                title=measure,
                panels=[self.other, "its random twins"],
                x=self.other_layers,
                y=self.layers,
                x_label="layer of the other network",
                y_label="layer",
                value_label=measure,
                diverging=False,
            )
            for number, measure in enumerate(MEASURES)
        ]
        return figures.group(tables, title=f"Layers beside those of {self.other}", caption=self.images)


@method(needs=("images",))
@torch.no_grad()
def similarity(
    model: Model,
    *,
    other: str | Model = "",
    sites: list[str] | None = None,
    other_sites: list[str] | None = None,
    images: str | Images = "shapes",
    n_images: int = 128,
    twins: int = 4,
    seed: int = 0,
) -> Similarity:
    """Compare every layer of a network with every layer of another on the same pictures, by five measures.

    `other` is a model or its name; `sites` and the other's `other_sites` are the layers compared, the
    architecture's own if none are named. Each network sees the pictures through its own preprocessing, one batch at
    a time. Raises VesaliusError if there are fewer than 32 pictures or a layer gives NaN.
    """
    if not other:
        raise Inapplicable("it compares two networks; name the other one")
    if twins < 2:
        raise VesaliusError(f"similarity was given {twins} random twins; their spread needs 2 or more")
    second = load(other) if isinstance(other, str) else other
    pictures = open_images(images).take(n_images, seed=seed)
    if len(pictures) < 2 * BATCH:
        raise VesaliusError(f"similarity was given {len(pictures)} pictures; expected {2 * BATCH} or more")
    mine = _Layers(model, sites or model.layer_sites(), pictures)
    theirs = _Layers(second, other_sites or second.layer_sites(), pictures)
    random = [_Layers(second.random_twin(seed + 1 + twin), theirs.sites, pictures) for twin in range(twins)]
    values, exchanged, *nulls = mine.tables([theirs, theirs.exchanged(seed), *random])
    return Similarity(
        mine.sites,
        theirs.sites,
        second.name,
        values,
        torch.stack(nulls),
        exchanged,
        _interval(mine.hsic(theirs), seed),
        f"{mine.count} pictures, CKA on whole maps in batches of {BATCH}, the others on {GRID}×{GRID} cells",
    )


class _Layers:
    """What the layers of one network make of the pictures: Gram matrices by batch, and averages over cells."""

    def __init__(self, model: Model, sites: list[str], pictures: Images) -> None:
        self.sites = sites
        batches = list(_activations(model, sites, pictures))
        self.grams = [torch.stack(grams) for grams, _ in batches if len(grams[0]) >= 4]
        self.cells = [torch.cat(layer) for layer in zip(*(cells for _, cells in batches))]
        self.count = len(self.cells[0])

    def exchanged(self, seed: int) -> "_Layers":
        """The same layers as if the pictures had come in another order (batches exchanged within themselves)."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        other = copy(self)
        ranks = [order[: len(grams[0])].argsort() for grams in self.grams]
        other.grams = [grams[:, rank][:, :, rank] for grams, rank in zip(self.grams, ranks)]
        other.cells = [layer[order] for layer in self.cells]
        return other

    def hsic(self, other: "_Layers") -> tuple[Tensor, Tensor, Tensor]:
        """HSIC by batch: of each pair, of each layer with itself, and of each of the other's with itself."""
        pairs = zip(self.grams, other.grams)
        both = torch.stack([hsic(a, b) for a, b in pairs])
        first, second = (
            torch.stack([hsic(grams, grams).diagonal() for grams in side.grams]) for side in (self, other)
        )
        return both, first, second

    def tables(self, others: list["_Layers"]) -> list[Float[Tensor, "measure layer other"]]:
        """The five measures against each of several networks, what is to know of this one computed once."""
        theirs = [layer for other in others for layer in other.cells]
        samples, other_samples = ([layer.flatten(0, 1) for layer in side] for side in (self.cells, theirs))
        pictures, other_pictures = ([layer.flatten(1) for layer in side] for side in (self.cells, theirs))
        alignments = [linear_cka(*(part.sum(0) for part in self.hsic(other))) for other in others]
        rows = [
            torch.cat(alignments, 1),
            *canonical_correlations(samples, other_samples),
            dissimilarity_correlations(pictures, other_pictures),
            predictivity(samples, other_samples),
        ]
        return list(torch.stack(rows).float().split(len(others[0].sites), -1))


def _activations(
    model: Model, sites: list[str], pictures: Images
) -> Iterator[tuple[list[Tensor], list[Float[Tensor, "image cell unit"]]]]:
    """For every batch, each layer's Gram matrix, and its averages over cells."""
    batches = pictures.batches(model.pictures, batch=BATCH)
    for _, pixels in progress(batches, f"layers of {model.name}"):
        with record(model, sites, stop=True) as acts:
            model(pixels.to(device=model.device, dtype=model.dtype))
        layers = [require_finite(acts[site].float().cpu(), site) for site in sites]
        yield [gram(layer) for layer in layers], [cells(layer, GRID) for layer in layers]


def _interval(batches: tuple[Tensor, Tensor, Tensor], seed: int) -> list[float]:
    """Of the mean best CKA: a bootstrap of the pseudo-values that leaving out each batch in turn gives."""
    whole = _best(linear_cka(*(part.sum(0) for part in batches)))
    without = [
        _best(linear_cka(*(part.sum(0) - part[left] for part in batches))) for left in range(len(batches[0]))
    ]
    count = len(without)
    pseudo = torch.stack([count * whole - (count - 1) * one for one in without])
    return list(bootstrap(pseudo, seed=seed))


def _best(table: Float[Tensor, "*twin layer other"]) -> Float[Tensor, "*twin"]:
    """The mean over layers of the best match."""
    return table.amax(-1).mean(-1)


def _rank_correlation(partners: Float[Tensor, " layer"]) -> float:
    """Between the layers' order and that of their partners; 1 if depth maps to depth, nan for a single layer."""
    depth = torch.arange(len(partners)).double()
    ranks = torch.stack([depth, partners.argsort(stable=True).argsort().double()])
    return torch.corrcoef(ranks)[0, 1].item() if len(partners) > 1 else float("nan")
