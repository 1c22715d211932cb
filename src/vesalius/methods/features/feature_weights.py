"""Feature weights: what a feature is built from, read from the weights that build it.

The fifth argument of Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in), read as Voss et al. 2021
(Visualizing Weights, distill.pub/2020/circuits/visualizing-weights) do:

1. the feature's expanded weights on every channel of an earlier layer, each a signed map over positions; the heaviest
   inputs are drawn as what they are visualised by, with the map they are read with;
2. whether a few inputs hold the mass, and whether maps are smooth, against every unit of untrained twins, and the
   latter also against the same weights with the positions of each map shuffled;
3. whether the expansion can be trusted: how well it agrees with the gradients on pictures that fire the feature
   (1 exactly so, 0 not at all), how well these agree with each other, and how much weight of opposite sign cancels
   between paths that different gates open;
4. groups of inputs that are read alike, by one-sided NMF.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vesalius import figures
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature, neurons
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.visualization import visualise
from vesalius.weights.expanded import achievable_gradients, example_gradients, expanded_weights
from vesalius.weights.maps import mass, shuffled, smoothness, top_share
from vesalius.weights.neighbours import PIXELS, layer_before, unit_of
from vesalius.weights.nmf import one_sided_nmf
from vesalius.weights.untrained import untrained_weights


@dataclass(frozen=True)
class FeatureWeights(Result):
    """Weights are per unit of the source's activation; a mass is a sum of absolute weights."""

    feature: str
    source: str
    weights: Float[Tensor, "source row column"]
    inputs: list
    """The heaviest channels of the source, heaviest first."""
    names: list
    """What these are called."""
    pictures: UInt8[Tensor, "picture channel height width"] | None
    """Visualisations of the inputs, then of the feature; None if none were asked for."""
    share: float
    """Of the mass, what the inputs hold."""
    null_share: Float[Tensor, " unit"]
    """The same of the heaviest inputs of each unit of untrained twins."""
    smooth: float
    null_smooth: Float[Tensor, " unit"]
    shuffled_smooth: float
    """The largest of shuffled maps."""
    positive: float
    """Share of the mass that is positive."""
    cancelled: float
    """Of the mass of single paths, what cancels: 0 none, 1 all."""
    null_cancelled: float
    cosines: Float[Tensor, " example"]
    """Between the expanded weights and the gradients on each picture that fires the feature."""
    consistency: float | None
    """Length of the mean of these gradients over their mean length: 1 if they are all alike."""
    other_cosine: float | None
    """The mean size of the same cosine with weights of other units of the layer."""
    agreement: list | None
    """Mean of `cosines`, and its interval."""
    groups: Float[Tensor, "factor source"]
    group_maps: Float[Tensor, "factor row column"]
    explained: float
    choices: dict

    def headlines(self) -> list[Headline]:
        inputs = f"{len(self.inputs)} of {len(self.weights)} inputs"
        units = f"the largest of {len(self.null_share)} units of untrained twins"
        chance = self.null_share.max().item()
        rows = [
            Headline(
                f"share of the weight in {inputs}",
                self.share,
                chance,
                evidence=self.share > chance if len(self.inputs) < len(self.weights) else None,
                note=f"control: {units}; {self.positive:.0%} of the weight is positive",
            )
        ]
        if self.weights.shape[-1] > 1:
            chance = max(self.null_smooth.max().item(), self.shuffled_smooth)
            rows.append(
                Headline(
                    "smoothness of the maps",
                    self.smooth,
                    chance,
                    evidence=self.smooth > chance,
                    note=f"control: {units}, or of the same maps shuffled",
                )
            )
        if self.agreement is not None:
            mean, low, high = self.agreement
            rows.append(
                Headline(
                    f"cosine of these weights with the gradients on {len(self.cosines)} pictures that fire it",
                    mean,
                    self.other_cosine,
                    (low, high),
                    note="control: weights of other units; "
                    + ("the expansion misleads here" if high < 0.5 else "the expansion can be read"),
                )
            )
        rows.append(
            Headline(
                "share of the paths' weight that cancels",
                self.cancelled,
                self.null_cancelled,
                note="control: untrained twins; bounds for any setting of the gates",
            )
        )
        return rows

    def figure(self) -> Figure:
        total = self.weights.abs().sum().item() or 1.0
        shown = [None] * (len(self.inputs) + 1) if self.pictures is None else list(self.pictures)
        nodes = [
            {"id": name, "label": unit_of(name), "column": self.source, "picture": picture}
            for name, picture in zip(self.names, shown)
        ]
        nodes.append(
            {"id": "feature", "label": self.feature, "column": self.choices["target"], "picture": shown[-1]}
        )
        edges = [
            {
                "source": name, "target": "feature", "map": self.weights[channel],
                "weight": self.weights[channel].sum().item(),
                "label": _signed_shares(self.weights[channel], total),
            }
            for name, channel in zip(self.names, self.inputs)
        ]  # fmt: skip
        drawn = [
            figures.circuit(
                nodes,
                edges,
                title="The heaviest inputs",
                caption=f"How {self.feature} reads each: its weight at every position of its field, "
                f"{self.weights.shape[-1]} × {self.weights.shape[-1]}; shares of all its weight, + and −.",
            )
        ]
        if len(self.groups):
            drawn.append(
                figures.heatmap(
                    self.group_maps,
                    title="Groups of inputs that are read alike",
                    panels=[_heaviest(group, self.source) for group in self.groups],
                    value_label="weight",
                    caption=f"One-sided NMF: {self.explained:.0%} of the squared weight.",
                )
            )
        for value, null, title, label in (
            (
                self.share,
                self.null_share,
                "How few inputs hold the weight",
                "share of the weight in the heaviest inputs",
            ),
            (self.smooth, self.null_smooth, "How smooth the maps are", "smoothness"),
        ):
            drawn.append(
                figures.histogram(
                    {"units of untrained twins": null},
                    title=title,
                    x_label=label,
                    references=[("x", value, self.feature)],
                )
            )
        return figures.group(drawn, title=f"What {self.feature} is built from")


