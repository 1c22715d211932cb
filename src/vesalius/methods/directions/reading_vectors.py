"""Reading vectors: the direction of a concept at every layer, and how well it tells held-out texts apart.

Linear Artificial Tomography of Zou et al. 2023 (Representation Engineering, arXiv 2310.01405): the network reads pairs
of texts that differ in one concept, and a reader finds the direction in which their activations differ. Their reader is
PCA; the difference of means is right wherever PCA is, and where the largest variance is not the concept as well, so
that it is the default here, and PCA is compared with it.

A direction that tells pairs apart is no evidence that the network knows the concept: the words themselves differ, and
a random network keeps them apart too. So the control is the same reader in random-init twins, beside random directions
and shuffled labels, and pairs that share a word or a statement are never split between fitting and testing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.concepts.concept_vectors import ConceptActivations, concept_activations, concept_vector, warning
from vesalius.data.pairs import open_pairs
from vesalius.dictionaries.control_vector import ControlVector
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap_band, family_wise
from vesalius.model import Model
from vesalius.result import Headline, Result

ReaderName = Literal[
    "difference_of_means", "pca", "pca_fixed_order", "logistic", "cluster_means", "mass_mean"
]


@dataclass(frozen=True)
class ReadingVectors(Result):
    """Directions by layer, as long as the difference of means, and accuracies in 0..1 on pairs held out."""

    directions: Float[Tensor, "layer d_model"]
    layers: list
    accuracy: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    twins: Float[Tensor, "twin layer"]
    random: Float[Tensor, "draw layer"]
    """Random directions, signed on the pairs the reader was fitted on."""
    shuffled: Float[Tensor, "draw layer"]
    chance: float
    """What the best layer of any of these passes once in a hundred times, and no less than twins' intervals."""
    agreement: Float[Tensor, " layer"]
    """Cosine of PCA's direction with the difference of means."""
    warning: str
    """Empty, or where the two disagree."""
    choices: dict
    origin: dict

    @property
    def best(self) -> int:
        """The place in `layers` of the best accuracy."""
        return int(self.accuracy.argmax())

    @property
    def control_vector(self) -> ControlVector:
        """All directions, to steer with or to export."""
        return ControlVector(dict(zip(self.layers, self.directions, strict=True)), **self.origin)

    def headlines(self) -> list[Headline]:
        best = self.best
        return [
            Headline(
                f"held-out accuracy of {self.origin['label']}, layer {self.layers[best]}, the best",
                self.accuracy[best].item(),
                self.chance,
                (self.low[best].item(), self.high[best].item()),
                self.low[best].item() > self.chance + self.choices["excess"],
                f"random-init twins {self.twins.amax(1).mean():.2f}, random directions "
                f"{self.random.amax(1).mean():.2f}, shuffled labels {self.shuffled.amax(1).mean():.2f} at their best",
            ),
            Headline(
                f"agreement of {self.choices['compared']} with the difference of means, least over layers",
                self.agreement.abs().min().item(),
                note=self.warning,
            ),
        ]

    def figure(self) -> Figure:
        label = self.origin["label"]
        nulls = {
            "random-init twin": self.twins,
            "random direction": self.random,
            "shuffled labels": self.shuffled,
        }
        drawn = [
            figures.lines(
                self.layers,
                {self.choices["reader"]: self.accuracy} | {n: v.mean(0) for n, v in nulls.items() if len(v)},
                title=f"Reading {label}: accuracy on held-out pairs",
                x_label="layer",
                y_label="share of pairs told the right way round",
                bands={self.choices["reader"]: (self.low, self.high)},
                caption=f"{self.choices['pairs']}; the best layer of a null passes {self.chance:.3f} once in 100.",
            ),
            figures.lines(
                self.layers,
                {self.choices["compared"]: self.agreement},
                title="Agreement with the difference of means",
                x_label="layer",
                y_label="cosine",
                caption=self.warning,
            ),
        ]
        return figures.group(drawn, title=f"Reading vectors: {label}")


@method(needs=("tokens", "tokenizer", "causal"))
def reading_vectors(
    model: Model,
    *,
    pairs: str | Path = "sentiment",
    template: str = "",
    reader: ReaderName = "difference_of_means",
    position: int = -1,
    layers: list[int] | None = None,
    n_pairs: int = 96,
    folds: int = 5,
    excess: float = 0.05,
    twins: int = 3,
    draws: int = 8,
    seed: int = 0,
) -> ReadingVectors:
    """The direction of a concept at every layer, and how well it tells held-out texts apart.

    `pairs` are a built-in concept or a file, read within `template` at one token `position` (-1: the last), at
    `layers` (None: all) and by the `reader` named. Accuracy is the share of pairs told the right way round by a
    direction fitted on the other groups, each pair held out once; 0.5 is a guess. Control: the same in `twins`
    random-init networks, `draws` random directions and as many shuffled labels; there is evidence if the best layer's
    interval lies by `excess` above the 1% level of all of them, which it cannot where a random network tells nearly
    all apart.

    Raises VesaliusError for pairs that do not align, one class only, a template that tokenises differently, or a
    position past the end.
    """
    found = open_pairs(pairs).take(n_pairs, seed=seed)

    def read(network: Model) -> ConceptActivations:
        return concept_activations(network, found, template=template, layers=layers, position=position)

    acts = read(model)
    right = _of_groups(acts.right(reader, folds=folds, seed=seed), found.groups)
    low, high = bootstrap_band(right, seed=seed)
    numbers = range(1, 1 + twins)
    told = [
        _of_groups(read(model.random_twin(seed + number)).right(reader, folds=folds, seed=seed), found.groups)
        for number in progress(numbers, "random-init twins")
    ]
    nulls = [
        [one.mean(0) for one in told],
        [acts.right("random", folds=folds, seed=seed + 100 * n).mean(0) for n in range(1, 1 + draws)],
        [acts.shuffled(seed + n).right(reader, folds=folds, seed=seed).mean(0) for n in range(1, 1 + draws)],
    ]
    stacked = [torch.stack(draw) if draw else torch.zeros(0, len(acts.layers)) for draw in nulls]
    levels = [family_wise(null) for null in stacked if len(null)]
    levels += [
        bootstrap_band(one, seed=seed)[1].max().item() for one in told
    ]  # twins see a sample of pairs too
    chance = min(max(levels, default=0.5), 1.0)
    compared = reader if reader.startswith("pca") else "pca"
    cosines = acts.agreement(compared, seed=seed)
    vector = concept_vector(model, acts, reader=reader, seed=seed)
    return ReadingVectors(
        torch.stack([vector.directions[layer] for layer in acts.layers]),
        acts.layers,
        right.mean(0),
        low,
        high,
        *stacked,
        chance,
        cosines,
        warning(cosines, acts.layers, reader=compared),
        {
            "reader": reader,
            "compared": compared,
            "template": template or "plain",
            "position": position,
            "excess": excess,
            "pairs": f"{len(found)} pairs in {len(set(found.groups))} groups",
            "sign": "towards the texts with the concept",
        },
        {
            "model": vector.model,
            "model_hash": vector.model_hash,
            "family": vector.family,
            "label": vector.label,
        },
    )


def _of_groups(right: Float[Tensor, "pair layer"], groups: tuple[str, ...]) -> Float[Tensor, "group layer"]:
    """The mean of each group, which is what is drawn again for an interval: its pairs are not independent."""
    names = sorted(set(groups))
    number = torch.tensor([names.index(group) for group in groups])
    total = torch.zeros(len(names), right.shape[1]).index_add(0, number, right)
    return total / number.bincount()[:, None]
