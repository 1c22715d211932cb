"""Polysemantic neurons: whether a unit fires for one thing or for several that have nothing in common.

Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in): 4e:55 of InceptionV1 fires for cat faces, fronts of
cars and cat legs. Here:

1. in the top examples, what each channel of an earlier layer adds to the unit: gradient × activation, summed over
   the picture, the part that excites. Two examples are alike if the same channels drive them (cosine);
2. the examples fall into groups (spherical k-means, 2 to 4) that are as separate as possible: their silhouette, 0 for
   no groups and 1 for perfect ones (Rousseeuw 1987), times the distance of the two most unlike groups, 1 minus the
   cosine of their mean contributions, 0 for the same channels and 1 for none in common;
3. units of untrained twins, grouped in the same way;
4. participation ratio of the unit's weights, above and below: over how many channels they spread; and how selective
   it is for one class (Morcos et al. 2018, arXiv 1803.06959), where the pictures have classes.

Groups show that the unit has several sufficient causes. A unit that sums the cases of one thing, say a line on a dark
or on a bright ground, has them too: whether the groups have one meaning is for the eye. And a cause that is too weak
to be among the top examples is not seen.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene, record
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature, neurons
from vesalius.errors import VesaliusError
from vesalius.examples import activations, before_nonlinearity, by_unit, crops, field_of, of_feature
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.site import Site
from vesalius.store.reducers import TopExamples
from vesalius.weights.expanded import expanded_weights

MOST = 4
"""Groups that are looked for."""
SMALLEST = 0.1
"""Share of the examples that a group has at least; fewer are outliers."""
PAIRS = 32
"""Pairs of a unit and an example whose gradients are taken at a time."""
SHOWN = 12
"""Examples of a group, and channels of the earlier layer, in the figure."""


@dataclass(frozen=True)
class PolysemanticNeurons(Result):
    """The groups among the top examples of one unit, and how far they are apart."""

    feature: str
    below: str
    """The earlier layer whose channels drive the unit."""
    groups: list
    """Largest first, `{"pictures", "values", "names", "channels"}`: the examples, and the channels that drive them."""
    contributions: Float[Tensor, "example channel"]
    """Of each example the share of its excitation that comes from each channel, in the order of the groups."""
    separation: float
    """Silhouette × distance of the most unlike groups, 0 to 1; 0 where there are no groups."""
    separation_low: float
    separation_high: float
    silhouette: float
    distance: float
    null: Float[Tensor, "unit 2"]
    """Silhouette and distance of units of untrained twins."""
    chance: float
    """The separation that one in a hundred units of untrained twins exceeds."""
    spread: dict
    """`above` and `below`: participation ratio of the weights, and its median in the layer; empty if not of maps."""
    selectivity: list | None
    """For one class, 0 to 1; and the median of untrained twins' units. None without classes."""
    choices: dict

    @property
    def separate(self) -> bool:
        """Whether the groups are more separate than those of an untrained network."""
        return self.separation_low > self.chance

    def headlines(self) -> list[Headline]:
        sizes = " + ".join(str(len(group["names"])) for group in self.groups)
        rows = [
            Headline(
                f"separation of {len(self.groups)} groups of top examples",
                self.separation,
                self.chance,
                (self.separation_low, self.separation_high),
                self.separate,
                f"{sizes} examples; control: one in a hundred untrained units exceeds it",
            ),
            Headline(
                "distance of the two most unlike groups",
                self.distance,
                self.null[:, 1].median().item(),
                note=f"what drives them in {self.below}; 1: no channel in common; control: untrained units",
            ),
        ]
        for where, (value, median) in self.spread.items():
            rows.append(
                Headline(
                    f"channels {where} that its weights spread over", value, median, note="control: the layer"
                )
            )
        if self.selectivity is not None:
            rows.append(
                Headline("selectivity for one class", *self.selectivity, note="control: untrained units")
            )
        return rows

    def figure(self) -> Figure:
        quilt = figures.gallery(
            [
                {
                    "label": f"group {number + 1}: {', '.join(map(str, group['channels'][:3]))}",
                    "pictures": group["pictures"][:SHOWN],
                    "texts": [f"{value:.3g}" for value in group["values"].tolist()[:SHOWN]],
                }
                for number, group in enumerate(self.groups)
            ],
            title="Top examples by what drives them",
            caption=f"Beside each group the channels of {self.below} that excite it most.",
        )
        main = self.contributions.mean(0).topk(min(SHOWN, self.contributions.shape[1])).indices
        shares = figures.heatmap(
            self.contributions[:, main],
            title="What drives each example",
            x=[f"{channel}" for channel in main.tolist()],
            x_label=f"channel of {self.below}",
            y_label="example, by group",
            value_label="share of the excitation",
            diverging=False,
        )
        null = figures.scatter(
            [*self.null[:, 0].tolist(), self.silhouette],
            [*self.null[:, 1].tolist(), self.distance],
            title="Against untrained units",
            x_label="silhouette",
            y_label="distance of the most unlike groups",
            labels=[*["untrained"] * len(self.null), self.feature],
            groups=[*["untrained"] * len(self.null), self.feature],
            caption=f"The product is {self.separation:.2f}; one in a hundred untrained exceeds {self.chance:.2f}.",
        )
        verdict = "separate groups" if self.separate else "no separate groups"
        return figures.group([quilt, shares, null], title=f"{self.feature}: {verdict} among its top examples")


