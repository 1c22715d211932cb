"""The twins of a layer's features in another network: found by what they do, and checked in two other ways.

Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in) show curve detectors and high–low frequency detectors
in AlexNet, InceptionV1, VGG19 and ResNetV2-50, and call the evidence anecdotal. Here each unit's twin is the unit of
the other network that correlates with it most, in one of two ways: their maps over the same pictures (Li et al. 2015,
arXiv 1511.07543), or their answers to the same synthetic stimuli, drawn at the size of each one's receptive field. It
is mutual if the unit is in turn the twin's best match in its layer. Two checks that had no part in the choice: how
many units of the twin's layer are more like the unit in the other of the two ways; and how many the picture made to
raise the unit raises more, and the other way round.

Controls: random twins of the other network, in which the best match of the same unit is looked for in the same way,
and the same with pictures exchanged. A unit that follows brightness or contrast finds its like in a random network
too, so every unit is held against its own best matches there.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from vesalius import figures
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.examples import by_unit
from vesalius.figures import Figure
from vesalius.matches import FAMILIES, GRID, best_matches, chance, over_pictures, over_stimuli, spans
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, wilson
from vesalius.model import Model, load
from vesalius.representations import Correlations
from vesalius.responses import window
from vesalius.result import Headline, Result
from vesalius.visualization import visualise
from vesalius.visualization.objectives import centre, spatial
from vesalius.visualization.transforms import Transforms

SIDE, LARGEST = 96, 144
"""Pictures are kept at the first of these sizes and made no larger than the second, in px."""


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
    """What any of the units' best matches passes once in 100 such searches in a random twin of the other network."""
    random_best: Float[Tensor, "draw unit"]
    """Best correlations with random twins of the other network."""
    random_found: list
    """For each random twin, the share of units whose best match there is mutual and beyond the chance of the rest."""
    exchanged_best: Float[Tensor, " unit"]
    """Best correlations with what the other network gives for another picture or stimulus."""
    checked: Float[Tensor, " unit"]
    """The twins' correlation in the other way, that had no part in the choice; NaN for a unit that never varies."""
    checked_behind: Float[Tensor, " unit"]
    """Share of the units of the twin's layer that are more like the unit in that way: 0 is the twin first, .5 is
    chance."""
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
                len(found) > min(1, count - 1) and interval[0] > expected,  # one of several may be by chance
                f"{len(found)} of {count}, {int(self.mutual.sum())} mutual; control: the most in a random twin of it",
            ),
            Headline(
                f"mean correlation of a unit with its best match, over {self.choices['by']}",
                self.correlation.mean().item(),
                control,
                spread,
                spread[0] > control,
                f"{self.random_best.mean():.2f} with random twins, {self.exchanged_best.mean():.2f} with "
                "pictures exchanged",
            ),
        ]
        checks = {
            f"correlation over {self.choices['checked by']}": self.checked_behind[found],
            "the picture made for the other": self.picture_behind.flatten(),
        }
        for what, shares in checks.items():
            known = shares[~shares.isnan()]
            if len(known):
                claim = f"share of its layer that a twin is behind by {what}, mean"
                note = (
                    f"control: chance; 0 is the twin first, as in {int((known == 0).sum())} of {len(known)}"
                )
                rows.append(Headline(claim, known.mean().item(), 0.5, bootstrap(known, seed=0), None, note))
        return rows

    def figure(self) -> Figure:
        return twins_page([self])


