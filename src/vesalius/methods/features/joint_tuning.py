"""What a whole layer does while a feature's best photographs are turned about: do its neighbours take over?

The fourth of the seven arguments (Cammarata et al. 2020, Curve Detectors, distill.pub/2020/circuits/curve-
detectors): crops the size of the receptive field, in which the feature is highest, are turned through 360°
about their centre within a circle, and every unit of the layer is recorded in the same pass. Each example's
responses are moved so that the feature's own lie on one another, and averaged. A unit that stands for one
orientation gives one bump; in a family, as one falls the next rises, and the circle is covered. Turning by an
angle takes each member to the one that stands there.

There are two controls: the features of random-init twins, treated the same, and the units of the layer shuffled in
each example, which leaves every response as it was but not whose it is.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vesalius import figures, tuning
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap_band, family_wise
from vesalius.model import Model
from vesalius.responses import Survey, Window, best_crops, survey, turned_answers, turns, window, with_feature
from vesalius.result import Headline, Result

TWIN_FEATURES, TWIN_ANGLES, TWIN_EXAMPLES = 4, 24, 16
"""How many features of each random-init twin are turned, and how: coarsely, which can but make them look better."""
SHUFFLES, DRAWS = 8, 100
EXAMPLES = 5
"""Examples drawn one by one."""
BEST = 8
"""A unit's own top is the mean of this many of its best pictures."""
LIKE, STRONG = 0.7, 0.5
"""A member's curve has at least this correlation with the feature's, moved; and this share of the unit's own top."""


