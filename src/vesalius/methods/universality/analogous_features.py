"""The twins of a layer's features in another network: found by what they do, and checked in two other ways.

Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in) show curve detectors and high–low frequency detectors
in AlexNet, InceptionV1, VGG19 and ResNetV2-50, and call the evidence anecdotal. Here each unit's twin is the unit of
the other network whose maps correlate with its own most, over the same pictures (Li et al. 2015, arXiv 1511.07543).
It is mutual if the unit is in turn the twin's best match in its layer. Two checks that had no part in the choice: how
many units of the twin's layer answer synthetic stimuli, drawn at the size of each layer's receptive field, more like
the unit does; and how many the picture made to raise the unit raises more, and the other way round.

Controls: random twins of the other network, in which the best match of the same unit is looked for in the same way,
and the same maps with each picture beside the next one. Any large map that follows brightness or contrast finds its
like in a random network too, so every unit is held against its own best matches there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from vesalius import figures, stimuli
from vesalius.access import record
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, require_finite, wilson
from vesalius.model import Model, load
from vesalius.representations import Correlations, cells
from vesalius.responses import answers, window
from vesalius.result import Headline, Result
from vesalius.visualization import visualise
from vesalius.visualization.transforms import Transforms

GRID = 7
"""Cells along each side on which maps of different sizes are compared."""
BATCH = 16
FAMILIES = ("rounded_corner", "gabor", "colour_contrast")
EVERY = 3
"""One in so many of the families' pictures is asked with."""
SIDE = 128
"""Pictures are made no larger, and shown at this size, in px."""


@dataclass(frozen=True)
class AnalogousFeatures(Result):
    """Correlations are in -1..1, over pictures and cells of maps, or over stimuli."""

    site: str
    other: str
    units: Int[Tensor, " unit"]
    twin_sites: list
    twins: Int[Tensor, " unit"]
    """The best match of each unit, at the site of the same place in `twin_sites`."""
    correlation: Float[Tensor, " unit"]
    mutual: Int[Tensor, " unit"]
    """1 where the unit is its twin's best match too."""
    chance: Float[Tensor, " unit"]
    """What any unit's best match passes once in 100 such searches in a random twin of the other network."""
    random_best: Float[Tensor, "draw unit"]
    """Best correlations with random twins of the other network."""
    random_found: list
    """For each random twin, the share of units whose best match there is mutual and beyond the chance of the rest."""
    exchanged_best: Float[Tensor, " unit"]
    """Best correlations with the maps of the next picture."""
    stimulus_correlation: Float[Tensor, " unit"]
    """Of the twins' answers to the same synthetic stimuli; NaN for a unit that answers all alike."""
    stimulus_behind: Float[Tensor, " unit"]
    """Share of the units of the twin's layer that answer more like the unit: 0 is the twin first, .5 is chance."""
    shown: Int[Tensor, " pair"]
    """Places in `units` of the pairs that are drawn."""
    pictures: UInt8[Tensor, "pair two channel side side"]
    """Made to raise the unit, and made to raise its twin."""
    picture_behind: Float[Tensor, "pair two"]
    """Share of its layer that the other's picture raises more, in their own sd: 0 is the twin first, .5 is chance.
    First the twin under the unit's picture, then the unit under the twin's."""
    choices: dict

    @property
    def found(self) -> list[int]:
        """Places of the units with a mutual twin beyond chance, best first."""
        good = _found(self.correlation, self.mutual.bool(), self.chance)
        return [place for place in self.correlation.argsort(descending=True).tolist() if good[place]]

    def headlines(self) -> list[Headline]:
        found, count = self.found, len(self.units)
        expected = max(self.random_found)
        interval, spread = wilson(len(found), count), bootstrap(self.correlation, seed=0)
        control = max(family_wise(self.random_best.mean(1)), self.exchanged_best.mean().item())
        rows = [
            Headline(
                f"share of the units of {self.site} with a mutual twin in {self.other} beyond chance",
                len(found) / count,
                expected,
                interval,
                len(found) > 0 and interval[0] > expected,
                f"{len(found)} of {count}, {int(self.mutual.sum())} mutual; control: the most in a random twin of it",
            ),
            Headline(
                "mean correlation of a unit's maps with its best match",
                self.correlation.mean().item(),
                control,
                spread,
                spread[0] > control,
                f"{self.random_best.mean():.2f} with random twins, {self.exchanged_best.mean():.2f} with "
                "pictures exchanged",
            ),
        ]
        checks = {
            "answers to synthetic stimuli": self.stimulus_behind[found],
            "the picture made for the other": self.picture_behind.flatten(),
        }
        for what, shares in checks.items():
            known = shares[~shares.isnan()]
            if len(known):
                claim = f"share of its layer that a twin is behind by {what}, mean"
                note = f"control: chance; 0 is the twin first, as in {int((known == 0).sum())} of {len(known)}"
                rows.append(Headline(claim, known.mean().item(), 0.5, bootstrap(known, seed=0), None, note))
        return rows

    def figure(self) -> Figure:
        return twins_page([self])