def twins_page(results: list[AnalogousFeatures], *, columns: list[str] | None = None) -> Figure:
    """Units of one layer beside their twins in one or several other networks, a row for each network.

    The results are about the same units; those drawn in the first are shown, under headings if `columns` are given.
    """
    first = results[0]
    shown = first.shown.tolist()
    rows = [
        {
            "label": f"{first.choices['model']}, {first.site}",
            "pictures": list(_middle(first.pictures[:, 0])),
            "texts": [f"{first.site}[{first.units[place]}]" for place in shown],
        }
    ]
    for result in results:
        drawn = dict(zip(result.shown.tolist(), _middle(result.pictures[:, 1])))
        beyond = set(result.found)
        rows.append(
            {
                "label": result.other,
                "pictures": [drawn.get(place) for place in shown],
                "texts": [
                    f"{result.twin_sites[place]}[{result.twins[place]}] r {result.correlation[place]:.2f}"
                    + (" ★" if place in beyond else "")
                    for place in shown
                ],
            }
        )
    scatters = [
        figures.histogram(
            {
                f"with {result.other}": result.correlation,
                "with its random twins": result.random_best.flatten(),
            },
            title=f"Best match of each unit in {result.other}",
            x_label=f"correlation over {result.choices['by']}",
        )
        for result in results
    ]
    if not shown:
        return figures.group(scatters, title="Analogous features")
    gallery = figures.gallery(
        rows,
        title=f"{len(shown)} units of {first.site} and their twins",
        columns=columns,
        caption="Each picture is made to raise the unit named under it; its middle two thirds are shown. Twins are "
        f"the units that correlate most (r) over {first.choices['by']}; a star where the unit is also its twin's best "
        "match and r is beyond chance.",
    )
    return figures.group([gallery, *scatters], title="Analogous features")


@method(needs=("images",))
@torch.no_grad()
def analogous_features(
    model: Model,
    *,
    other: str | Model = "",
    site: str = "",
    units: list[int] | None = None,
    other_sites: list[str] | None = None,
    by: Literal["pictures", "stimuli"] = "pictures",
    images: str | Images = "shapes",
    n_images: int = 96,
    draws: int = 4,
    pairs: int = 6,
    steps: int = 96,
    seed: int = 0,
) -> AnalogousFeatures:
    """Find the twin of every unit of a layer in another network, and check each by stimuli and by pictures.

    `other` is a model or its name; `units` of `site` are matched (all of them if none are named) with every unit of
    `other_sites` (the other's own layers if none are named), `by` their maps over `images` or their answers to
    synthetic stimuli; the other of the two is the check. `draws` is how many random twins of the other are
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
    ours = [model.feature(Feature(site, unit)) for unit in units or range(width)]
    chosen = [one.index for one in ours if one.index is not None]
    places = [second.site(place) for place in other_sites or []] or second.layer_sites()
    pictures = open_images(images).take(n_images, seed=seed)
    if len(pictures) < 16:
        raise VesaliusError(f"analogous_features was given {len(pictures)} pictures; expected 16 or more")

    streams = {
        "pictures": partial(over_pictures, model, second, site, pictures=pictures),
        "stimuli": partial(over_stimuli, model, second, site),
    }
    check = next(way for way in streams if way != by)
    theirs, exchanged, *random = streams[by](places, draws=draws, seed=seed)
    correlation, columns, mutual = best_matches(theirs, chosen)
    nulls = [best_matches(one, chosen) for one in random]
    random_best = torch.stack([best for best, _, _ in nulls])
    rest = [torch.arange(draws) != draw for draw in range(draws)]
    random_found = [
        _found(best, back, chance(random_best[others])).float().mean().item()
        for (best, _, back), others in zip(nulls, rest)
    ]
    every = [Feature(place, unit) for place in places for unit in range(second.map_shape(place)[0])]
    twins = [every[column] for column in columns.tolist()]
    searched = list(dict.fromkeys(twin.site for twin in twins))
    other_way = streams[check](searched, draws=0, seed=seed)[0]
    agree, behind = _checked(other_way, ours, twins, spans(second, searched))

    order = torch.arange(len(chosen)) if units else (correlation + mutual).argsort(descending=True)
    shown = order[: pairs if steps else 0]
    mine, others = [ours[place] for place in shown.tolist()], [twins[place] for place in shown.tolist()]
    made = _made(model, mine, steps, seed), _made(second, others, steps, seed)
    scales, asked = (theirs, places) if by == "pictures" else (other_way, searched)
    ranks = (
        _by_picture(second, others, made[0], *scales.scale(1), spans(second, asked)),
        _by_picture(model, mine, made[1], *scales.scale(0), spans(model, [site])),
    )
    return AnalogousFeatures(
        site=site,
        other=second.name,
        units=torch.tensor(chosen),
        twin_sites=[twin.site for twin in twins],
        twins=torch.tensor([twin.index for twin in twins]),
        correlation=correlation,
        mutual=mutual.int(),
        chance=chance(random_best),
        random_best=random_best,
        random_found=random_found,
        exchanged_best=best_matches(exchanged, chosen)[0],
        checked=agree,
        checked_behind=behind,
        shown=shown,
        pictures=torch.stack(made, 1),
        picture_behind=torch.stack(ranks, 1),
        choices={
            "model": model.name,
            "by": by,
            "checked by": check,
            "sites of the other": places,
            "pictures": len(pictures),
            "data": pictures.hash,
            "cells": GRID * GRID,
            "stimuli": list(FAMILIES),
            "steps": steps,
        },
    )


def _middle(pictures: UInt8[Tensor, "picture 3 side side"]) -> Tensor:
    edge = SIDE // 6
    return pictures[..., edge:-edge, edge:-edge]


def _found(best: Tensor, mutual: Bool[Tensor, " unit"], level: Tensor) -> Bool[Tensor, " unit"]:
    return mutual & (best > level)


def _checked(
    seen: Correlations, units: list[Feature], twins: list[Feature], columns: dict[str, slice]
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """The correlation of twins, and the share of the twin's layer that correlates more with the unit."""
    table = torch.where(seen.squares[0][:, None] > 0, seen.table(), torch.nan)
    layers = [table[unit.index, columns[twin.site]] for unit, twin in zip(units, twins)]
    agree = torch.stack([layer[twin.index] for layer, twin in zip(layers, twins)])
    behind = torch.stack([(layer > value).float().mean() for layer, value in zip(layers, agree)])
    return agree, torch.where(agree.isnan(), torch.nan, behind)