@dataclass(frozen=True)
class JointTuning(Result):
    """Responses to turned examples, moved so that the feature's own peaks lie at 0°.

    Each unit's are in shares of its own top (the mean of its best pictures, of whatever they are), and each example's
    in shares of the feature's peak in it: 1 is a unit as near to its own best as the feature is at its best angle.
    """

    feature: str
    angles: Float[Tensor, " angle"]
    samples: Float[Tensor, "example angle"]
    """The feature's response to each example."""
    curves: Float[Tensor, "unit angle"]
    """The mean over examples, of every unit."""
    low: Float[Tensor, " angle"]
    high: Float[Tensor, " angle"]
    """95% interval of the feature's own curve over examples."""
    width: float
    """Full width at half maximum of the feature's curve, degrees; NaN if it does not respond."""
    echo: float
    """Its response within 30° of the opposite orientation, over its peak."""
    likeness: Float[Tensor, " unit"]
    """The correlation of each unit's curve with the feature's, moved to where it is largest."""
    members: Int[Tensor, " member"]
    """The family: units alike in tuning that respond with at least half of their own top, by orientation."""
    orientations: Float[Tensor, " member"]
    """Where each member peaks, in degrees counter-clockwise from the feature."""
    coverage: float
    """The largest response of any member at the angle where that is smallest: 1 one is always at its top."""
    relay: float
    """The same, each member's mean over all angles taken off first: 1 a circle of narrow curves, 0 or less one of flat
    curves, or of curves that leave a gap."""
    relay_interval: tuple
    twin_relays: Float[Tensor, " twin_feature"]
    shuffled_relays: Float[Tensor, " shuffle"]
    chance: float
    """What the relay of either control passes once in a hundred times."""
    permutation: Int[Tensor, " unit"]
    """The unit to which a quarter turn, counter-clockwise, takes each member; others stay."""
    returns: float
    """The share of members that four such turns bring back to themselves; NaN without a family."""
    shown: UInt8[Tensor, "picture channel size size"]
    choices: dict

    def headlines(self) -> list[Headline]:
        low, high = self.relay_interval
        return [
            Headline(
                f"as the examples of {self.feature} turn, one unit of its family takes over from the other",
                self.relay,
                self.chance,
                (low, high),
                low > self.chance,
                f"least response above a member's own mean, in shares of its top; {len(self.members)} members",
            ),
            Headline(
                "coverage of 360° by the family, share of a member's top",
                self.coverage,
                note="1: at every angle some member responds as to its best pictures",
            ),
            Headline(
                "width of its tuning at half maximum, degrees",
                _text(self.width),
                note=f"{_text(self.echo)} of the peak from the opposite",
            ),
            Headline(
                "share of the family that four quarter turns bring back",
                _text(self.returns),
                note=f"each to the unit that is most alike; {len(set(self.permutation[self.members].tolist()))} "
                f"of {len(self.members)} are taken",
            ),
        ]

    def figure(self) -> Figure:
        names = [f"unit {unit}" for unit in self.members.tolist()]
        feature = self.feature if self.feature not in names else f"{self.feature}, all examples"
        half = len(self.angles) // 2  # its peak in the middle
        rows = torch.stack([self.samples.mean(0), self.low, self.high, *self.samples[:EXAMPLES]]).roll(
            half, 1
        )
        drawn = [
            figures.images(
                self.shown,
                title="Examples as they are turned",
                labels=[f"{angle}°" for angle in range(0, 360, 45)] * (len(self.shown) // 8),
                columns=8,
            ),
            figures.lines(
                self.angles - self.angles[half],
                {feature: rows[0], **{f"example {number + 1}": row for number, row in enumerate(rows[3:])}},
                title=f"{self.feature}, its own examples",
                x_label="turned by, degrees",
                y_label="share of its top",
                bands={feature: (rows[1], rows[2])},
            ),
        ]
        if len(self.members):
            drawn.append(
                figures.tuning(
                    self.angles,
                    dict(zip(names, self.curves[self.members])),
                    title=f"The family of {self.feature}: {len(self.members)} units",
                    value_label="share of the unit's top",
                    caption=f"At every angle one of them gives {self.coverage:.2f} or more.",
                )
            )
        return figures.group(drawn, title=f"Joint tuning of {self.feature}")


@method(needs=("images",))
def joint_tuning(
    model: Model,
    feature: Feature,
    *,
    images: str | Path | Images = "shapes",
    n_images: int = 256,
    n_examples: int = 32,
    angles: int = 360,
    twins: int = 2,
    seed: int = 0,
) -> JointTuning:
    """How a feature and all units of its layer respond while the pictures it likes best are turned about.

    `n_examples` crops, from as many of `n_images` pictures, are shown at `angles` orientations each. That its
    family hands over is evidence if the interval over examples lies above what features of `twins` random-init twins,
    and shuffled units, give once in a hundred times. Raises VesaliusError for a feature that no picture raises.
    """
    pictures = open_images(images).take(n_images, seed=seed)
    seen = window(model, feature.site)
    degrees = tuning.angles(angles)
    found = survey(model, feature.site, pictures, examples=max(n_examples, BEST), feature=feature)
    own = (feature.index if feature.read is None else -1) or 0
    if found.top.values[own, 0] <= 0:
        raise VesaliusError(
            f"{feature} is not above 0 in any of {len(pictures)} pictures; there is nothing to turn"
        )
    crops = best_crops(model, feature.site, pictures, found, unit=own, seen=seen)[:n_examples]
    responses = _aligned(model, feature, found, crops, own=own, seen=seen, degrees=degrees)

    nulls = []
    for number in progress(range(twins), "random-init twins"):
        nulls += _of_twin(model.random_twin(seed + 1 + number), feature.site, pictures, seed=seed + number)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [_relay(_shuffled(responses, own, generator).mean(0), own) for _ in range(SHUFFLES)]
    chance = max(family_wise(torch.tensor(null)) for null in (nulls, shuffled) if null)

    curves = responses.mean(0)
    likeness, members = _family(curves, own)
    family = torch.zeros(len(curves), dtype=torch.bool).index_fill(0, members, True)
    after, _ = tuning.permutation(curves, degrees=90, among=family)
    back = after[after[after[after]]] == torch.arange(len(after))
    low, high = bootstrap_band(responses[:, own], seed=seed)
    return JointTuning(
        feature=str(feature),
        angles=degrees,
        samples=responses[:, own],
        curves=curves,
        low=low,
        high=high,
        width=tuning.width(curves[own]).item(),
        echo=tuning.echo_ratio(curves[own]).item(),
        likeness=likeness,
        members=members,
        orientations=tuning.preferred(curves[members]),
        coverage=curves[members].amax(0).min().item() if len(members) else 0.0,
        relay=_relay(curves, own),
        relay_interval=_interval(responses, own, generator),
        twin_relays=torch.tensor(nulls),
        shuffled_relays=torch.tensor(shuffled),
        chance=chance,
        permutation=after,
        returns=back[members].float().mean().item(),
        shown=_shown(crops[:3], seen),
        choices={
            "site": feature.site,
            "receptive field, px": seen.field,
            "pictures": len(pictures),
            "data": pictures.hash,
            "examples": len(crops),
            "mask": "the largest circle in the receptive field, its mean colour outside",
            "alignment": "circular correlation with the mean of the feature's own responses",
        },
    )


def _aligned(
    model: Model,
    feature: Feature,
    found: Survey,
    crops: Float[Tensor, "example channel size size"],
    *,
    own: int,
    seen: Window,
    degrees: Float[Tensor, " angle"],
) -> Float[Tensor, "example unit angle"]:
    """Every unit's responses in shares of its own top, each example moved so that the feature's lie on one another."""
    turned = with_feature(turned_answers(model, feature.site, crops, seen=seen, degrees=degrees), feature)
    turned = turned.movedim(2, 1) / torch.maximum(found.top.values[:, :BEST].mean(1), found.sigma)[:, None]
    steps = tuning.aligned(tuning.smoothed(turned[:, own], sd=5.0))
    peak = turned[:, own].amax(-1).clamp(min=1e-3)
    return tuning.turned(turned / peak[:, None, None], steps[:, None].expand(turned.shape[:2]))


def _of_twin(twin: Model, site: str, pictures: Images, *, seed: int) -> list[float]:
    """The relay around random units, among those that fire at all, of a random-init twin."""
    found = survey(twin, site, pictures, examples=TWIN_EXAMPLES)
    alive = (found.top.values[:, 0] > 0).nonzero()[:, 0]
    drawn = alive[torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))]
    degrees, seen = tuning.angles(TWIN_ANGLES), window(twin, site)
    relays = []
    for unit in drawn[:TWIN_FEATURES].tolist():
        crops = best_crops(twin, site, pictures, found, unit=unit, seen=seen)
        feature = Feature(site, unit)
        turned = _aligned(twin, feature, found, crops, own=unit, seen=seen, degrees=degrees)
        relays.append(_relay(turned.mean(0), unit))
    return relays or [0.0]