def twins_page(results: list[AnalogousFeatures], *, columns: int = 8) -> Figure:
    """Units of one layer beside their twins in one or several other networks, a row for each network.

    The results are about the same units; the columns are those drawn in the first.
    """
    first = results[0]
    shown = first.shown[:columns].tolist()
    rows = [
        {
            "label": f"{first.choices['model']}, {first.site}",
            "pictures": [first.pictures[pair, 0] for pair in range(len(shown))],
            "texts": [f"{first.site}[{first.units[place]}]" for place in shown],
        }
    ]
    for result in results:
        drawn = dict(zip(result.shown.tolist(), result.pictures[:, 1]))
        beyond = set(result.found)
        rows.append(
            {
                "label": result.other,
                "pictures": [drawn.get(place) for place in shown],
                "texts": [
                    f"{result.twin_sites[place]}[{result.twins[place]}], r {result.correlation[place]:.2f}"
                    + (" ★" if place in beyond else "")
                    for place in shown
                ],
            }
        )
    scatters = [
        figures.histogram(
            {f"with {result.other}": result.correlation, "with its random twins": result.random_best.flatten()},
            title=f"Best match of each unit in {result.other}",
            x_label="correlation of maps",
        )
        for result in results
    ]
    if not shown:
        return figures.group(scatters, title="Analogous features")
    gallery = figures.gallery(
        rows,
        title=f"{len(shown)} units of {first.site} and their twins",
        caption=f"Each picture is made to raise the unit under it. Twins are the units whose maps correlate most "
        f"(r) over {first.choices['pictures']} pictures; a star where the unit is also its twin's best match and r is "
        "beyond chance.",
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
    steps: int = 96,
    seed: int = 0,
) -> AnalogousFeatures:
    """Find the twin of every unit of a layer in another network, and check each by stimuli and by pictures.

    `other` is a model or its name; `units` of `site` are matched (all of them if none are named) with every unit of
    `other_sites` (the other's own layers if none are named). `draws` is how many random twins of the other are
    searched too. `pairs` are drawn, with `steps` of optimisation: the units first named, or else those with the best
    twins. Raises VesaliusError for fewer than 16 pictures or two draws, and for a layer that gives NaN.
    """
    if not other:
        raise Inapplicable("it looks for twins in another network; name it")
    if draws < 2:
        raise VesaliusError(f"analogous_features was given {draws} draws; their spread needs 2 or more")
    second = load(other) if isinstance(other, str) else other
    site = model.site(site)
    width = model.map_shape(site)[0]
    chosen = [model.feature(Feature(site, unit)).index for unit in units or range(width)]
    places = [second.site(place) for place in other_sites] or second.layer_sites()
    pictures = open_images(images).take(n_images, seed=seed)
    if len(pictures) < 16:
        raise VesaliusError(f"analogous_features was given {len(pictures)} pictures; expected 16 or more")

    theirs, exchanged, *random = _correlations(model, second, site, places, pictures, draws, seed)
    correlation, columns, mutual = _best(theirs, chosen)
    nulls = [_best(one, chosen) for one in random]
    random_best = torch.stack([best for best, _, _ in nulls])
    rest = [torch.arange(draws) != draw for draw in range(draws)]
    random_found = [
        _found(best, back, _chance(random_best[others])).float().mean().item()
        for (best, _, back), others in zip(nulls, rest)
    ]
    every = [Feature(place, unit) for place in places for unit in range(second.map_shape(place)[0])]
    ours, twins = [Feature(site, unit) for unit in chosen], [every[column] for column in columns.tolist()]
    agree, behind = _by_stimuli(model, second, ours, twins)

    order = torch.arange(len(chosen)) if units else (correlation + mutual).argsort(descending=True)
    shown = order[: pairs if steps else 0]
    mine, others = [ours[place] for place in shown.tolist()], [twins[place] for place in shown.tolist()]
    made = _made(model, mine, steps, seed), _made(second, others, steps, seed)
    own, foreign = ((mean, (squares / theirs.count).sqrt()) for mean, squares in zip(theirs.means, theirs.squares))
    ranks = _by_picture(second, others, made[0], places, *foreign), _by_picture(model, mine, made[1], [site], *own)
    return AnalogousFeatures(
        site=site,
        other=second.name,
        units=torch.tensor(chosen),
        twin_sites=[twin.site for twin in twins],
        twins=torch.tensor([twin.index for twin in twins]),
        correlation=correlation,
        mutual=mutual.int(),
        chance=_chance(random_best),
        random_best=random_best,
        random_found=random_found,
        exchanged_best=_best(exchanged, chosen)[0],
        stimulus_correlation=agree,
        stimulus_behind=behind,
        shown=shown,
        pictures=torch.stack(made, 1),
        picture_behind=torch.stack(ranks, 1),
        choices={
            "model": model.name,
            "sites of the other": places,
            "pictures": len(pictures),
            "data": pictures.hash,
            "cells": GRID * GRID,
            "stimuli": list(FAMILIES),
            "steps": steps,
        },
    )


