"""What a drawn stimulus does to a feature: its response over two properties, in several looks.

The third of the seven arguments (Olah et al. 2020, Zoom In, distill.pub/2020/circuits/zoom-in; Cammarata et al. 2020,
Curve Detectors, distill.pub/2020/circuits/curve-detectors). A family of stimuli is drawn over a grid of orientation and
radius, say, each as large as the receptive field and in the middle of it. A heat map tells the response in standard
deviations of the feature over photographs, above its mean there. The same grid in other looks (outline for filled,
dark for bright, coloured for grey) asks what does not matter: looks that the feature does not tell apart give the same
map. Along an axis that turns, the positive responses averaged over the other axis are a tuning curve; the whole
layer's is measured in the same pass.

The control is every unit of random-init twins, shown the same.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from vesalius import figures, stimuli, tuning
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.responses import Survey, Window, answers, survey, window, with_feature
from vesalius.result import Headline, Result
from vesalius.stimuli import Family

FAMILY = 24
"""How many units of a layer are drawn on one circle."""


@dataclass(frozen=True)
class SyntheticStimuli(Result):
    """Responses in standard deviations over pictures; curves are of positive activations over the same sd."""

    feature: str
    stimulus: str
    axes: list
    """The name and the unit of the two properties."""
    first: Float[Tensor, " first"]
    second: Float[Tensor, " second"]
    looks: list
    response: Float[Tensor, "look first second"]
    """The feature's response above its mean over pictures."""
    best: dict
    """The stimulus it answers most, of all looks together: its two properties."""
    peak: float
    """The response to it, the mean over looks."""
    peak_interval: tuple
    chance: float
    """The `peak` that 99 of 100 units of random-init twins do not reach."""
    answered: list
    """The looks in which the best stimulus raises the feature beyond `chance`."""
    invariance: float
    """Mean correlation of the heat maps of those looks: 1 the look does not matter, 0 it decides; NaN of just one."""
    twin_invariance: float
    """The median of the same among the twins' units, over all looks."""
    tuning: dict
    """Of an axis that turns: `preferred`, `direction`, `width` (full, at half maximum) in degrees; `echo` 0..1."""
    curves: Float[Tensor, "unit first"]
    """The layer's tuning curves along the first axis, positive parts averaged over the second and over looks."""
    units: list
    """Which of the layer's units, tuned ones first, go with `curves` in the figure; the feature is the first."""
    shown: UInt8[Tensor, "look 3 size size"]
    """The best stimulus in every look."""
    choices: dict

    def headlines(self) -> list[Headline]:
        where = ", ".join(
            f"{name} {_text(at)}{unit}" for (name, unit), at in zip(self.axes, self.best.values())
        )
        rows = [
            Headline(
                f"response of {self.feature} to its best {self.stimulus.replace('_', ' ')}, sd over pictures",
                self.peak,
                self.chance,
                tuple(self.peak_interval),
                self.peak_interval[0] > self.chance,
                f"{where}; mean and interval over {len(self.looks)} looks",
            ),
            Headline(
                "correlation of its heat maps in the looks it answers",
                self.invariance if len(self.answered) > 1 else "–",
                self.twin_invariance,
                note=f"{len(self.answered)} of {len(self.looks)}: {', '.join(self.answered) or 'none'}",
            ),
        ]
        if self.tuning:
            turn = self.tuning
            note = f"width {_text(turn['width'])}°, echo from the opposite {_text(turn['echo'])} of the peak"
            rows.append(Headline("preferred orientation, degrees", _text(turn["preferred"]), note=note))
        return rows

    def figure(self) -> Figure:
        (first, first_unit), (second, second_unit) = self.axes
        drawn = [
            figures.images(
                self.shown,
                title=f"The {self.stimulus.replace('_', ' ')} that {self.feature} answers most",
                labels=self.looks,
            ),
            figures.heatmap(
                rearrange(self.response, "look first second -> look second first"),
                title="Response by look",
                panels=self.looks,
                x=[_text(value) for value in self.first.tolist()],
                y=[_text(value) for value in self.second.tolist()],
                x_label=f"{first}, {first_unit}" if first_unit else first,
                y_label=f"{second}, {second_unit}" if second_unit else second,
                value_label="sd over pictures",
                caption=f"99 of 100 random-init units stay below {self.chance:.1f} in the mean over looks.",
            ),
        ]
        if self.tuning:
            names = [f"unit {unit}" if unit >= 0 else self.feature for unit in self.units]
            drawn.append(
                figures.tuning(
                    self.first,
                    dict(zip(names, self.curves[self.units])),
                    title=f"The layer's most tuned units, {self.feature} first",
                    value_label="sd over pictures",
                )
            )
        return figures.group(drawn, title=f"{self.feature} and the {self.stimulus.replace('_', ' ')}")