@method(needs=("images",))
def polysemantic_neurons(
    model: Model,
    feature: Feature,
    *,
    below: str = "",
    above: str = "",
    images: str | Path | Images = "shapes",
    n_images: int = 256,
    examples: int = 24,
    null: int = 48,
    seed: int = 0,
) -> PolysemanticNeurons:
    """Groups among a unit's top examples that different channels of an earlier layer drive.

    `below` and `above` are the neighbouring layers, by default those of the architecture. `examples` pictures are
    grouped. The groups are separate if their separation exceeds, with its whole interval, that of 99 in 100 of `null`
    untrained units.
    Raises VesaliusError for a feature with nothing below it.
    """
    pictures = open_images(images).take(n_images, seed=seed)
    below = below or _neighbour(model, feature.site, -1)
    above = above or _neighbour(model, feature.site, +1)
    if not below:
        raise VesaliusError(
            f"nothing is known to be below '{feature.site}' in {model.name}; name a site as below"
        )
    read = before_nonlinearity(model, feature)
    top = TopExamples(1, min(examples, len(pictures)))
    means = []
    for numbers, (acts,) in progress(activations([model], read.site, pictures), "pictures"):
        values = of_feature(read, acts)
        top.add(values, numbers)
        means.append(values.clamp(min=0).mean(2).cpu())
    contributions = _contributions(model, [read], below, pictures, top)[0]
    members = _grouped(contributions, seed=seed)
    low, high = _interval(contributions, members, seed=seed)
    twin_values, untrained = _untrained(
        model, read.site, below, pictures, examples=top.values.shape[1], units=null, seed=seed
    )

    order = members.argsort(stable=True)
    shown, _ = crops(
        model,
        pictures,
        site=read.site,
        field=field_of(model, read.site),
        examples=top.examples[0].tolist(),
        positions=top.positions[0].tolist(),
    )
    groups = []
    for number in members.unique().tolist():
        inside = (members == number).nonzero()[:, 0]
        main = contributions[inside].mean(0).topk(min(SHOWN, contributions.shape[1])).indices
        groups.append(
            {
                "pictures": shown[inside],
                "values": top.values[0, inside],
                "names": [pictures.names[example] for example in top.examples[0, inside].tolist()],
                "channels": main.tolist(),
            }
        )
    return PolysemanticNeurons(
        feature=str(feature),
        below=below,
        groups=groups,
        contributions=F.normalize(contributions, p=1, dim=1)[order],
        separation=_separation(contributions, members),
        separation_low=low,
        separation_high=high,
        silhouette=_silhouette(contributions, members),
        distance=_distance(contributions, members),
        null=untrained,
        chance=untrained.prod(1).quantile(0.99).item(),
        spread=_spread(model, feature, below, above),
        selectivity=_selectivity(torch.cat(means)[:, 0], twin_values, pictures.classes),
        choices={"above": above, "pictures": len(pictures), "data": pictures.hash},
    )


