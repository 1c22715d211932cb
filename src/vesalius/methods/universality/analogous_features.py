"""The twins of a layer's features in another network: found by what they do, and checked in two other ways.

Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in) show curve detectors and high–low frequency detectors
in AlexNet, InceptionV1, VGG19 and ResNetV2-50, and call the evidence anecdotal. Here each unit's twin is the unit of
the other network whose maps correlate with its own most, over the same pictures (Li et al. 2015, arXiv 1511.07543).
It is mutual if the unit is in turn the twin's best match in its layer. Two checks that had no part in the choice: do
the twins answer the same synthetic stimuli, each drawn at the size of its own receptive field; and does the picture
made to raise one raise the other more than its neighbours? Controls: random twins of the other network, and the same
maps with the pictures exchanged.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from vesalius import figures, stimuli
from vesalius.access import record
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.examples import field_of
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import family_wise, wilson
from vesalius.model import Model, load
from vesalius.representations import cells
from vesalius.result import Headline, Result
from vesalius.visualization import visualise

GRID = 7
"""Cells along each side on which maps of different sizes are compared."""
FAMILIES = ("rounded_corner", "gabor", "colour_contrast")


@dataclass(frozen=True)
class AnalogousFeatures(Result):
    """Correlations are in -1..1, over pictures and cells of maps or over stimuli."""

    site: str
    other: str
    units: Int[Tensor, " unit"]
    twin_sites: list
    twins: Int[Tensor, " unit"]
    """The best match of each unit, at the site of the same place in `twin_sites`."""
    correlation: Float[Tensor, " unit"]
    mutual: Int[Tensor, " unit"]
    """1 where the unit is its twin's best match too."""
    chance: float
    """What the best correlation of a whole layer with a random twin, or with exchanged pictures, passes once in 100."""
    random_best: Float[Tensor, "draw unit"]
    """Best correlations with random twins of the other network, and last with exchanged pictures."""
    stimulus_correlation: Float[Tensor, " unit"]
    """Of the twins' responses to the same synthetic stimuli; NaN where either has none."""
    stimulus_chance: Float[Tensor, " unit"]
    """The same with a unit of the twin's layer picked at random."""
    shown: Int[Tensor, " pair"]
    """Places in `units` of the pairs that are drawn."""
    pictures: UInt8[Tensor, "pair two channel height width"]
    """Made to raise the unit, and made to raise its twin."""
    cross_rank: Float[Tensor, "pair two"]
    """Share of the other layer's units that the other's picture raises more, in their own sd: 0 is the twin first;
    .5 is chance. First the twin under the unit's picture, then the unit under the twin's."""
    images: str

    @property
    def found(self) -> list[int]:
        """Places of the units with a mutual twin beyond chance, best first."""
        good = (self.mutual > 0) & (self.correlation > self.chance)
        return [place for place in self.correlation.argsort(descending=True).tolist() if good[place]]

    def headlines(self) -> list[Headline]:
        found, count = self.found, len(self.units)
        expected = (self.random_best > self.chance).float().mean().item()
        interval = wilson(len(found), count)
        rows = [
            Headline(
                f"share of the units of {self.site} with a mutual twin in {self.other} beyond chance",
                len(found) / count,
                expected,
                interval,
                len(found) > 0 and interval[0] > expected,
                f"{len(found)} of {count}; chance at 1% for the layer: r = {self.chance:.2f}",
            )
        ]
        values = self.correlation
        control = family_wise(self.random_best[:-1].mean(1))
        spread = 1.96 * values.std().item() / max(len(values), 2) ** 0.5 if len(values) > 1 else 0.0
        mean = values.mean().item()
        rows.append(
            Headline(
                "mean best correlation of a unit's maps with the other network's",
                mean,
                control,
                (mean - spread, mean + spread),
                mean - spread > control,
            )
        )
        if found:
            agree, chance = self.stimulus_correlation[found], self.stimulus_chance[found]
            known = ~(agree.isnan() | chance.isnan())
            if known.any():
                rows.append(
                    Headline(
                        "correlation of twins' answers to synthetic stimuli, mean",
                        agree[known].mean().item(),
                        chance[known].mean().item(),
                        note="control: the unit with a random one of the twin's layer",
                    )
                )
        if len(self.shown):
            rows.append(
                Headline(
                    "share of its layer that a twin is behind under the other's picture, mean",
                    self.cross_rank.mean().item(),
                    0.5,
                    note=f"over the {len(self.shown)} pairs drawn",
                )
            )
        return rows

    def figure(self) -> Figure:
        return twins_page([self])