@method(needs=("images",))
def synthetic_stimuli(
    model: Model,
    feature: Feature,
    *,
    stimulus: str = "rounded_corner",
    images: str | Path | Images = "shapes",
    n_images: int = 64,
    twins: int = 2,
    seed: int = 0,
) -> SyntheticStimuli:
    """How strongly a feature answers to drawn stimuli of two properties, in standard deviations over pictures.

    `stimulus` names a family of `vesalius.stimuli`; `images` give the mean and the sd that responses are told in. The
    response to the best stimulus is evidence if its interval over looks lies above what 99 in 100 units of `twins`
    random-init twins give to theirs. Raises VesaliusError for a stimulus that does not exist and for an empty set of
    pictures.
    """
    family = stimuli.named(stimulus)
    pictures = open_images(images).take(n_images, seed=seed)
    seen = window(model, feature.site)
    drawn = _drawn(family, seen)
    units, found = _responses(model, feature, pictures, drawn, seen)
    own = (feature.index if feature.read is None else -1) or 0
    response = _deviations(units, found)[..., own]

    nulls = []
    for number in progress(range(twins), "random-init twins"):
        twin = model.random_twin(seed + 1 + number)
        nulls.append(_deviations(*_responses(twin, feature, pictures, drawn, seen)))
    null = torch.cat(nulls, -1)
    chance = null.mean(0).amax((0, 1)).quantile(0.99).item()
    twin_likeness = _likeness(rearrange(null, "look first second unit -> unit look (first second)"))

    mean = response.mean(0)
    row, column = divmod(int(mean.argmax()), mean.shape[1])
    first, second = family.grid(seen.field)
    answered = response[:, row, column] > chance
    curves = (units.clamp(min=0).mean((0, 2)) / found.sigma).T
    turn = family.axes[0].period is not None
    return SyntheticStimuli(
        feature=str(feature),
        stimulus=stimulus,
        axes=[[axis.name, axis.unit] for axis in family.axes],
        first=first,
        second=second,
        looks=list(family.variants),
        response=response,
        best={"first": first[row].item(), "second": second[column].item()},
        peak=mean[row, column].item(),
        peak_interval=bootstrap(response[:, row, column], seed=seed),
        chance=chance,
        answered=[look for look, yes in zip(family.variants, answered.tolist()) if yes],
        invariance=_likeness(response[answered].flatten(1)[None])[0].item(),
        twin_invariance=twin_likeness.median().item(),
        tuning=_tuning(curves[own], family) if turn else {},
        curves=curves,
        units=_members(curves, own),
        shown=(_at(drawn, row, column) * 255).round().to(torch.uint8),
        choices={
            "site": feature.site,
            "receptive field, px": seen.field,
            "pictures": len(pictures),
            "data": pictures.hash,
            "mean over pictures": found.mean[own].item(),
            "sd over pictures": found.sigma[own].item(),
            "position": "centre of the stimulus" if seen.position is not None else "mean over positions",
        },
    )


def _drawn(family: Family, seen: Window) -> Float[Tensor, "look first second 3 size size"]:
    first, second = (len(values) for values in family.grid(seen.field))
    looks = [
        family.pictures(seen.field, size=seen.size, centre=seen.centre, variant=look)
        for look in family.variants
    ]
    return rearrange(
        torch.stack(looks), "look (first second) ... -> look first second ...", first=first, second=second
    )


def _responses(
    model: Model, feature: Feature, pictures: Images, drawn: Tensor, seen: Window
) -> tuple[Float[Tensor, "look first second unit"], Survey]:
    """Every unit's answer to every stimulus, and what it does over pictures; a feature that is no unit comes last."""
    given = answers(model, feature.site, drawn.flatten(0, 2), seen=seen)
    found = survey(model, feature.site, pictures, examples=1, feature=feature)
    return with_feature(given, feature).reshape(*drawn.shape[:3], -1), found


def _deviations(units: Tensor, found: Survey) -> Tensor:
    return (units - found.mean) / found.sigma


def _likeness(maps: Float[Tensor, "unit look stimulus"]) -> Float[Tensor, " unit"]:
    """The mean correlation between looks; 0 of a map that is the same everywhere."""
    centred = maps - maps.mean(-1, keepdim=True)
    standard = centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    match, looks = standard @ standard.mT, maps.shape[1]
    if looks < 2:
        return torch.full((len(maps),), torch.nan)
    return (match.sum((1, 2)) - match.diagonal(dim1=1, dim2=2).sum(1)) / (looks * (looks - 1))


def _tuning(curve: Float[Tensor, " angle"], family: Family) -> dict:
    """Numbers of one curve; on an axis of period 180 the curve goes round twice."""
    period = family.axes[0].period or 360.0
    direction, concentration = tuning.circular_mean(curve)
    share = period / 360
    return {
        "preferred": tuning.preferred(curve).item() * share if curve.max() > 0 else None,
        "direction": _finite(direction * share),
        "concentration": _finite(concentration),
        "width": _finite(tuning.width(curve) * share),
        "echo": _finite(tuning.echo_ratio(curve)),
    }


def _members(curves: Float[Tensor, "unit angle"], own: int) -> list[int]:
    """The feature, then the units whose curves stand out most: peak less the mean."""
    order = (curves.amax(1) - curves.mean(1)).argsort(descending=True).tolist()
    return [own] + [unit for unit in order if unit != own % len(curves)][: FAMILY - 1]


def _at(drawn: Tensor, row: int, column: int) -> Float[Tensor, "look 3 size size"]:
    return drawn[:, row, column].clamp(0, 1)


def _finite(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None


def _text(value: float | None) -> str:
    if value is None:
        return "–"
    return "∞" if value == float("inf") else f"{value:.3g}"
