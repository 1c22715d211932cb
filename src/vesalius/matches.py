"""Which units of one network are most like which of another: what is compared, and what counts as chance.

Two ways to compare a unit of one network with all units of another, each with its controls: their maps over the same
pictures, averaged over the cells of a coarse grid (after Li et al. 2015, arXiv 1511.07543), and what their middle
positions give for the same synthetic stimuli, drawn in each one's own receptive field. Both go through their inputs
once and keep no activations.
"""

from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius import stimuli
from vesalius.access import record
from vesalius.data.images import Images
from vesalius.method import progress
from vesalius.metrics import family_wise, require_finite
from vesalius.model import Model
from vesalius.representations import Correlations, cells
from vesalius.responses import answers, window

GRID = 7
"""Cells along each side on which maps of different sizes are compared."""
BATCH = 16
FAMILIES = ("rounded_corner", "gabor", "colour_contrast")
LEVEL = 0.01
"""How often a search of a random network may pass what counts as chance."""
EVERY = 5
"""One in so many of the families' pictures is asked with."""


def over_pictures(
    model: Model, second: Model, site: str, places: list[str], *, pictures: Images, draws: int, seed: int
) -> list[Correlations]:
    """All units of the site with all of the other's: as they are, with the next picture's, and with random twins'.

    The pictures are gone through once, by all networks side by side.
    """
    networks = _with_twins(second, draws, seed)
    theirs, exchanged, *random = found = [Correlations() for _ in range(2 + draws)]
    streams = zip(*(pictures.batches(one.pictures, batch=BATCH) for one in (model, second)))
    for (_, pixels), (_, other_pixels) in progress(streams, f"maps of {model.name} and {second.name}"):
        mine = _on_cells(model, [site], pixels)
        for network, seen in zip(networks, [theirs, *random]):
            maps = _on_cells(network, places, other_pixels).flatten(0, 1)
            seen.add(mine.flatten(0, 1), maps)
            if seen is theirs and len(mine) > 1:
                exchanged.add(mine.roll(1, 0).flatten(0, 1), maps)
    return found


def over_stimuli(
    model: Model, second: Model, site: str, places: list[str], *, draws: int, seed: int
) -> list[Correlations]:
    """The same over the middle positions' answers to stimuli, which are exchanged at random for the second."""
    own, found = _answers(model, [site]), []
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
    for number, network in enumerate(progress(_with_twins(second, draws, seed), "synthetic stimuli")):
        theirs = _answers(network, places)
        for rows in [own, own[order]] if number == 0 else [own]:
            found.append(Correlations())
            found[-1].add(rows, theirs)
    return found


def best_matches(
    seen: Correlations, chosen: list[int]
) -> tuple[Float[Tensor, " unit"], Int[Tensor, " unit"], Bool[Tensor, " unit"]]:
    """The best correlation of each chosen unit, whose it is, and whether it is that one's best too."""
    table = seen.table()
    values, columns = table[chosen].max(1)
    return values, columns, table.argmax(0)[columns] == torch.tensor(chosen)


def chance(random_best: Float[Tensor, "draw unit"]) -> Float[Tensor, " unit"]:
    """What a search in one more random twin passes, for any of the units, once in 100 times.

    On Fisher's scale: each unit's mean over draws, and above it the larger of two levels: what the largest excess of
    a draw over the mean of the others passes, and what normal excesses with the sd of all of them do.
    """
    scores = random_best.clamp(-0.9999, 0.9999).atanh()
    draws, units = scores.shape
    excess = (scores - scores.mean(0)) * draws / (draws - 1)
    tail = torch.tensor(1 - LEVEL / units, dtype=torch.float64)
    normal = torch.special.ndtri(tail) * excess.square().mean().sqrt()
    return (scores.mean(0) + max(family_wise(excess, level=LEVEL), normal.item())).tanh()


def spans(model: Model, sites: list[str]) -> dict[str, slice]:
    """Where the units of each site are among those of all."""
    ends = [0, *accumulate(model.map_shape(site)[0] for site in sites)]
    return {site: slice(*pair) for site, pair in zip(sites, pairwise(ends))}


def _on_cells(
    model: Model, sites: list[str], pixels: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image cell unit"]:
    """The maps on a coarse grid, the units of all sites behind each other."""
    with record(model, sites, stop=True) as acts:
        model(pixels.to(device=model.device, dtype=model.dtype))
    return torch.cat([cells(require_finite(acts[site].float().cpu(), site), GRID) for site in sites], -1)


def _answers(model: Model, sites: list[str]) -> Float[Tensor, "stimulus unit"]:
    """What the middle position of each site gives for the stimuli, drawn in its own receptive field."""
    given = []
    for site in sites:
        seen = window(model, site)
        drawn = [
            stimuli.named(name).pictures(seen.field, size=seen.size, centre=seen.centre)[::EVERY]
            for name in FAMILIES
        ]
        given.append(require_finite(answers(model, site, torch.cat(drawn), seen=seen), site))
    return torch.cat(given, 1)


def _with_twins(model: Model, draws: int, seed: int) -> list[Model]:
    return [model, *(model.random_twin(seed + 1 + draw) for draw in range(draws))]
