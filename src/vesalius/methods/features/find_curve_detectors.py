"""Which units of a layer are curve detectors: a family that shares the orientations among its members.

What Cammarata et al. 2020 (Curve Detectors, distill.pub/2020/circuits/curve-detectors) show of ten units of
InceptionV1, asked of every unit of a layer, in two steps.

1. Drawn curves, lines and opposite curves, in six looks (filled, outlined, dark, coloured). A unit's score is
   how many standard deviations, over photographs, its best curve raises it above its best line and above the
   curve that bulges the other way, in the mean over looks; the standard deviation is at least the layer's
   median, or the rarest units of a random network would score highest. A candidate beats both by a factor, and
   its score beats what the best unit of a whole layer gives by chance, in random-init networks.
2. Photographs. The best crops of the candidates are turned about, and the others have to answer at the orientation
   that the drawn curves gave them. One that does not is dropped; a unit without kin is no family and is dropped too.
   How far photographs and drawings disagree is held against orientations shuffled among the candidates.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vesalius import figures, stimuli, tuning
from vesalius.data.images import Images, open_images
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import family_wise
from vesalius.model import Model
from vesalius.responses import Survey, Window, answers, best_crops, survey, turned_answers, window
from vesalius.result import Headline, Result

BROAD = 150.0
"""Degrees at half maximum beyond which a response is not to one orientation."""
ASTRAY = 45.0
"""Degrees by which photographs may disagree with drawings."""
EXAMPLES = 8
LEAST = 0.1
"""Scores that are drawn; most units have less."""


@dataclass(frozen=True)
class FindCurveDetectors(Result):
    """Curve detectors by orientation: degrees counter-clockwise, the side the curve bulges to, 0 to the right."""

    site: str
    units: Int[Tensor, " found"]
    orientation: Float[Tensor, " found"]
    """The circular mean of its responses to drawn curves."""
    width: Float[Tensor, " found"]
    """Full width at half maximum, degrees."""
    over_line: Float[Tensor, " found"]
    """Response to the best curve over that to the best line, at most 100."""
    over_opposite: Float[Tensor, " found"]
    """The same over the curve that bulges the other way."""
    radius: Float[Tensor, " found"]
    """Of the best curve, px."""
    natural: Float[Tensor, " found"]
    """The orientation that turned photographs of other members give it."""
    curves: Float[Tensor, "found angle"]
    """Response to drawn curves of its best radius, in standard deviations."""
    scores: Float[Tensor, " unit"]
    twin_scores: Float[Tensor, "twin unit"]
    chance: float
    """The score that the best unit of a random-init layer passes once in a hundred times."""
    twin_candidates: int
    """How many candidates one more random-init twin has, by the same rule; it had no part in `chance`."""
    candidates: int
    """How many units passed the first step."""
    coverage: float
    """Response at the orientation that the family likes least, over the peak of the member that answers most there."""
    largest_gap: float
    disagreement: float
    """Mean distance of `natural` from `orientation`, degrees; 90 for unrelated ones. NaN without candidates."""
    disagreement_chance: float
    """What shuffled orientations fall below once in a hundred times."""
    shown: UInt8[Tensor, "picture channel size size"]
    """The best crop of each member."""
    choices: dict

    def headlines(self) -> list[Headline]:
        octants = len({int((angle + 22.5) % 360 // 45) for angle in self.orientation.tolist()})
        count, total = len(self.units), len(self.scores)
        corners = int((self.radius <= self.choices["tightest radius, px"]).sum())
        rows = [
            Headline(
                f"curve detectors among the {total} units of {self.site}",
                count,
                self.twin_candidates,
                None,
                count > 0,
                f"{self.candidates} answer drawn curves, {count} of them photographs too; {octants} of 8 directions; "
                f"{corners} prefer the tightest curve drawn, and may be for corners",
            )
        ]
        if not count:
            return rows
        best = int(self.scores[self.units].argmax())
        return [
            *rows,
            Headline(
                f"score of the best, {self.site}[{self.units[best]}], sd over pictures",
                self.scores[self.units].max().item(),
                self.chance,
                None,
                bool(self.scores[self.units].max() > self.chance),
                f"{self.over_line[best]:.0f} times the best line, {self.over_opposite[best]:.0f} times the opposite",
            ),
            Headline(
                "photographs and drawings disagree on a member's orientation by, degrees",
                self.disagreement,
                self.disagreement_chance,
                None,
                self.disagreement < self.disagreement_chance,
                "control: orientations shuffled among the members, lowest in a hundred",
            ),
            Headline(
                "coverage of 360° by the family, share of a peak",
                self.coverage,
                note=f"largest gap {self.largest_gap:.0f}°; median width {self.width.median():.0f}°",
            ),
        ]

    def figure(self) -> Figure:
        drawn = [
            figures.histogram(
                {
                    "this network": _standing(self.scores),
                    "random-init twins": _standing(self.twin_scores.flatten()),
                },
                title="How far curves stand above lines and opposite curves",
                x_label=f"sd over pictures, of units above {LEAST}",
                references=[("x", self.chance, "chance, best of a layer")],
            )
        ]
        if len(self.units):
            labels = [
                f"{unit}: {angle:.0f}°" for unit, angle in zip(self.units.tolist(), self.orientation.tolist())
            ]
            drawn += [
                figures.images(self.shown, title="The best crop of each, by orientation", labels=labels),
                figures.tuning(
                    tuning.angles(self.curves.shape[1]),
                    dict(zip(labels, self.curves / self.curves.amax(1, keepdim=True))),
                    title="Tuning to drawn curves",
                    value_label="share of the peak",
                ),
                figures.table(
                    [
                        "unit",
                        "orientation",
                        "in photographs",
                        "width",
                        "over line",
                        "over opposite",
                        "radius, px",
                    ],
                    [
                        [f"{self.site}[{unit}]", *(f"{value:.0f}" for value in row)]
                        for unit, row in zip(self.units.tolist(), self._numbers().tolist())
                    ],
                    title="The family",
                ),
            ]
        return figures.group(drawn, title=f"{len(self.units)} curve detectors in {self.site}")

    def _numbers(self) -> Float[Tensor, "found 6"]:
        columns = self.orientation, self.natural, self.width, self.over_line, self.over_opposite, self.radius
        return torch.stack(columns, 1)


@method(needs=("images",))
def find_curve_detectors(
    model: Model,
    *,
    site: str = "",
    images: str | Path | Images = "shapes",
    n_images: int = 128,
    ratio: float = 2.0,
    sources: int = 8,
    twins: int = 3,
    seed: int = 0,
) -> FindCurveDetectors:
    """The curve detectors of a layer: drawn curves find them, turned photographs confirm them.

    `ratio` is how many times a candidate must answer its best curve as strongly as its best line and the opposite
    curve; the examples of the `sources` best candidates are turned about. Chance is the family-wise 1% level of
    `twins` random-init twins; one more twin is judged by it, as the control. Raises VesaliusError for a site that
    does not exist, for an empty set of pictures, and without twins.
    """
    if twins < 1:
        raise VesaliusError(f"{twins} twins were asked for; chance needs at least one, better three")
    site = model.site(site)
    pictures = open_images(images).take(n_images, seed=seed)
    seen = window(model, site)
    drawn = _drawn(seen)
    found, looks = _seen(model, site, pictures, drawn, seen)
    own = _Curves(looks)
    *nulls, judged = [
        _Curves(_seen(model.random_twin(seed + 1 + number), site, pictures, drawn, seen)[1])
        for number in progress(range(twins + 1), "random-init twins")
    ]
    null = torch.stack([twin.score for twin in nulls])
    chance = family_wise(null)

    candidates = (own.selective(ratio) & (own.score > chance)).nonzero()[:, 0]
    strongest = candidates[own.score[candidates].argsort(descending=True)][:sources]
    natural = _natural(model, site, pictures, found, own.direction, candidates, strongest, seen=seen)
    astray = tuning.distance(natural, own.direction[candidates])
    kept = (astray <= ASTRAY).nonzero()[:, 0]
    kept = kept[own.direction[candidates[kept]].argsort()] if len(kept) > 1 else kept[:0]
    units = candidates[kept]
    known = natural.isfinite()
    return FindCurveDetectors(
        site=site,
        units=units,
        orientation=own.direction[units],
        width=own.width[units],
        over_line=own.over_line[units],
        over_opposite=own.over_opposite[units],
        radius=_radii(seen)[own.radius[units]],
        natural=natural[kept],
        curves=own.curve[units],
        scores=own.score,
        twin_scores=null,
        chance=chance,
        twin_candidates=int((judged.selective(ratio) & (judged.score > chance)).sum()),
        candidates=len(candidates),
        coverage=tuning.coverage(own.curve[units]).min().item() if len(units) else 0.0,
        largest_gap=tuning.gaps(own.direction[units]).max().item() if len(units) else 360.0,
        disagreement=astray[known].mean().item(),
        disagreement_chance=_unrelated(natural[known], own.direction[candidates[known]], seed=seed),
        shown=_best(model, site, pictures, found, units, seen),
        choices={
            "receptive field, px": seen.field,
            "tightest radius, px": _radii(seen).min().item(),
            "pictures": len(pictures),
            "data": pictures.hash,
            "ratio": ratio,
            "looks": list(stimuli.named("rounded_corner").variants),
            "sources": strongest.tolist(),
            "widest, degrees": BROAD,
            "furthest astray, degrees": ASTRAY,
        },
    )


class _Curves:
    """What each unit's answers to lines and curves, in the mean over looks, say of it."""

    def __init__(self, looks: Float[Tensor, "look angle radius unit"]) -> None:
        mean = looks.mean(0)  # [angle, radius, unit]; radius 0 is the line
        self.radius = mean[:, 1:].amax(0).argmax(0) + 1
        picked = self.radius[None, None].expand(len(mean), 1, -1)
        self.curve = mean.gather(1, picked)[:, 0].T
        peak, line = self.curve.amax(1), mean[:, 0].amax(0)
        opposite = tuning.echo_ratio(self.curve).nan_to_num(1.0) * peak
        self.score = peak - torch.maximum(line, opposite)
        least = peak / 100
        self.over_line = peak / line.maximum(least).clamp(min=1e-9)
        self.over_opposite = peak / opposite.maximum(least).clamp(min=1e-9)
        self.width = tuning.width(self.curve)
        self.direction = tuning.circular_mean(self.curve)[0].nan_to_num(0.0)

    def selective(self, ratio: float) -> Tensor:
        """Units that answer one orientation of curves, and neither lines nor the opposite."""
        return (self.over_line >= ratio) & (self.over_opposite >= ratio) & (self.width <= BROAD)


