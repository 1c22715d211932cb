"""Feature visualisation: pictures made to raise a feature, and what they do and do not show.

Olah, Mordvintsev & Schubert 2017 (Feature Visualization, distill.pub/2017/feature-visualization), the first
argument of Cammarata et al. 2020 (Curve Detectors, distill.pub/2020/circuits/curve-detectors):

1. a picture that raises the feature, several that do so and are made to differ, and one that lowers it;
2. how strongly: the largest response anywhere in a picture, before the nonlinearity, in standard deviations of the
   feature's responses at all positions of natural pictures; and the same for the best of those pictures;
3. what the same optimisation gets out of units of an untrained twin, in their own standard deviations;
4. in how many of the differing pictures no other unit of the site is raised more.

What the pictures share causes the feature to fire. That nothing else does, and that it happens in natural pictures,
they do not show; that any network's units can be driven beyond what natural pictures do, the twin does.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vesalius import figures
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.examples import activations, before_nonlinearity, of_feature
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, wilson
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.store.reducers import Moments
from vesalius.visualization.colour import measured, usual
from vesalius.visualization.optimise import visualise

Pictures = UInt8[Tensor, "picture channel height width"]


@dataclass(frozen=True)
class FeatureVisualization(Result):
    """Pictures of one feature; responses are in standard deviations above the mean over natural pictures."""

    feature: str
    site: str
    """Where responses are read: before the nonlinearity."""
    positive: UInt8[Tensor, "1 channel height width"]
    """One picture, made without regard to others."""
    diverse: UInt8[Tensor, "copy channel height width"]
    """Pictures made to differ from each other."""
    negative: UInt8[Tensor, "1 channel height width"]
    """A picture that lowers the feature."""
    natural: UInt8[Tensor, "example channel row column"]
    """The best natural pictures, best first."""
    untrained: UInt8[Tensor, "unit channel height width"]
    """Pictures made in the same way for units of an untrained twin."""
    responses: dict
    """Of each of these, one for each picture."""
    share: int
    """In how many of the diverse pictures no other unit of the site is raised more, in its own standard deviations."""
    units: int
    """How many units the site has."""
    interval: list
    """95% bootstrap interval of the mean response to the diverse pictures."""
    chance: float
    """What one in a hundred pictures made for units of untrained twins passes."""
    history: Float[Tensor, "step optimised"]
    """The objective of the positive picture and the diverse ones at every step, as transformed."""
    mean: float
    sd: float
    skipped: dict
    choices: dict

    def headlines(self) -> list[Headline]:
        diverse, best = self.responses["diverse"], self.responses["natural"].max().item()
        passes = self.interval[0] > self.chance
        rows = [
            Headline(
                "response to pictures made to raise it and to differ, sd",
                diverse.mean().item(),
                self.chance,
                (self.interval[0], self.interval[1]),
                passes,
                "control: pictures made for untrained units; what the pictures share causes it to fire",
            ),
            Headline(
                "response to the best natural picture, sd",
                best,
                note=f"of {self.choices['pictures']}; the optimised picture: {self.responses['positive'].item():.3g}",
            ),
            Headline(
                "share of these pictures that raise no other unit of the site more",
                self.share / len(diverse),
                1 / self.units,
                wilson(self.share, len(diverse)),
                note="control: chance",
            ),
            Headline("response to the picture made to lower it, sd", self.responses["negative"].item()),
        ]
        if self.skipped:
            rows.append(Headline("stopped early", "; ".join(f"{k}: {v}" for k, v in self.skipped.items())))
        return rows

    def figure(self) -> Figure:
        rows = [
            {
                "label": label,
                "pictures": getattr(self, name),
                "texts": [f"{value:.3g} sd" for value in self.responses[name].tolist()],
            }
            for name, label in (
                ("positive", "raises it"),
                ("diverse", "raise it, made to differ"),
                ("negative", "lowers it"),
                ("natural", "best natural pictures"),
                ("untrained", "untrained units"),
            )
        ]
        quilt = figures.gallery(
            rows,
            title=f"Pictures of {self.feature}",
            caption="Under each: its largest response, in standard deviations of responses to natural pictures. "
            "Untrained units in theirs.",
        )
        names = ["raises it", *[f"differing {number + 1}" for number in range(len(self.diverse))]]
        rise = figures.lines(
            list(range(len(self.history))),
            {name: self.history[:, number] for number, name in enumerate(names)},
            title="The objective while it is optimised",
            x_label="step",
            y_label=f"{self.choices['objective']} of {self.feature}",
        )
        return figures.group([quilt, rise], title=f"Feature visualisation of {self.feature}")


@method(needs=("images",))
def feature_visualization(
    model: Model,
    feature: Feature,
    *,
    images: str | Path | Images = "shapes",
    n_images: int = 64,
    objective: Literal["mean", "centre", "cosine"] = "mean",
    parametrisation: Literal["fourier", "pixel", "maco"] = "fourier",
    transforms: Literal["standard", "lucid", "oriented", "crops", "none"] = "standard",
    colours: Literal["imagenet", "measured"] = "imagenet",
    size: int | None = None,
    steps: int = 256,
    diverse: int = 4,
    variety: float = 0.5,
    untrained: int = 8,
    seed: int = 0,
) -> FeatureVisualization:
    """Pictures made to raise one feature, to lower it, and to raise it in different ways.

    `transforms` "oriented" leaves out rotation, which blurs a unit that stands for one orientation. `colours` are
    decorrelated as in ImageNet, or as `measured` in `images`. `variety` is the share of the objective that being all
    alike costs. `size` None is 128 pixels, or the network's own where that is smaller or fixed. The first headline
    has evidence if the whole interval over the `diverse` pictures is above what one in a hundred pictures of
    `untrained` units of a twin passes. Raises VesaliusError for an empty set of pictures, and for weights that give
    no finite numbers.
    """
    pictures = open_images(images).take(n_images, seed=seed)
    matrix = _matrix(model, colours, pictures)

    def made(network: Model, wanted: list[Feature], what: str, *, copies: int = 1, negative: bool = False):
        return visualise(
            network, wanted, copies=copies, variety=variety, negative=negative, size=size, steps=steps, seed=seed,
            colour=matrix, objective=objective, parametrisation=parametrisation, transforms=transforms,
            track=lambda passed: progress(passed, what),
        )  # fmt: skip

    read = before_nonlinearity(model, feature)
    raised = made(model, [feature], "a picture that raises it")
    differing = made(model, [feature], "pictures that differ", copies=diverse)
    lowered = made(model, [read], "a picture that lowers it", negative=True)
    twin, others = model.random_twin(seed + 1), _others(model, feature, untrained, seed)
    nulls = made(twin, others, "pictures of untrained units")

    units = [Feature(read.site, index) for index in range(model.map_shape(read.site)[0])]
    scale, natural = _measured(model, [read, *units], pictures)
    best = natural[:, 0].topk(min(4, len(pictures)))
    own = scale.responses(differing.images)
    null, _ = _measured(twin, [before_nonlinearity(twin, other) for other in others], pictures)
    responses = {
        "positive": scale.responses(raised.images)[:, 0],
        "diverse": own[:, 0],
        "negative": scale.responses(lowered.images, largest=False)[:, 0],
        "natural": best.values,
        "untrained": null.responses(nulls.images).diagonal().contiguous(),
    }
    shown = torch.stack([model.pictures.fit(pictures[number]) for number in best.indices.tolist()])
    return FeatureVisualization(
        feature=str(feature),
        site=read.site,
        positive=raised.images,
        diverse=differing.images,
        negative=lowered.images,
        natural=(shown * 255).round().to(torch.uint8),
        untrained=nulls.images,
        responses=responses,
        share=int((own[:, 0] >= own[:, 1:].amax(1) - 1e-4).sum()),
        units=len(units),
        interval=list(bootstrap(own[:, 0], seed=seed)),
        chance=family_wise(responses["untrained"][:, None]),
        history=torch.cat([raised.history, differing.history], 1),
        mean=scale.mean[0].item(),
        sd=scale.sd[0].item(),
        skipped=raised.skipped | differing.skipped | lowered.skipped,
        choices={
            "objective": objective,
            "parametrisation": parametrisation,
            "transforms": transforms,
            "colours": colours,
            "size": list(raised.settings["size"]),
            "steps": steps,
            "pictures": len(pictures),
            "data": pictures.hash,
            "response": "largest at any position",
        },
    )


def _matrix(model: Model, colours: str, pictures: Images) -> Float[Tensor, "colour channel"]:
    if colours == "imagenet":
        return usual(model.pictures.channels)
    return measured(pixels for _, pixels in pictures.batches(model.pictures))


def _others(model: Model, feature: Feature, count: int, seed: int) -> list[Feature]:
    """Units of the feature's site drawn at random; for a direction, random directions of its length."""
    width = model.map_shape(feature.site)[0]
    generator = torch.Generator().manual_seed(seed)
    if feature.read is None:
        drawn = torch.randperm(width, generator=generator)[:count].tolist()
        return [replace(feature, index=index, label="") for index in drawn]
    vectors = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)
    return [replace(feature, read=vector * feature.read.norm(), label="random") for vector in vectors]