def _correlations(
    model: Model, second: Model, site: str, places: list[str], pictures: Images, draws: int, seed: int
) -> list[Correlations]:
    """All units of the site with all of the other's: as they are, with the next picture's, and with random twins'.

    The pictures are gone through once, by all networks side by side.
    """
    networks = [second, *(second.random_twin(seed + 1 + draw) for draw in range(draws))]
    found = [Correlations() for _ in range(2 + draws)]
    streams = zip(*(pictures.batches(one.preprocessing, batch=BATCH) for one in (model, second)))
    for (_, pixels), (_, other_pixels) in progress(streams, f"maps of {model.name} and {second.name}"):
        mine = _cells(model, [site], pixels)
        for number, network in enumerate(networks):
            theirs = _cells(network, places, other_pixels).flatten(0, 1)
            found[number and number + 1].add(mine.flatten(0, 1), theirs)
            if number == 0 and len(mine) > 1:
                found[1].add(mine.roll(1, 0).flatten(0, 1), theirs)
    return found


def _cells(
    model: Model, sites: list[str], pixels: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image cell unit"]:
    """The maps on a coarse grid, the units of all sites behind each other."""
    with record(model, sites, stop=True) as acts:
        model(pixels.to(device=model.device, dtype=model.dtype))
    return torch.cat([cells(require_finite(acts[site].float().cpu(), site), GRID) for site in sites], -1)


def _best(
    seen: Correlations, chosen: list[int]
) -> tuple[Float[Tensor, " unit"], Int[Tensor, " unit"], Bool[Tensor, " unit"]]:
    """The best correlation of each chosen unit, whose it is, and whether it is that one's best too."""
    table = seen.table()
    values, columns = table[chosen].max(1)
    return values, columns, table.argmax(0)[columns] == torch.tensor(chosen)


def _chance(random_best: Float[Tensor, "draw unit"]) -> Float[Tensor, " unit"]:
    """What a search in one more random twin passes, for any of the units, once in 100 times.

    On Fisher's scale: each unit's mean over draws, and the largest that a draw exceeds the mean of the others by.
    """
    scores = random_best.clamp(-0.9999, 0.9999).atanh()
    draws = len(scores)
    excess = (scores - scores.mean(0)) * draws / (draws - 1)
    return (scores.mean(0) + family_wise(excess)).tanh()


def _found(best: Tensor, mutual: Bool[Tensor, " unit"], chance: Tensor) -> Bool[Tensor, " unit"]:
    return mutual & (best > chance)


def _by_stimuli(
    model: Model, second: Model, units: list[Feature], twins: list[Feature]
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """Correlation of twins' answers, and the share of the twin's layer whose answers correlate more."""
    own = _answers(model, units[0].site)
    layers: dict[str, Tensor] = {}
    for site in progress(list(dict.fromkeys(twin.site for twin in twins)), "synthetic stimuli"):
        seen = Correlations()
        seen.add(own, _answers(second, site))
        layers[site] = torch.where(seen.squares[0][:, None] > 0, seen.table(), torch.nan)
    tables = [layers[twin.site][unit.index] for unit, twin in zip(units, twins)]
    agree = [table[twin.index] for table, twin in zip(tables, twins)]
    behind = [(table > value).float().mean() + value * 0 for table, value in zip(tables, agree)]
    return torch.stack(agree), torch.stack(behind)


def _answers(model: Model, site: str) -> Float[Tensor, "stimulus unit"]:
    """What every unit's middle position gives for the stimuli, drawn in its receptive field."""
    seen = window(model, site)
    drawn = [
        stimuli.named(name).pictures(seen.field, size=seen.size, centre=seen.centre)[::EVERY] for name in FAMILIES
    ]
    return answers(model, site, torch.cat(drawn), seen=seen)


def _made(model: Model, features: list[Feature], steps: int, seed: int) -> UInt8[Tensor, "picture 3 side side"]:
    """One picture for each feature, made to raise the middle of its map, as large as what that sees if it fits.

    Nothing is turned or flipped, which would blur what has an orientation.
    """
    shown = torch.zeros(len(features), 3, SIDE, SIDE, dtype=torch.uint8)
    for site in dict.fromkeys(feature.site for feature in features):
        chosen = [place for place, feature in enumerate(features) if feature.site == site]
        seen = window(model, site)
        size = None if model.preprocessing.fixed else min(seen.size, SIDE)
        jitter = max(2, seen.field // 10) if size else 8
        images = visualise(
            model,
            [features[place] for place in chosen],
            objective="centre",
            transforms=Transforms((jitter, jitter // 2), (1, 0.975, 1.025, 0.95, 1.05)),
            size=size,
            steps=steps,
            seed=seed,
            track=lambda passed: progress(passed, f"pictures of {model.name}"),
        ).images
        larger = interpolate(images.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True)
        shown[chosen] = larger.clamp(0, 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return shown


def _by_picture(
    model: Model,
    features: list[Feature],
    pictures: UInt8[Tensor, "picture 3 side side"],
    sites: list[str],
    mean: Float[Tensor, " units"],
    sd: Float[Tensor, " units"],
) -> Float[Tensor, " picture"]:
    """The share of each feature's layer that the other's picture raises more, at its best cell, in sd over pictures.

    `mean` and `sd` are those of the units of all `sites`, behind each other.
    """
    widths = [model.map_shape(site)[0] for site in sites]
    scales = dict(zip(sites, zip(mean.split(widths), sd.split(widths))))
    shares = []
    for feature, picture in zip(features, pictures):
        centre, spread = scales[feature.site]
        pixels = model.preprocessing.fit(picture.float() / 255)[None]
        raised = _cells(model, [feature.site], pixels)[0].amax(0) - centre
        raised = torch.where(spread > 0, raised / spread, 0.0)
        shares.append((raised > raised[feature.index]).float().mean())
    return torch.stack(shares) if shares else torch.zeros(0)