@method(needs=("images",))
def feature_weights(
    model: Model,
    feature: Feature,
    *,
    source: str = "",
    top: int = 8,
    factors: int = 2,
    images: str | Path | Images = "shapes",
    n_images: int = 32,
    steps: int = 64,
    seed: int = 0,
) -> FeatureWeights:
    """What a feature is built from: its weights on an earlier layer, everything between multiplied out.

    `source` is the earlier site, the layer before if left out (`:in` is the pixels); `top` inputs are drawn, with
    pictures of `steps` steps (0: none). The weights are orderly if no unit of untrained twins has as large a share
    in as few inputs, nor as smooth maps. Raises VesaliusError where the feature does not depend on the source.

    >>> from vesalius.testbed import curve_network
    >>> model = curve_network()
    >>> found = feature_weights(model, "curves[3]", source="small_curves", steps=0, n_images=8)
    >>> [str(model.module.units["small_curves"][channel]) for channel in found.inputs[:2]]
    ['small curve 225°', 'small curve 210°']
    """
    source = source or layer_before(model, feature.site)
    width = model.map_shape(feature.site)[0]
    direction = feature.vector(width)[None]
    weights = expanded_weights(model, source, feature.site, channels=direction)
    top = min(top, weights.shape[1])
    inputs = mass(weights[0]).topk(top).indices.tolist()

    null_share, null_smooth, null_cancelled = _twins(model, source, feature, top=top, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    orders = [smoothness(shuffled(weights, generator)).item() for _ in range(100)]
    lowest, highest = achievable_gradients(model, source, feature.site, channels=direction)

    pictures = open_images(images).take(n_images, seed=seed)
    gradients = _on_pictures(model, source, feature, pictures)
    cosines = cosine_similarity(gradients.flatten(1), weights.flatten(1))
    others = [unit for unit in range(0, width, math.ceil(width / 32)) if unit != feature.index]
    agreement = consistency = other_cosine = None
    if len(gradients):
        agreement = [cosines.mean().item(), *bootstrap(cosines, seed=seed)]
        consistency = (gradients.mean(0).norm() / gradients.flatten(1).norm(dim=1).mean()).item()
        rows = expanded_weights(model, source, feature.site, channels=others).flatten(1)
        other_cosine = cosine_similarity(gradients.mean(0).flatten()[None], rows).abs().mean().item()
    factored = one_sided_nmf(weights, min(factors, weights.shape[1]))

    names = _names(source, inputs, len(weights[0]))
    drawn = [] if source == PIXELS else [neurons(source)[channel] for channel in inputs]
    seen = None
    if steps:
        seen = visualise(model, [*drawn, feature], steps=steps, seed=seed).images
    if seen is not None and not drawn:
        seen = None
    return FeatureWeights(
        feature=str(feature),
        source=source,
        weights=weights[0],
        inputs=inputs,
        names=names,
        pictures=seen,
        share=top_share(weights, top).item(),
        null_share=null_share,
        smooth=smoothness(weights).item(),
        null_smooth=null_smooth,
        shuffled_smooth=max(orders),
        positive=(weights.clamp(min=0).sum() / weights.abs().sum().clamp(min=1e-30)).item(),
        cancelled=_cancelled(weights, lowest, highest),
        null_cancelled=null_cancelled,
        cosines=cosines,
        consistency=consistency,
        other_cosine=other_cosine,
        agreement=agreement,
        groups=factored.groups,
        group_maps=factored.maps[:, 0],
        explained=factored.explained,
        choices={
            "target": feature.site,
            "nonlinearities": "rectifiers left out, max pools averaged",
            "ranked by": "sum of absolute weights",
            "pictures": len(pictures),
            "steps": steps,
        },
    )


def _twins(
    model: Model, source: str, feature: Feature, *, top: int, seed: int
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"], float]:
    """Share of the heaviest inputs and smoothness for units of untrained twins; how much cancels in a few."""
    shares, smooths, cancelled = [], [], 0.0
    for twin, units, weights in progress(
        untrained_weights(model, source, feature, seed=seed), "untrained twins"
    ):
        if not shares:
            bounds = achievable_gradients(twin, source, feature.site, channels=units[:8])
            cancelled = _cancelled(weights[:8], *bounds)
        shares.append(top_share(weights, top))
        smooths.append(smoothness(weights))
    return torch.cat(shares), torch.cat(smooths), cancelled


def _on_pictures(
    model: Model, source: str, feature: Feature, pictures: Images
) -> Float[Tensor, "picture source row column"]:
    """The gradients on the pictures that fire the feature."""
    parts = []
    for _, pixels in progress(list(pictures.batches(model.pictures, batch=8)), "gradients on pictures"):
        values, gradients = example_gradients(model, source, feature, pixels.to(model.device, model.dtype))
        parts.append(gradients[values > 0])
    return torch.cat(parts)


def _cancelled(weights: Tensor, lowest: Tensor, highest: Tensor) -> float:
    """What of the mass of paths is not in the mass of their sum."""
    paths = (highest - lowest).sum().item()
    return max(0.0, 1 - weights.abs().sum().item() / paths) if paths else 0.0


def _names(source: str, channels: list[int], width: int) -> list[str]:
    if source == PIXELS and width == 3:
        return [("red", "green", "blue")[channel] for channel in channels]
    return [f"{'pixels' if source == PIXELS else source}[{channel}]" for channel in channels]


def _heaviest(group: Float[Tensor, " source"], source: str) -> str:
    channels = group.topk(min(4, len(group))).indices.tolist()
    return "group of " + ", ".join(map(unit_of, _names(source, channels, len(group))))


def _signed_shares(weights: Float[Tensor, "row column"], total: float) -> str:
    parts = (
        ("+", weights.clamp(min=0).sum().item() / total),
        ("−", -weights.clamp(max=0).sum().item() / total),
    )
    return " ".join(f"{sign}{share:.1%}" for sign, share in parts if share >= 0.0005)