def _neighbour(model: Model, site: str, step: int) -> str:
    """The same site one layer earlier or later, as the architecture orders them; empty if there is none."""
    if model.architecture is None:
        return ""
    layers, address = model.architecture.layer_names(model.module), Site.parse(site)
    if address.role is not None and address.layers is not None:
        (number,) = address.layer_numbers(len(layers))
        return str(replace(address, layers=str(number + step))) if 0 <= number + step < len(layers) else ""
    if address.path not in layers:
        return ""
    number = layers.index(address.path) + step
    return layers[number] if 0 <= number < len(layers) else ""


@torch.enable_grad()
def _contributions(
    model: Model, features: list[Feature], below: str, pictures: Images, top: TopExamples
) -> Float[Tensor, "feature example channel"]:
    """What each channel of `below` adds to each feature in its own examples, where positive.

    A picture that is an example of several features is run once up to `below`, and from there on once for each.
    """
    site, (count, examples) = features[0].site, top.examples.shape
    order = top.examples.flatten().argsort(stable=True)
    parts = []
    for pairs in order.split(PAIRS):
        numbers, row = top.examples.flatten()[pairs].unique(return_inverse=True)
        pixels = torch.stack([pictures.fitted(number, model.pictures) for number in numbers.tolist()])

        def repeated(value: Tensor, row: Tensor = row) -> Tensor:
            return value.detach()[row].requires_grad_()

        with (
            intervene(model, {below: repeated}, resize=True),
            record(model, [below, site], stop=True, gradients=True) as acts,
        ):
            model(pixels.to(device=model.device, dtype=model.dtype))
        wanted = [features[pair] for pair in (pairs // examples).tolist()]
        values = torch.cat([one.value(acts[site][at : at + 1]).flatten(1) for at, one in enumerate(wanted)])
        total = values.gather(1, top.positions.flatten()[pairs][:, None].to(values.device)).sum()
        (gradient,) = torch.autograd.grad(total, acts[below])
        parts.append(by_unit(gradient * acts[below]).sum(2).clamp(min=0).float().cpu().detach())
    return torch.cat(parts)[order.argsort()].view(count, examples, -1)


def _grouped(contributions: Float[Tensor, "example channel"], *, seed: int) -> Int[Tensor, " example"]:
    """The group of each example, 0 the largest; all 0 where no grouping has groups large enough."""
    best, members = 0.0, torch.zeros(len(contributions), dtype=torch.long)
    for count in range(2, min(MOST, len(contributions) - 1) + 1):
        found = _k_means(F.normalize(contributions, dim=1), count, seed=seed)
        if found.bincount(minlength=count).min() >= max(2, SMALLEST * len(found)):
            value = _separation(contributions, found)
            if value > best:
                best, members = value, found
    rank = members.bincount().argsort(descending=True, stable=True).argsort()
    return rank[members]


def _k_means(points: Float[Tensor, "example channel"], count: int, *, seed: int) -> Int[Tensor, " example"]:
    """The best of eight starts, by the sum of cosines with the means (Dhillon and Modha 2001)."""
    generator = torch.Generator().manual_seed(seed)
    best, members = -math.inf, torch.zeros(len(points), dtype=torch.long)
    for _ in range(8):
        means = points[torch.randperm(len(points), generator=generator)[:count]]
        for _ in range(20):
            found = (points @ means.T).argmax(1)
            sums = torch.zeros_like(means).index_add_(0, found, points)
            means = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=1), means)
        value = (points @ means.T).amax(1).sum().item()
        if value > best:
            best, members = value, (points @ means.T).argmax(1)
    return members


def _separation(contributions: Float[Tensor, "example channel"], members: Int[Tensor, " example"]) -> float:
    return _silhouette(contributions, members) * _distance(contributions, members)


def _silhouette(contributions: Float[Tensor, "example channel"], members: Int[Tensor, " example"]) -> float:
    """Mean over examples of (b - a) / max(a, b): a the distance to its own group, b to the nearest other; 0 of one."""
    inside = F.one_hot(members).float()
    inside = inside[:, inside.any(0)]
    if inside.shape[1] < 2:
        return 0.0
    points = F.normalize(contributions, dim=1)
    sums, sizes = (1 - points @ points.T) @ inside, inside.sum(0)
    own = (sums * inside).sum(1) / ((sizes * inside).sum(1) - 1).clamp(min=1)
    other = (sums / sizes).masked_fill(inside.bool(), torch.inf).amin(1)
    return ((other - own) / torch.maximum(own, other).clamp(min=1e-6)).mean().item()


