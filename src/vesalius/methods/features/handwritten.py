"""A family of curve detectors written by hand, beside a natural one and in its place.

The last of the seven arguments (Cammarata et al. 2021, Curve Circuits, distill.pub/2020/circuits/curve-circuits; Olah
et al. 2020, Zoom In, doi 10.23915/distill.00024.001): whoever claims to know what a family computes can write it. The
handwritten network (`vesalius.testbed.curve_network`, its weights from rules alone) is told of the natural one no
more than which way each unit faces and how large the curves are, both measured with drawn curves. Compared are

1. pictures made to raise the units, side by side;
2. responses to drawn curves of every orientation and radius, and the tuning of the whole family;
3. weights from the layer before, over the difference of orientation;
4. saliency (the gradient's size, pixel by pixel) on the pictures that raise the feature most;
5. surgery: the natural units are ablated, and the handwritten put in their place, of the same mean and sd. The
   recovered fraction is (m_hand - m_ablated) / (m_original - m_ablated). Two controls do the same: handwritten
   units dealt to the wrong natural ones, and units of an untrained twin of the handwritten network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vesalius import figures, tuning
from vesalius.access import record
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.drawn_curves import drawn_curves, elsewhere, nearest
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import family_wise
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.rules import CURVES, Unit
from vesalius.saliency import alike, saliency, seen
from vesalius.surgery import Pixels, Transplant, losses, outputs, recovered, transplant
from vesalius.testbed import curve_network
from vesalius.testbed.curve_network import CurveNetwork
from vesalius.visualization import visualise
from vesalius.weights.expanded import expanded_weights
from vesalius.weights.orientation_profile import STEP, likeness, orientation_profile

LAYER, BEFORE = "curves", "small_curves"
"""The handwritten family, and the layer it is built from."""
ECHO = 0.7
"""A unit of the layer before that answers the opposite curve more than this has no orientation to speak of."""
ORIENTED = 24
"""Small curves come first in the layer that the handwritten family is built from."""
DRAWN, DRAWS, BATCH, SHUFFLES = 4, 4, 16, 100


@dataclass(frozen=True)
class Handwritten(Result):
    """The natural family first, the handwritten one second, where there are two of anything."""

    feature: str
    site: str
    units: list
    """The natural units, the feature first."""
    orientations: list
    """Which way each faces, degrees."""
    radius: float
    """Of the curves they like best, px."""
    metric: str
    loss: dict
    """Mean loss by metric: `original`, `ablated`, `handwritten`."""
    recovered: float | None
    """None where ablating the units costs nothing."""
    interval: list
    dealt: Float[Tensor, " draw"]
    """What handwritten units recover that face elsewhere."""
    untrained: Float[Tensor, " draw"]
    """And units of untrained twins of the handwritten network."""
    angles: Float[Tensor, " angle"]
    radii: Float[Tensor, " radius"]
    heatmaps: Float[Tensor, "family radius angle"]
    """The feature's responses to drawn curves in shares of its largest, the mean over looks."""
    curves: Float[Tensor, "family unit angle"]
    """Tuning of all units, the mean over radii and looks, in shares of each one's largest."""
    alike: Float[Tensor, " unit"]
    """Correlation of each unit's responses to drawn curves with its handwritten counterpart's."""
    unlike: float
    """The mean of the same with counterparts that face elsewhere."""
    profile: Float[Tensor, "family difference"]
    """Mean weight from the layer before at 0, 15 … 180 degrees of difference, the largest size being 1; or empty."""
    weights: dict
    """`{"correlation", "shuffled", "source", "pairs"}`, or empty."""
    examples: UInt8[Tensor, "example channel side side"]
    saliency: UInt8[Tensor, "family example 1 side side"]
    saliency_alike: float
    saliency_unlike: float
    """Correlation of the two saliencies, and with that of the handwritten unit that faces the other way."""
    drawn: list
    """Which of the units were visualised."""
    pictures: list
    """Pictures made to raise them, `[unit channel height width]` for each family."""
    choices: dict

    @property
    def chance(self) -> float:
        """What the better control recovers once in a hundred times; what is below -1 is as bad as -1."""
        return max(family_wise(control.clamp(min=-1)) for control in (self.dealt, self.untrained))

    def headlines(self) -> list[Headline]:
        lost = "share of errors" if self.metric == "accuracy" else self.metric
        note = (
            f"{len(self.units)} units, {self.choices['ablation']} ablation; {lost}: original "
            f"{self.loss['original']:.3g}, ablated {self.loss['ablated']:.3g}, "
            f"handwritten {self.loss['handwritten']:.3g}"
        )
        claim = "recovered by the handwritten family"
        if self.recovered is None:
            rows = [Headline(claim, "nothing was lost", None, None, False, note)]
        else:
            evidence = self.interval[0] > max(self.chance, 0.0)
            rows = [Headline(claim, self.recovered, self.chance, tuple(self.interval), evidence, note)]
        rows.append(Headline("responses to drawn curves, correlation", self.alike.mean().item(), self.unlike))
        if self.weights:
            rows.append(
                Headline(
                    "weights over the difference of orientation, correlation",
                    self.weights["correlation"],
                    self.weights["shuffled"],
                    note=f"from {self.weights['pairs']} pairs with {self.weights['source']}; "
                    "control: pairs shuffled, 99 in 100",
                )
            )
        rows.append(Headline("saliency, correlation", self.saliency_alike, self.saliency_unlike))
        return rows

    def figure(self) -> Figure:
        names = ("natural", "handwritten")
        drawn = [
            figures.gallery(
                [{"label": name, "pictures": pictures} for name, pictures in zip(names, self.pictures)],
                title="Made to raise each unit",
                columns=[f"{self.site}[{unit}]" for unit in self.drawn],
            ),
            figures.heatmap(
                self.heatmaps,
                title=f"{self.feature} and its counterpart, shown drawn curves",
                panels=names,
                x=[f"{angle:g}" for angle in self.angles.tolist()],
                y=[f"{radius:.3g}" for radius in self.radii.tolist()],
                x_label="orientation, degrees",
                y_label="radius, px",
                value_label="share of its largest response",
                diverging=False,
                caption=f"Correlation {self.alike[0]:.2f}; facing elsewhere {self.unlike:.2f} on average.",
            ),
            *(
                figures.tuning(
                    self.angles,
                    {f"{unit}": curve for unit, curve in zip(self.units, curves)},
                    title=f"Tuning of the {name} family",
                    value_label="share of its largest response",
                )
                for name, curves in zip(names, self.curves)
            ),
        ]
        if self.weights:
            published = torch.tensor(CURVES) / max(map(abs, CURVES))
            drawn.append(
                figures.lines(
                    [15 * step for step in range(len(CURVES))],
                    {**dict(zip(names, self.profile)), "published (handwritten)": published},
                    title=f"Weights {self.weights['source']} → {self.site}",
                    x_label="difference of orientation, degrees",
                    y_label="mean weight, largest = 1",
                    caption=f"Correlation {self.weights['correlation']:.2f}; pairs shuffled, 99 in 100 "
                    f"below {self.weights['shuffled']:.2f}.",
                )
            )
        seen = [{"label": "picture", "pictures": self.examples}]
        seen += [{"label": f"{name}, saliency", "pictures": maps} for name, maps in zip(names, self.saliency)]
        drawn.append(figures.gallery(seen, title="What raises them in pictures"))
        if self.recovered is not None:
            controls = [part.clamp(min=-1) for part in (self.dealt, self.untrained)]
            ranges = [tuple(self.interval), *((part.min().item(), part.max().item()) for part in controls)]
            drawn.append(
                figures.bars(
                    ["handwritten", "facing elsewhere", "untrained"],
                    {"recovered": [self.recovered, *(part.mean().item() for part in controls)]},
                    title=f"Surgery: of what {len(self.units)} ablated units cost, recovered",
                    y_label="fraction recovered",
                    intervals={"recovered": ranges},
                    caption="Interval over pictures; of the controls, the range of their draws. "
                    "A control that does more harm than ablation again is drawn at -1.",
                )
            )
        return figures.group(drawn, title=f"{self.feature}, natural and handwritten")