def twins_page(results: list[AnalogousFeatures], *, columns: int = 8) -> Figure:
    """Units of one layer beside their twins in one or several other networks, a row for each network.

    The results are about the same layer; the columns are the units that have the best twins in the first.
    """
    first = results[0]
    shown = first.shown[:columns].tolist()
    rows = [
        {
            "label": first.site,
            "pictures": [first.pictures[pair, 0] for pair in range(len(shown))],
            "texts": [f"{first.site}[{first.units[place]}]" for place in shown],
        }
    ]
    for result in results:
        drawn = {place: pair for pair, place in enumerate(result.shown.tolist())}
        rows.append(
            {
                "label": result.other,
                "pictures": [result.pictures[drawn[place], 1] if place in drawn else None for place in shown],
                "texts": [
                    f"{result.twin_sites[place]}[{result.twins[place]}], r {result.correlation[place]:.2f}"
                    f"{'' if result.mutual[place] else ', not mutual'}"
                    for place in shown
                ],
            }
        )
    scatters = [
        figures.histogram(
            {"best match": result.correlation, "with random twins": result.random_best[:-1].flatten()},
            title=f"Best correlation of each unit with {result.other}",
            x_label="correlation of maps",
            references=[("x", result.chance, "chance, 1% for the layer")],
        )
        for result in results
    ]
    gallery = figures.gallery(
        rows,
        title=f"{first.site} and its twins",
        caption=f"Pictures made to raise each unit; {first.images}.",
    )
    return figures.group([gallery, *scatters], title="Analogous features")