def _interval(
    contributions: Float[Tensor, "example channel"], members: Int[Tensor, " example"], *, seed: int
) -> tuple[float, float]:
    """The middle 95 in a hundred of the separation, from halves of each group (Politis and Romano 1994)."""
    generator = torch.Generator().manual_seed(seed)
    groups = [(members == number).nonzero()[:, 0] for number in members.unique()]
    drawn = []
    for _ in range(200):
        half = torch.cat(
            [g[torch.randperm(len(g), generator=generator)[: (len(g) + 1) // 2]] for g in groups]
        )
        drawn.append(_separation(contributions[half], members[half]))
    drawn = torch.tensor(drawn)
    whole = _separation(contributions, members)
    deviation = (drawn - drawn.mean()) / math.sqrt(2)  # of a half to that of all
    low, high = (whole + deviation.quantile(torch.tensor([0.025, 0.975]))).tolist()
    return min(low, whole), max(high, whole)


def _distance(contributions: Float[Tensor, "example channel"], members: Int[Tensor, " example"]) -> float:
    """1 - the smallest cosine between the mean contributions of two groups."""
    points, inside = F.normalize(contributions, dim=1), F.one_hot(members).float()
    means = F.normalize(inside.T @ points, dim=1)
    return 1 - (means @ means.T).min().item() if len(means) > 1 else 0.0


def _untrained(
    model: Model, site: str, below: str, pictures: Images, *, examples: int, units: int, seed: int
) -> tuple[Float[Tensor, "picture unit"], Float[Tensor, "null 2"]]:
    """Of units of untrained twins: mean positive values by picture; silhouettes and distances."""
    width = model.map_shape(site)[0]
    each = min(units, width)
    values, found = [], []
    for turn in progress(range(math.ceil(units / each)), "untrained twins"):
        twin = model.random_twin(seed + 1 + turn)
        chosen = (
            torch.randperm(width, generator=torch.Generator().manual_seed(seed + turn))[:each].sort().values
        )
        top = TopExamples(each, examples)
        for numbers, (acts,) in activations([twin], site, pictures):
            part = by_unit(acts)[:, chosen]
            top.add(part, numbers)
            if turn == 0:
                values.append(part.clamp(min=0).mean(2).float().cpu())
        drawn = [neurons(site)[unit] for unit in chosen.tolist()]
        for one in _contributions(twin, drawn, below, pictures, top):
            members = _grouped(one, seed=seed)
            found.append([_silhouette(one, members), _distance(one, members)])
    return torch.cat(values), torch.tensor(found)


def _spread(model: Model, feature: Feature, below: str, above: str) -> dict[str, list[float]]:
    """Participation ratio (Σw²)² / Σw⁴ of a channel's weights on the layers around it, and its median in the layer.

    w is the norm of a spatial kernel: 1 where one channel has all the weight, their number where all have the same.
    """
    if feature.read is not None or len(model.map_shape(feature.site)) < 3:
        return {}
    powers = {"below": expanded_weights(model, below, feature.site).square().sum((2, 3))}
    if above:
        powers["above"] = expanded_weights(model, feature.site, above).square().sum((2, 3)).T
    ratios = {name: p.sum(1).square() / p.square().sum(1).clamp(min=1e-30) for name, p in powers.items()}
    return {name: [ratio[feature.index].item(), ratio.median().item()] for name, ratio in ratios.items()}


def _selectivity(
    values: Float[Tensor, " picture"], untrained: Float[Tensor, "picture unit"], classes: list | None
) -> list[float] | None:
    """(largest class mean - mean of the others) / their sum, of the unit and the median of untrained ones."""
    if classes is None or len(set(classes)) < 2 or len(set(classes)) > len(classes) / 2:
        return None
    names = sorted(set(classes))
    inside = F.one_hot(torch.tensor([names.index(name) for name in classes])).float()

    def of(columns: Float[Tensor, "picture unit"]) -> Float[Tensor, " unit"]:
        means = inside.T @ columns / inside.sum(0)[:, None]
        largest = means.amax(0)
        others = (means.sum(0) - largest) / (len(names) - 1)
        return (largest - others) / (largest + others).clamp(min=1e-30)

    return [of(values[:, None]).item(), of(untrained).median().item()]