@method(needs=("images", "conv"))
def handwritten(
    model: Model,
    feature: Feature,
    *,
    others: list[str] | None = None,
    ablation: Literal["mean", "zero"] = "mean",
    metric: Literal["auto", "accuracy", "divergence", "cosine"] = "auto",
    images: str | Path | Images = "shapes",
    n_images: int = 64,
    steps: int = 128,
    seed: int = 0,
) -> Handwritten:
    """A family of curve detectors written by hand, compared with a feature's own and put in its place.

    `others` are the addresses of the rest of the family (None: units of the layer that answer drawn curves as the
    feature does, turned). Ablated units are held at their mean; at zero, most of what any unit of the same mean
    recovers is that mean, as the controls then show. The `metric` is accuracy where the pictures have the
    network's labels, else the divergence of its output from the original in nats, else 1 - cosine. Half of the
    pictures calibrate the handwritten units, the rest is measured. `steps` is how long pictures are optimised.
    Raises VesaliusError for a feature that is no unit or has no maps, and for fewer than four pictures.

    >>> from vesalius.testbed import curve_network
    >>> result = handwritten(curve_network(), "curves[3]", n_images=16, steps=2)
    >>> len(result.units), round(result.recovered, 2)
    (24, 1.0)
    """
    if feature.index is None or feature.read is not None or len(model.map_shape(feature.site)) != 3:
        raise VesaliusError(f"{feature} is not a channel of maps; expected a unit, as in 'mixed3b[379]'")
    pixels, labels = _pictures(model, images, n_images, seed)
    site, written, generator = feature.site, curve_network(), torch.Generator().manual_seed(seed)
    natural = drawn_curves(model, site)
    family = _family(model, feature, others) or natural.family(feature.index)
    orientations, radius = natural.facing[family].tolist(), natural.radius(family)
    magnified = drawn_curves(written, LAYER).radius(range(len(_units(written, LAYER)))) / radius
    own = drawn_curves(written, LAYER, radii=natural.radii, magnified=magnified)
    facing = [unit.facing for unit in _units(written, LAYER)]
    counterparts = nearest(orientations, facing)
    dealt = [elsewhere(orientations, facing, generator) for _ in range(DRAWS)]

    first = len(pixels) // 2
    calibration, measured = pixels[:first], pixels[first:]
    labels = None if labels is None else labels[first:]

    def placed(network: Model, units: list[int]) -> Transplant:
        return transplant(
            model, site, family, pixels=calibration, written=network, written_site=LAYER,
            written_units=units, magnified=magnified,
        )  # fmt: skip

    hand = placed(written, counterparts)
    instead = {
        "original": None,
        "ablated": _held(model, site, family, calibration, ablation),
        "handwritten": hand,
    }
    instead |= {f"dealt {n}": placed(written, units) for n, units in enumerate(dealt)}
    instead |= {
        f"untrained {n}": placed(written.random_twin(seed + 1 + n), counterparts) for n in range(DRAWS)
    }
    given = {
        name: torch.cat([outputs(model, site, family, part, instead=what) for part in measured.split(BATCH)])
        for name, what in progress(list(instead.items()), "surgery")
    }
    chosen = _metric(metric, given["original"], labels)
    loss = {name: losses(out, given["original"], metric=chosen, labels=labels) for name, out in given.items()}
    costly = loss["ablated"].mean() > loss["original"].mean()
    shares = {name: recovered(loss["original"], loss["ablated"], loss[name], seed=seed) for name in instead}

    profile, weights = _weights(model, site, family, orientations, written, counterparts, generator)
    opposite = placed(written, nearest([angle + 180 for angle in orientations], facing))
    examples, salient, same, other = _saliency(model, feature, pixels, hand, opposite)
    shown = list(range(0, len(family), max(1, len(family) // DRAWN)))[:DRAWN]
    settings = {"objective": "centre", "transforms": "oriented", "steps": steps, "seed": seed}
    pictures = [
        visualise(network, [f"{at}[{units[number]}]" for number in shown], **settings).images
        for network, at, units in ((model, site, family), (written, LAYER, counterparts))
    ]
    return Handwritten(
        feature=str(feature),
        site=site,
        units=family,
        orientations=orientations,
        radius=radius,
        metric=chosen,
        loss={name: loss[name].mean().item() for name in ("original", "ablated", "handwritten")},
        recovered=shares["handwritten"][0] if costly else None,
        interval=list(shares["handwritten"][1]) if costly else [],
        dealt=_first(shares, "dealt") if costly else torch.zeros(0),
        untrained=_first(shares, "untrained") if costly else torch.zeros(0),
        angles=tuning.angles(natural.curves.shape[1]),
        radii=natural.radii,
        heatmaps=torch.stack([natural.heatmaps[family[0]], own.heatmaps[counterparts[0]]]),
        curves=torch.stack([natural.curves[family], own.curves[counterparts]]),
        alike=natural.correlation(family, own, counterparts),
        unlike=torch.stack([natural.correlation(family, own, units) for units in dealt]).mean().item(),
        profile=profile,
        weights=weights,
        examples=examples,
        saliency=salient,
        saliency_alike=same,
        saliency_unlike=other,
        drawn=[family[number] for number in shown],
        pictures=pictures,
        choices={
            "ablation": ablation,
            "calibration": "mean and sd of each unit",
            "counterparts": [str(_units(written, LAYER)[unit]) for unit in counterparts],
            "magnified": magnified,
            "n_images": len(pixels),
        },
    )


def _pictures(
    model: Model, source: str | Path | Images, n_images: int, seed: int
) -> tuple[Float[Tensor, "picture channel height width"], Int[Tensor, " picture"] | None]:
    """Pictures as the network reads them, and their classes if all are among the network's labels."""
    pictures = open_images(source).take(n_images, seed=seed)
    batches = list(pictures.batches(model.pictures))
    pixels = torch.cat([part for _, part in batches]).to(model.device, model.dtype)
    if len(pixels) < 4:
        raise VesaliusError(f"{len(pixels)} pictures can be read; expected 4 or more")
    names = [pictures.classes[n] for numbers, _ in batches for n in numbers] if pictures.classes else [""]
    if not set(names) <= set(model.labels):
        return pixels, None
    return pixels, torch.tensor([model.labels.index(name) for name in names])


def _family(model: Model, feature: Feature, others: list[str] | None) -> list[int]:
    """The feature and the units named with it; empty if none were."""
    named = [model.feature(name) for name in others or []]
    wrong = [str(one) for one in named if one.site != feature.site or one.read is not None]
    if wrong:
        raise VesaliusError(f"{wrong[0]} is not a unit of '{feature.site}'; expected units of one layer")
    units = [one.index for one in (feature, *named) if one.index is not None]
    return list(dict.fromkeys(units)) if named else []


def _units(written: Model, layer: str) -> list[Unit]:
    assert isinstance(written.module, CurveNetwork)
    return written.module.units[layer]


def _held(model: Model, site: str, units: list[int], pixels: Tensor, ablation: str) -> Float[Tensor, " unit"]:
    return model.value_at(site, pixels)[:, units].mean((0, 2, 3)) * (ablation == "mean")


def _metric(metric: str, original: Tensor, labels: Tensor | None) -> str:
    if metric == "accuracy" and labels is None:
        raise VesaliusError(
            "the pictures do not have the network's labels; expected metric 'divergence' or 'cosine'"
        )
    if metric != "auto":
        return metric
    return "accuracy" if labels is not None else "divergence" if original.dim() == 2 else "cosine"


def _first(shares: dict, name: str) -> Float[Tensor, " draw"]:
    return torch.tensor([share for key, (share, _) in shares.items() if key.startswith(name)])


def _weights(
    model: Model,
    site: str,
    family: list[int],
    orientations: list[float],
    written: Model,
    counterparts: list[int],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "family difference"], dict]:
    """Both families' weights over the difference of orientation; empty where the layer before has no orientations."""
    names = model.architecture.layer_names(model.module)
    if site not in names[1:]:
        return torch.zeros(0, 0), {}
    source = names[names.index(site) - 1]
    asked = drawn_curves(model, source)
    oriented = (tuning.echo_ratio(asked.curves) <= ECHO).nonzero()[:, 0]
    if len(oriented) < 2:
        return torch.zeros(0, 0), {}
    sums = expanded_weights(model, source, site, channels=family)[:, oriented].sum((2, 3)).float().cpu()
    facing = asked.facing[oriented]
    hand = expanded_weights(written, BEFORE, LAYER, channels=counterparts)[:, :ORIENTED].sum((2, 3))
    hand_facing = torch.tensor([unit.facing for unit in _units(written, BEFORE)[:ORIENTED]])
    at = torch.tensor(orientations)
    own = orientation_profile(hand, STEP * torch.tensor(counterparts), hand_facing)
    profile = orientation_profile(sums, at, facing)
    shuffled = torch.tensor(
        [likeness(orientation_profile(_shuffled(sums, generator), at, facing), own) for _ in range(SHUFFLES)]
    )
    weights = {
        "correlation": likeness(profile, own),
        "shuffled": shuffled.quantile(0.99).item(),
        "source": source,
        "pairs": sums.numel(),
    }
    return torch.stack([part / part[part.isfinite()].abs().max() for part in (profile, own)]), weights


def _shuffled(
    sums: Float[Tensor, "target source"], generator: torch.Generator
) -> Float[Tensor, "target source"]:
    return sums.flatten()[torch.randperm(sums.numel(), generator=generator)].view_as(sums)


def _saliency(
    model: Model, feature: Feature, pixels: Pixels, hand: Transplant, opposite: Transplant
) -> tuple[
    UInt8[Tensor, "example channel side side"], UInt8[Tensor, "family example 1 side side"], float, float
]:
    """Where the feature is highest: what it sees, the size of each one's gradient there, and how alike they are."""

    def natural(shown: Tensor) -> Tensor:
        with record(model, feature.site, stop=True, gradients=True) as acts:
            model(shown)
        return feature.value(acts[feature.site])

    values = natural(pixels)
    rows, columns = values.shape[1:]
    best = values.flatten(1).amax(1).argsort(descending=True)[:DRAWN]
    places = [divmod(int(place), columns) for place in values[best].flatten(1).argmax(1)]
    units = [lambda shown, of=of: of.maps(shown, rows=rows, columns=columns)[:, 0] for of in (hand, opposite)]
    own, written, other = (
        saliency(maps, pixels[best], places, field=hand.field) for maps in (natural, *units)
    )
    bright = torch.stack(
        [part / part.amax((1, 2, 3), keepdim=True).clamp(min=1e-12) for part in (own, written)]
    )
    crops = seen(pixels[best], places, field=hand.field, outside=0.5)
    crops, bright = ((part * 255).round().to(torch.uint8) for part in (crops, bright))
    return crops, bright, alike(own, written), alike(own, other)