@method(needs=("images",))
@torch.no_grad()
def analogous_features(
    model: Model,
    *,
    other: str | Model = "",
    site: str = "",
    units: list[int] = (),
    other_sites: list[str] = (),
    images: str | Images = "shapes",
    n_images: int = 96,
    draws: int = 4,
    pairs: int = 6,
    steps: int = 64,
    seed: int = 0,
) -> AnalogousFeatures:
    """Find the twin of every unit of a layer in another network, and check each by stimuli and by pictures.

    `other` is a model or its name; `units` of `site` are matched (all of them if none are named) with every unit of
    `other_sites` (the other's own layers if none are named). `pairs` of the best are drawn, with `steps` of
    optimisation. Raises VesaliusError if there are fewer than 16 pictures.
    """
    if not other:
        raise Inapplicable("it looks for twins in another network; name it")
    second = load(other) if isinstance(other, str) else other
    site = model.site(site)
    chosen = torch.tensor(list(units) or list(range(model.map_shape(site)[0])))
    for unit in chosen.tolist():
        model.feature(Feature(site, unit))
    places = list(other_sites) or second.layer_sites()
    pictures = open_images(images).take(n_images, seed=seed)
    if len(pictures) < 16:
        raise VesaliusError(f"analogous_features was given {len(pictures)} pictures; expected 16 or more")
    moved = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))

    mine = _maps(model, [site], pictures)[site][:, :, chosen]
    theirs = _maps(second, places, pictures)
    tables = [_correlation(mine, theirs[place]) for place in places]
    best = torch.stack([table.amax(1) for table in tables])
    where = best.argmax(0)
    twins = torch.stack([tables[layer][unit].argmax() for unit, layer in enumerate(where.tolist())])
    whole = _maps(model, [site], pictures)[site] if len(units) else mine
    back = {layer: _correlation(whole, theirs[places[layer]]).argmax(0) for layer in set(where.tolist())}
    mutual = torch.stack([back[layer][twin] for layer, twin in zip(where.tolist(), twins.tolist())]) == chosen

    random = [
        _best(mine, _maps(second.random_twin(seed + 1 + draw), places, pictures)) for draw in range(draws)
    ]
    random.append(_best(mine[moved], theirs))
    random_best = torch.stack(random)
    correlation = best.amax(0)
    twin_sites = [places[layer] for layer in where.tolist()]
    answers = _Answers(model, second)
    picked = torch.Generator().manual_seed(seed)
    agree, chance = [], []
    for unit, place, twin in zip(chosen.tolist(), twin_sites, twins.tolist()):
        width = second.map_shape(place)[0]
        stranger = int(torch.randint(width, (), generator=picked))
        agree.append(answers.correlation(site, unit, place, twin))
        chance.append(answers.correlation(site, unit, place, stranger))

    order = (correlation + mutual.float()).argsort(descending=True)
    shown = order[: pairs if steps else 0]
    drawn, ranks = _cross(
        model, second, site, chosen, twin_sites, twins, shown.tolist(), theirs, whole, steps, seed
    )
    return AnalogousFeatures(
        site,
        second.name,
        chosen,
        twin_sites,
        twins,
        correlation,
        mutual.int(),
        _chance(random_best),
        random_best,
        torch.tensor(agree),
        torch.tensor(chance),
        shown,
        drawn,
        ranks,
        f"{len(pictures)} pictures, maps on {GRID}×{GRID} cells",
    )


def _maps(model: Model, sites: list[str], pictures: Images) -> dict[str, Float[Tensor, "image cell unit"]]:
    """The maps of all pictures on a coarse grid, for every site."""
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    batches = pictures.batches(model.preprocessing, batch=16)
    for _, pixels in progress(batches, f"maps of {model.name}"):
        with record(model, sites, stop=True) as acts:
            model(pixels.to(device=model.device, dtype=model.dtype))
        for site in sites:
            parts[site].append(cells(acts[site].float().cpu(), GRID))
    return {site: torch.cat(part) for site, part in parts.items()}


def _correlation(
    mine: Float[Tensor, "image cell unit"], theirs: Float[Tensor, "image cell other"]
) -> Float[Tensor, "unit other"]:
    """Over all pictures and cells; 0 with a unit that never varies."""
    first, second = (one.flatten(0, 1).double() for one in (mine, theirs))
    first, second = first - first.mean(0), second - second.mean(0)
    norms = first.norm(dim=0)[:, None] * second.norm(dim=0)
    return torch.where(norms > 1e-9, first.T @ second / norms.clamp_min(1e-9), 0.0).float()


def _best(mine: Tensor, theirs: dict[str, Tensor]) -> Float[Tensor, " unit"]:
    return torch.stack([_correlation(mine, maps).amax(1) for maps in theirs.values()]).amax(0)


def _chance(random_best: Float[Tensor, "draw unit"]) -> float:
    """What a layer's best correlation passes once in 100 by chance; of random twins, fitted on Fisher's scale."""
    twins = random_best[:-1].clamp(-0.9999, 0.9999).atanh()
    return max(math.tanh(family_wise(twins)), random_best[-1].max().item())


class _Answers:
    """Responses of whole layers to the synthetic stimuli, drawn once for each layer at its receptive field's size."""

    def __init__(self, first: Model, second: Model) -> None:
        self.models = {"first": first, "second": second}
        self.known: dict[tuple[str, str], Tensor] = {}

    def correlation(self, site: str, unit: int, place: str, twin: int) -> float:
        pair = torch.stack([self._of("first", site)[:, unit], self._of("second", place)[:, twin]])
        return torch.corrcoef(pair)[0, 1].item() if bool((pair.std(1) > 1e-9).all()) else float("nan")

    def _of(self, which: str, site: str) -> Float[Tensor, "stimulus unit"]:
        if (which, site) not in self.known:
            self.known[which, site] = _responses(self.models[which], site)
        return self.known[which, site]