@dataclass(frozen=True)
class _Scale:
    """The mean and standard deviation of features of one site over all positions of natural pictures."""

    model: Model
    features: list[Feature]
    mean: Float[Tensor, " feature"]
    sd: Float[Tensor, " feature"]

    def responses(self, images: Pictures, *, largest: bool = True) -> Float[Tensor, "picture feature"]:
        """The largest (or smallest) value of each feature anywhere in each picture, in standard deviations."""
        site = self.features[0].site
        values = _values(self.features, self.model.value_at(site, images.float() / 255))
        return self.standardised(values.amax(2) if largest else values.amin(2))

    def standardised(self, values: Float[Tensor, "picture feature"]) -> Float[Tensor, "picture feature"]:
        """0 for a feature that never varies."""
        distance = (values.double().cpu() - self.mean) / self.sd
        return torch.where(self.sd > 0, distance, 0.0).float()


def _measured(
    model: Model, features: list[Feature], pictures: Images
) -> tuple[_Scale, Float[Tensor, "picture feature"]]:
    """The scale of some features, and their responses to the pictures it was measured on."""
    moments, peaks = Moments(len(features)), []
    for numbers, (acts,) in activations([model], features[0].site, pictures):
        values = _values(features, acts)
        moments.add(values, numbers)
        peaks.append(values.amax(2))
    scale = _Scale(model, features, moments.mean, moments.sd)
    return scale, scale.standardised(torch.cat(peaks))


def _values(features: list[Feature], acts: Tensor) -> Float[Tensor, "picture feature position"]:
    return torch.cat([of_feature(feature, acts) for feature in features], 1)