def _shuffled(responses: Tensor, own: int, generator: torch.Generator) -> Tensor:
    """The units' names shuffled in each example; the feature keeps its own."""
    others = torch.tensor([unit for unit in range(responses.shape[1]) if unit != own % responses.shape[1]])
    mixed = responses.clone()
    for example in mixed:
        example[others] = example[others[torch.randperm(len(others), generator=generator)]]
    return mixed


def _relay(curves: Float[Tensor, "unit angle"], own: int) -> float:
    _, members = _family(curves, own)
    if not len(members):
        return 0.0
    family = curves[members]
    return (family - family.mean(1, keepdim=True)).amax(0).min().item()


def _interval(
    responses: Float[Tensor, "example unit angle"], own: int, generator: torch.Generator
) -> tuple[float, float]:
    """95% interval of the relay over examples drawn again."""
    count = len(responses)
    again = []
    for _ in range(DRAWS):
        weight = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count) / count
        again.append(_relay(torch.tensordot(weight, responses, dims=1), own))
    ordered = sorted(again)
    return ordered[round(0.025 * (DRAWS - 1))], ordered[round(0.975 * (DRAWS - 1))]


def _family(
    curves: Float[Tensor, "unit angle"], own: int
) -> tuple[Float[Tensor, " unit"], Int[Tensor, " member"]]:
    """How alike each unit's tuning is to the feature's, and the units that count as of its family, by orientation."""
    likeness = tuning.cross_correlation(curves, curves[own][None])[:, 0].amax(-1).nan_to_num(0.0)
    units = ((likeness >= LIKE) & (curves.amax(1) >= STRONG)).nonzero()[:, 0]
    return likeness, units[tuning.preferred(curves[units]).argsort(stable=True)]


def _shown(crops: Tensor, seen: Window) -> UInt8[Tensor, "picture channel size size"]:
    """Each crop at eight orientations."""
    turned = torch.cat([turns(crop, tuning.angles(8), seen=seen) for crop in crops])
    return (turned.clamp(0, 1) * 255).round().to(torch.uint8)


def _text(value: float) -> str | float:
    return value if value == value else "–"