def _responses(model: Model, site: str) -> Float[Tensor, "stimulus unit"]:
    """What every unit's middle position gives for every stimulus of `FAMILIES`."""
    size = min(model.preprocessing.size)
    field = field_of(model, site)
    reach = size if field is None else min(field.size, size)
    found = []
    for name in FAMILIES:
        drawn = stimuli.named(name).pictures(reach, size=size)
        if model.preprocessing.channels == 1:
            drawn = drawn.mean(1, keepdim=True)
        for part in drawn.split(32):
            with record(model, site, stop=True) as acts:
                model(part.to(device=model.device, dtype=model.dtype))
            found.append(_middle(acts[site].float().cpu()))
    return torch.cat(found)


def _middle(acts: Tensor) -> Float[Tensor, "picture unit"]:
    """The value at the middle position of maps; of tokens, their mean; of vectors, themselves."""
    if acts.dim() == 4:
        return acts[:, :, acts.shape[2] // 2, acts.shape[3] // 2]
    return acts.mean(1) if acts.dim() == 3 else acts


def _cross(
    model: Model,
    second: Model,
    site: str,
    units: Tensor,
    places: list[str],
    twins: Tensor,
    shown: list[int],
    theirs: dict[str, Tensor],
    whole: Tensor,
    steps: int,
    seed: int,
) -> tuple[UInt8[Tensor, "pair two channel height width"], Float[Tensor, "pair two"]]:
    """Pictures of the shown pairs, and how far each falls behind its layer under the other's picture."""
    if not shown:
        return torch.zeros(0, 2, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, 2)
    ours = [Feature(site, int(units[place])) for place in shown]
    other = [Feature(places[place], int(twins[place])) for place in shown]
    seen = visualise(model, ours, steps=steps, seed=seed, track=lambda s: progress(s, "pictures")).images
    twin_seen = visualise(
        second, other, steps=steps, seed=seed, track=lambda s: progress(s, "twins' pictures")
    ).images
    ranks = torch.zeros(len(shown), 2)
    for pair, (feature, twin) in enumerate(zip(ours, other)):
        ranks[pair, 0] = _behind(second, twin, seen[pair], theirs[twin.site])
        ranks[pair, 1] = _behind(model, feature, twin_seen[pair], whole)
    side = max(seen.shape[-1], twin_seen.shape[-1])
    both = [_enlarged(pictures, side) for pictures in (seen, twin_seen)]
    return torch.stack(both, 1), ranks


def _behind(
    model: Model, feature: Feature, picture: UInt8[Tensor, "channel height width"], maps: Tensor
) -> float:
    """The share of the layer's units that this picture raises more, its strongest cell in units of sd over pictures."""
    pixels = model.preprocessing.fit(picture.float() / 255)[None]
    with record(model, feature.site, stop=True) as acts:
        model(pixels.to(device=model.device, dtype=model.dtype))
    flat = maps.flatten(0, 1)
    raised = (cells(acts[feature.site].float().cpu(), GRID)[0].amax(0) - flat.mean(0)) / flat.std(
        0
    ).clamp_min(1e-9)
    return (raised > raised[feature.index]).float().mean().item()


def _enlarged(pictures: UInt8[Tensor, "picture channel height width"], side: int) -> Tensor:
    if pictures.shape[1] == 1:
        pictures = pictures.expand(-1, 3, -1, -1)
    if pictures.shape[-2:] == (side, side):
        return pictures
    return interpolate(pictures.float(), size=(side, side), mode="nearest").to(torch.uint8)
