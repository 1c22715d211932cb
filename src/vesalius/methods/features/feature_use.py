"""Feature use: which later features read a feature, or its whole family, and how.

The sixth argument of Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in), in the only form that has
numbers: units of a later layer ranked by the L2 norm of their expanded weights over the whole family (Schubert et al.
2021, High-Low Frequency Detectors, distill.pub/2020/circuits/frequency-edges). How sharp the ranking is, is the norm
of the first over the root mean square of all units of that layer: 1 if all read the family alike. It is compared with
random families of as many units in untrained twins; how many of this network's are as sharp is said beside it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Feature, neurons
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.visualization import visualise
from vesalius.weights.expanded import expanded_weights
from vesalius.weights.neighbours import layer_after, unit_of

FAMILIES, TWINS = 200, 2
"""Random families in the network, and as many in twins."""
DRAWN = 3
"""Members of a family that are drawn with each user: those it reads most."""


@dataclass(frozen=True)
class FeatureUse(Result):
    """Norms are of weights per unit of the family's activations."""

    family: list
    """The feature, then the others."""
    site: str
    target: str
    norms: Float[Tensor, " unit"]
    """L2 norm of each unit's weights over the family."""
    users: list
    """The units that read the family most, first the one that does most."""
    maps: Float[Tensor, "user member row column"]
    pictures: UInt8[Tensor, "picture channel height width"] | None
    """Visualisations of the family, then of the users; None if none were asked for."""
    sharpness: float
    null_twins: Float[Tensor, " draw"]
    """Sharpness for random families of untrained twins."""
    null_families: Float[Tensor, " draw"]
    """Sharpness for random families of this network."""
    many: int
    """Units that stand out among all by more than the first does for any random family of a twin."""
    choices: dict

    @property
    def chance(self) -> float:
        """What no random family of a twin exceeds."""
        return self.null_twins.max().item()

    def headlines(self) -> list[Headline]:
        sharper = (self.null_families >= self.sharpness).float().mean().item()
        within = (
            f"; of random families of this network {sharper:.0%} are as sharp" if len(self.family) > 1 else ""
        )
        positive = self.maps[0].clamp(min=0).sum() / self.maps[0].abs().sum().clamp(min=1e-30)
        return [
            Headline(
                f"norm over the family in {self.target}[{self.users[0]}], over the layer's root mean square",
                self.sharpness,
                self.chance,
                evidence=self.sharpness > self.chance,
                note=f"control: the sharpest of {len(self.null_twins)} random families of {len(self.family)} in "
                f"untrained twins; {self.many} units of {len(self.norms)} exceed it{within}",
            ),
            Headline("share of that unit's weight on the family that is positive", positive.item()),
        ]

    def figure(self) -> Figure:
        names = [f"{self.target}[{user}]" for user in self.users]
        more = f" and {len(self.family) - 1} more" if len(self.family) > 1 else ""
        shown = [None] * (len(self.family) + len(names)) if self.pictures is None else list(self.pictures)
        strongest = [_strongest(maps) for maps in self.maps]
        drawn = {member for members in strongest for member in members}
        nodes = [
            {"id": name, "label": unit_of(name), "column": self.site, "picture": shown[member]}
            for member, name in enumerate(self.family)
            if member in drawn
        ]
        nodes += [
            {"id": f"user {name}", "label": unit_of(name), "column": self.target, "picture": picture}
            for name, picture in zip(names, shown[len(self.family) :])
        ]
        edges = [
            {
                "source": self.family[member], "target": f"user {names[user]}",
                "map": self.maps[user, member], "weight": self.maps[user, member].sum().item(),
            }
            for user, members in enumerate(strongest) for member in members
        ]  # fmt: skip
        rms = self.norms.square().mean().sqrt().item() or 1.0
        circuit = figures.circuit(
            nodes,
            edges,
            title="The units that read it most",
            caption="Each edge: the weight at every position of the user's field. "
            + (f"Of the family, the {DRAWN} that each reads most." if len(self.family) > DRAWN else ""),
        )
        ranking = figures.bars(
            [unit_of(name) for name in names],
            {"norm over the family, in root mean squares": (self.norms[self.users] / rms)},
            title=f"Units of {self.target} by what they read of it",
            y_label="norm / layer's rms",
            caption=f"Chance: {self.chance:.2f}.",
        )
        nulls = {"random families of untrained twins": self.null_twins}
        if len(self.family) > 1:
            nulls["random families of this network"] = self.null_families
        against = figures.histogram(
            nulls,
            title="How far the first stands out",
            x_label="norm of the first, in root mean squares",
            references=[("x", self.sharpness, self.family[0])],
        )
        return figures.group([circuit, ranking, against], title=f"Who uses {self.family[0]}{more}")