def _drawn(seen: Window) -> Float[Tensor, "look picture 3 size size"]:
    family = stimuli.named("rounded_corner")
    return torch.stack(
        [
            family.pictures(seen.field, size=seen.size, centre=seen.centre, variant=look)
            for look in family.variants
        ]
    )


def _radii(seen: Window) -> Float[Tensor, " radius"]:
    return stimuli.named("rounded_corner").grid(seen.field)[1]


def _seen(
    model: Model, site: str, pictures: Images, drawn: Tensor, seen: Window
) -> tuple[Survey, Float[Tensor, "look angle radius unit"]]:
    """Every unit over the pictures, and its positive answers to the drawings in standard deviations of that."""
    found = survey(model, site, pictures, examples=EXAMPLES)
    alive = found.sd[found.sd > 0]
    scale = found.sd.clamp(min=float(alive.median()) if len(alive) else 1.0)
    given = answers(model, site, drawn.flatten(0, 1), seen=seen).clamp(min=0) / scale
    return found, given.reshape(len(drawn), -1, len(_radii(seen)), given.shape[1])


def _natural(
    model: Model,
    site: str,
    pictures: Images,
    found: Survey,
    direction: Float[Tensor, " unit"],
    candidates: Int[Tensor, " candidate"],
    sources: Int[Tensor, " source"],
    *,
    seen: Window,
) -> Float[Tensor, " candidate"]:
    """The orientation of each candidate by photographs: the examples of the others, turned, say when it answers.

    A source's examples are taken to show its own direction where it answers most. NaN for one that never answers.
    """
    angles = tuning.angles(36)
    total = torch.zeros(len(candidates), len(angles))
    for source in progress(sources.tolist(), "curves in photographs, turned"):
        if found.top.values[source, 0] <= 0:
            continue
        crops = best_crops(model, site, pictures, found, unit=source, seen=seen)
        turned = turned_answers(model, site, crops, seen=seen, degrees=angles).movedim(2, 1)
        steps = tuning.aligned(tuning.smoothed(turned[:, source], sd=10.0))
        steps = steps + round(direction[source].item() / (360 / len(angles)))
        shares = turned[:, candidates] / turned[:, source].amax(1).clamp(min=1e-9)[:, None, None]
        mean = tuning.turned(shares, steps[:, None].expand(shares.shape[:2])).mean(0).clamp(min=0)
        total += torch.where((candidates == source)[:, None], 0.0, mean)
    return tuning.circular_mean(total)[0]


def _unrelated(natural: Tensor, drawn: Tensor, *, seed: int) -> float:
    """The mean disagreement that orientations shuffled among the candidates fall below once in a hundred times."""
    if len(natural) < 2:
        return 0.0
    generator = torch.Generator().manual_seed(seed)
    shuffled = [
        tuning.distance(natural, drawn[torch.randperm(len(drawn), generator=generator)]).mean()
        for _ in range(500)
    ]
    return torch.stack(shuffled).quantile(0.01).item()


def _standing(scores: Float[Tensor, " unit"]) -> Float[Tensor, " some"]:
    """Those worth drawing, or all if none is."""
    return scores[scores > LEAST] if (scores > LEAST).any() else scores


def _best(
    model: Model, site: str, pictures: Images, found: Survey, units: Tensor, seen: Window
) -> UInt8[Tensor, "picture channel size size"]:
    crops = [best_crops(model, site, pictures, found, unit=unit, seen=seen)[0] for unit in units.tolist()]
    empty = torch.zeros(0, model.pictures.channels, seen.size, seen.size)
    return ((torch.stack(crops) if crops else empty) * 255).round().to(torch.uint8)