def _made(
    model: Model, features: list[Feature], steps: int, seed: int
) -> UInt8[Tensor, "picture 3 side side"]:
    """One picture for each feature, made to raise the middle of its map, as large as what that sees if it fits.

    Nothing is turned or flipped, which would blur what has an orientation.
    """
    shown = torch.zeros(len(features), 3, SIDE, SIDE, dtype=torch.uint8)
    for site in dict.fromkeys(feature.site for feature in features):
        chosen = [place for place, feature in enumerate(features) if feature.site == site]
        seen = window(model, site)
        size = None if model.pictures.fixed else min(seen.size, LARGEST)
        jitter = max(2, seen.field // 10) if size else 8
        middle = centre
        if size == seen.size and seen.position is not None:
            middle = partial(spatial, row=seen.position, column=seen.position)
        images = visualise(
            model,
            [middle(features[place]) for place in chosen],
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
    mean: Float[Tensor, " units"],
    sd: Float[Tensor, " units"],
    columns: dict[str, slice],
) -> Float[Tensor, " picture"]:
    """The share of each feature's layer that the other's picture, as large as its own field, raises more in their sd.

    `mean` and `sd` are those of the units of all sites; `columns` says where each site's are.
    """
    shares = [torch.zeros(0)]
    for feature, picture in zip(features, pictures):
        size = min(window(model, feature.site).size, LARGEST)
        pixels = interpolate(picture[None].float() / 255, size=(size, size), mode="bicubic", antialias=True)
        if model.pictures.channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        value = model.value_at(feature.site, pixels.clamp(0, 1))
        level, spread = mean[columns[feature.site]], sd[columns[feature.site]]
        raised = by_unit(value.float().cpu())[0].amax(-1) - level
        raised = torch.where(spread > 0, raised / spread, 0.0)
        shares.append((raised > raised[feature.index]).float().mean()[None])
    return torch.cat(shares)