@method(needs=("images",))
def feature_use(
    model: Model,
    feature: Feature,
    *,
    target: str = "",
    others: list[str] | None = None,
    top: int = 8,
    steps: int = 64,
    seed: int = 0,
) -> FeatureUse:
    """Which units of a later layer read a feature, or the family that it and `others` of its site are.

    `target` is the later site, the layer after if left out; `others` are addresses such as `mixed3b[385]`, None for
    the feature alone; `top` users are drawn, with pictures of `steps` steps (0: none). There is evidence of use if
    one unit reads the family more, compared with the rest, than in any random family of untrained twins. Raises
    VesaliusError after the last layer, and for others of another site.

    >>> from vesalius.testbed import curve_network
    >>> model = curve_network()
    >>> found = feature_use(model, "small_curves[3]", steps=0)
    >>> str(model.module.units["curves"][found.users[0]]), found.maps[0].sum().item() < 0
    ('curve 225°', True)
    """
    family = [feature, *(model.feature(name) for name in others or [])]
    strange = [str(member) for member in family if member.site != feature.site]
    if strange:
        raise VesaliusError(f"{strange[0]} is not at '{feature.site}'; a family is of one site")
    target = target or layer_after(model, feature.site)
    squares, maps = _squares(model, feature.site, target, family)
    norms = maps.flatten(1).norm(dim=1)
    users = norms.topk(min(top, len(norms))).indices.tolist()

    generator = torch.Generator().manual_seed(seed)
    within = _random_families(squares, len(family), FAMILIES, generator)
    in_twins = []
    for number in progress(range(TWINS), "untrained twins"):
        null, _ = _squares(model.random_twin(seed + 1 + number), feature.site, target, [])
        in_twins.append(_random_families(null, len(family), FAMILIES // TWINS, generator))
    twins = torch.cat(in_twins)
    relative = norms / norms.square().mean().sqrt().clamp(min=1e-30)

    pictures = None
    if steps:
        drawn = [*family, *(neurons(target)[user] for user in users)]
        pictures = visualise(model, drawn, steps=steps, seed=seed).images
    return FeatureUse(
        family=[str(member) for member in family],
        site=feature.site,
        target=target,
        norms=norms,
        users=users,
        maps=maps[users],
        pictures=pictures,
        sharpness=relative.max().item(),
        null_twins=twins,
        null_families=within,
        many=int((relative > twins.max()).sum()),
        choices={
            "nonlinearities": "rectifiers left out, max pools averaged",
            "ranked by": "L2 norm over the family",
            "family": len(family),
            "steps": steps,
        },
    )


def _squares(
    model: Model, site: str, target: str, family: list[Feature]
) -> tuple[Float[Tensor, "unit source"], Float[Tensor, "unit member row column"]]:
    """Squared norm of every unit's weights on every channel, and its maps of the family, some units at a time."""
    width, sources = model.map_shape(target)[0], model.map_shape(site)[0]
    written = torch.stack(
        [member.written(sources).to(model.device) for member in family]
        or [torch.zeros(sources, device=model.device)]
    ).to(model.dtype)  # fmt: skip
    squares, maps = [], []
    for units in torch.arange(width).split(128):
        weights = expanded_weights(model, site, target, channels=units.tolist())
        squares.append(weights.square().sum((2, 3)))
        maps.append(torch.einsum("tsrc,ms->tmrc", weights, written))
    return torch.cat(squares), torch.cat(maps)


def _random_families(
    squares: Float[Tensor, "unit source"], size: int, draws: int, generator: torch.Generator
) -> Float[Tensor, " draw"]:
    """Norm of the first over the root mean square, for random sets of as many channels."""
    order = torch.rand(draws, squares.shape[1], generator=generator).argsort(1)[:, :size].to(squares.device)
    over = squares[:, order].sum(2)  # [unit, draw]
    return (over.amax(0) / over.mean(0).clamp(min=1e-30)).sqrt()


def _strongest(maps: Float[Tensor, "member row column"]) -> list[int]:
    """The members that a unit reads most, without those that it hardly reads beside the first."""
    norms = maps.flatten(1).norm(dim=1)
    first = norms.topk(min(DRAWN, len(norms))).indices.tolist()
    return [member for member in first if norms[member] >= 0.05 * norms.max()]
