"""A LAT scan: how strongly every layer reads a concept at every token of a text.

Linear Artificial Tomography of Zou et al. 2023 (Representation Engineering, arXiv 2310.01405): the activation at each
layer and token, projected on the layer's reading vector. The projection is put on the scale of the contrast pairs
themselves: 0 is half-way between the two classes' means, 1 the mean of the texts with the concept, -1 of those without.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.concepts.concept_vectors import ConceptActivations, concept_activations
from vesalius.concepts.readers import read_directions
from vesalius.data.pairs import open_pairs
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.model import Model
from vesalius.result import Headline, Result

TEXT = (
    "The film was wonderful. I loved every minute of it and we were all happy. But the food afterwards was terrible, "
    "and I hated the rude and nasty waiter."
)


@dataclass(frozen=True)
class LatScan(Result):
    """Readings `[layer, token]`: 1 as the texts with the concept, -1 as those without."""

    scores: Float[Tensor, "layer token"]
    random: Float[Tensor, "layer token"]
    """Along directions drawn at random, in standard deviations of the contrast pairs."""
    tokens: list
    accuracy: Float[Tensor, " layer"]
    """Of the reading vectors on held-out pairs."""
    choices: dict

    @property
    def best(self) -> int:
        """The layer of the best held-out accuracy."""
        return int(self.accuracy.argmax())

    def headlines(self) -> list[Headline]:
        row = self.scores[self.best]
        top, bottom = (self.tokens[int(number)].strip() for number in (row.argmax(), row.argmin()))
        return [
            Headline(
                f"spread of the reading over the tokens at layer {self.best}",
                row.std().item(),
                self.random[self.best].std().item(),
                note=f"highest at '{top}', lowest at '{bottom}'; reading_vectors says whether it means anything",
            )
        ]

    def figure(self) -> Figure:
        label = self.choices["concept"]
        at_best = {f"layer {self.best}": self.scores[self.best], "random": self.random[self.best]}
        words = [word.replace("\n", "⏎") for word in self.tokens]
        drawn = [
            figures.heatmap(
                self.scores.clamp(-3, 3),
                title=f"Reading {label}, layer by token",
                x=words,
                x_label="token",
                y_label="layer",
                value_label="reading",
                caption="1: as the texts with the concept; -1: as those without; cut at 3.",
            ),
            figures.tokens(
                words,
                [{"label": label, "layers": {name: row.clamp(-3, 3) for name, row in at_best.items()}}],
                title=f"The text by its reading at layer {self.best}",
                caption=f"The layer of the best held-out accuracy, {self.accuracy[self.best]:.2f}.",
            ),
        ]
        return figures.group(drawn, title=f"LAT scan: {label}")


@method(needs=("tokens", "tokenizer", "causal"))
def lat_scan(
    model: Model,
    *,
    text: str = TEXT,
    pairs: str | Path = "sentiment",
    template: str = "",
    reader: Literal[
        "difference_of_means", "pca", "logistic", "cluster_means", "mass_mean"
    ] = "difference_of_means",
    position: int = -1,
    n_pairs: int = 96,
    seed: int = 0,
) -> LatScan:
    """How strongly every layer reads a concept at every token of a text.

    Reading vectors are found from `pairs` as `reading_vectors` finds them. Control: directions drawn at random, centred
    and scaled on the same pairs. The first token is left out.

    Raises VesaliusError for a text that does not fit the context.
    """
    found = open_pairs(pairs).take(n_pairs, seed=seed)
    acts = concept_activations(model, found, template=template, position=position)
    ids = model.tokens(text)
    if ids.shape[1] < 2:
        raise VesaliusError(f"the text {text!r} is one token; expected at least two, the first is left out")
    with record(model, "resid_post@*", stop=True) as recorded:
        model(ids)
    values = recorded.stack("resid_post@*")[:, 0].cpu().float()
    values = values[:, 1:]  # the first token's activation is of another size altogether
    ours, random = (
        read_directions(acts.positive, acts.negative, reader=name, seed=seed) for name in (reader, "random")
    )
    return LatScan(
        _by_classes(values, acts, ours),
        _by_spread(values, acts, random),
        model.strings(ids[0])[1:],
        acts.right(reader, seed=seed).mean(0),
        {
            "concept": found.concept or found.name,
            "reader": reader,
            "position": position,
            "template": template or "plain",
            "scale": "±1 are the classes' means",
        },
    )


def _by_classes(
    values: Float[Tensor, "layer token d_model"],
    acts: ConceptActivations,
    directions: Float[Tensor, "layer d_model"],
) -> Float[Tensor, "layer token"]:
    """Projections, moved and scaled so that the two classes' means lie at 1 and -1."""
    along = [
        torch.einsum("nld,ld->nl", side.float(), directions).mean(0)
        for side in (acts.positive, acts.negative)
    ]
    middle, half = (along[0] + along[1]) / 2, (along[0] - along[1]) / 2
    return (torch.einsum("ltd,ld->lt", values, directions) - middle[:, None]) / half.clamp(min=1e-6)[:, None]


def _by_spread(
    values: Float[Tensor, "layer token d_model"],
    acts: ConceptActivations,
    directions: Float[Tensor, "layer d_model"],
) -> Float[Tensor, "layer token"]:
    """Projections in standard deviations of both classes together, from their mean."""
    along = torch.einsum("nld,ld->nl", torch.cat([acts.positive, acts.negative]).float(), directions)
    mean, sd = along.mean(0)[:, None], along.std(0).clamp(min=1e-6)[:, None]
    return (torch.einsum("ltd,ld->lt", values, directions) - mean) / sd
