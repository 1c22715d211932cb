"""Feature visualisation: pictures made to raise features, many at once, each with its own objective.

Olah, Mordvintsev & Schubert 2017 (Feature Visualization, distill.pub/2017/feature-visualization). Each step moves
every picture by transforms of its own, runs the network up to the last site that an objective reads and no further,
and follows the gradient back to the pictures alone: no weight's gradient is computed, and the network is not
touched. Units that read the same sites share a pass. Which ones do does not change a bit of any, in a conv network
on one thread and up to 15 pictures a pass; otherwise kernels are chosen by the size of the batch, and round as they
may.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vesalius.access import record
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError, nearest
from vesalius.model import Model
from vesalius.visualization import colour as colours
from vesalius.visualization.objectives import OBJECTIVES, Objective, diversity
from vesalius.visualization.parametrisation import (
    PARAMETRISATIONS,
    Parametrisation,
    fourier,
    maco,
    pixel,
)
from vesalius.visualization.redirection import redirected
from vesalius.visualization.response_norm import BandedNorm
from vesalius.visualization.transforms import Transforms, preset, transformed
from vesalius.visualization.unit import Unit, begin, digest

REDIRECTED = 16
"""Steps at the start in which gradients of silent rectifiers are redirected; as long as a picture leaves its
objective at 0, later ones too."""
KEPT = 20.0
"""Seconds between two states on disk."""

Steps = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True, eq=False)
class Visualisation:
    """Pictures in the order of the features, the copies of one feature together."""

    images: UInt8[Tensor, "picture channel height width"]
    """With `alpha`, the last channel is the opacity."""
    activation: Float[Tensor, " picture"]
    """The objective of each picture as it is here, in eight bits and without transforms."""
    history: Float[Tensor, "step picture"]
    """The objective at every step, of the picture as it was transformed; NaN after a stop."""
    labels: list[str]
    skipped: dict[str, str]
    """Label → why that feature's optimisation stopped early; its picture is the last that was finite."""
    settings: dict


def visualise(
    model: Model,
    features: Feature | str | Objective | Sequence[Feature | str | Objective],
    *,
    objective: str = "mean",
    copies: int = 1,
    variety: float = 0.0,
    negative: bool = False,
    size: int | tuple[int, int] | None = None,
    steps: int = 256,
    transforms: str | Transforms = "standard",
    parametrisation: str = "fourier",
    colour: Float[Tensor, "colour channel"] | None = None,
    spectrum: Float[Tensor, "channel row frequency"] | None = None,
    alpha: bool = False,
    rate: float | None = None,
    seed: int = 0,
    batch: int = 8,
    cached: bool = True,
    track: Steps = iter,
) -> Visualisation:
    """Optimise `copies` pictures for each feature; `negative` ones make it as small as can be.

    A feature is maximised by its `objective` ("mean" over positions, "centre", "cosine"), an `Objective` by itself.
    `variety` is how much the copies are to differ: being
    all alike costs that share of the objective. `size` None is 128 pixels, or the
    network's own size where that is smaller or fixed. `colour` is a matrix as `colour.measured` gives it, `spectrum`
    the magnitudes for "maco"; None are the published or the power-law ones. With `alpha` pictures have an
    opacity, seen over random backgrounds and kept low.

    Interrupted, it goes on from where it was; finished units come from the cache (`cached`). `track` is given the
    steps of each pass to iterate. Raises VesaliusError for an unknown feature or setting, or if no step of any
    feature gave finite numbers.

    >>> from torch import nn
    >>> from vesalius.preprocessing import Preprocessing
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
    >>> model = Model(net, preprocessing=Preprocessing(size=(16, 16)))
    >>> seen = visualise(model, ["0[0]", "0[3]"], steps=8, cached=False)
    >>> seen.images.shape
    torch.Size([2, 3, 16, 16])
    """
    shape, channels = _size(model, size), model.pictures.channels
    matrix = colours.usual(channels) if colour is None else colour
    if matrix.shape[0] != channels:
        raise VesaliusError(
            f"the colour matrix is for {matrix.shape[0]} channels; {model.name} reads {channels}"
        )
    writing = _parametrisation(parametrisation, shape, matrix, spectrum, alpha)
    moves = preset(transforms)
    wanted = [_objective(model, one, objective) for one in _listed(features)]
    settings = {
        "copies": copies, "variety": variety, "negative": negative, "size": list(shape), "steps": steps,
        "transforms": repr(moves), "parametrisation": parametrisation, "colour": digest(matrix),
        "spectrum": digest(spectrum), "alpha": alpha, "rate": rate or writing.rate, "seed": seed,
        "dtype": str(model.dtype), "preprocessing": repr(model.preprocessing),
    }  # fmt: skip
    units = [
        begin(one, settings, weights=model.hash, copies=copies, steps=steps, seed=seed,
              parametrisation=writing, transforms=moves, size=shape)
        for one in wanted
    ]  # fmt: skip
    if cached:
        for unit in units:
            unit.restore()
    scene = _Scene(model, writing, moves, alpha, -1 if negative else 1, variety)
    for together in _passes(units, batch):
        _optimise(scene, together, rate or writing.rate, cached, track)
    return _gathered(units, settings)


# -------------------------------------------------------------------------------------------------- what is asked for


def _size(model: Model, size: int | tuple[int, int] | None) -> tuple[int, int]:
    own = model.pictures.size
    if size is None:
        return own if model.pictures.fixed or max(own) < 128 else (128, 128)
    return (size, size) if isinstance(size, int) else size


def _parametrisation(
    name: str, size: tuple[int, int], matrix: Tensor, spectrum: Tensor | None, alpha: bool
) -> Parametrisation:
    if name == "fourier":
        return fourier(size, matrix, alpha=alpha)
    if name == "pixel":
        return pixel(size, matrix, alpha=alpha)
    if name != "maco":
        raise VesaliusError(
            f"there is no parametrisation '{name}'; expected {', '.join(PARAMETRISATIONS)}"
            f"{nearest(name, PARAMETRISATIONS)}"
        )
    if alpha:
        raise VesaliusError("maco has no opacity to optimise; expected fourier or pixel with alpha")
    return maco(size, matrix, spectrum=spectrum)


def _listed(
    features: Feature | str | Objective | Sequence[Feature | str | Objective],
) -> Sequence[Feature | str | Objective]:
    return [features] if isinstance(features, Feature | str | Objective) else features


def _objective(model: Model, wanted: Feature | str | Objective, name: str) -> Objective:
    if isinstance(wanted, Objective):
        return wanted
    if name not in OBJECTIVES:
        raise VesaliusError(
            f"there is no objective '{name}'; expected {', '.join(OBJECTIVES)}{nearest(name, OBJECTIVES)}"
        )
    return OBJECTIVES[name](model.feature(wanted))


def _passes(units: list[Unit], batch: int) -> Iterator[list[Unit]]:
    """Units that are not done, by what they read and how far they are, about `batch` pictures together."""
    waiting = [unit for unit in units if not unit.done]
    waiting.sort(key=lambda unit: (unit.objective.sites, unit.step))
    for _, alike in itertools.groupby(waiting, key=lambda unit: (unit.objective.sites, unit.step)):
        group = list(alike)
        together = max(1, batch // len(group[0].seeds))
        for at in range(0, len(group), together):
            yield group[at : at + together]


# ------------------------------------------------------------------------------------------------------- optimisation


@dataclass(frozen=True)
class _Scene:
    """From parameters to what the network sees, and from there to the objectives and what is gained."""

    model: Model
    writing: Parametrisation
    moves: Transforms
    alpha: bool
    sign: int
    variety: float

    def judged(
        self, units: list[Unit], shown: Tensor
    ) -> tuple[Float[Tensor, " picture"], Float[Tensor, " picture"]]:
        """Every unit's objective on its own pictures, and what is to grow; the network stops at the last site."""
        sites = units[0].objective.sites
        pixels = _never_alone(shown).to(device=self.model.device, dtype=self.model.dtype)
        with record(self.model, sites, stop=True, gradients=True) as acts, BandedNorm():
            self.model(pixels.contiguous(memory_format=torch.channels_last))
        counts = [len(unit.seeds) for unit in units]
        parts = {
            site: acts[site][: len(shown)].split(counts) for site in sites
        }  # one node of the graph, not one for each unit
        values, gains = [], []
        for number, unit in enumerate(units):
            seen = {site: parts[site][number] for site in sites}
            value = unit.objective.value(seen)
            gain = self.sign * value
            if self.variety and len(value) > 1:
                gain = gain + self.variety * value.detach().abs() * diversity(sites[-1]).value(seen)
            values.append(value)
            gains.append(gain)
        return torch.cat(values).float().cpu(), torch.cat(gains).float().cpu()

    def moved(self, pictures: Tensor, units: list[Unit], step: int) -> Tensor:
        """The pictures as the network sees them at this step."""
        if self.alpha:
            pictures = _over(pictures, self._random(pictures[:, :-1], units, step, 0.3, smooth=True) + 0.5)
        pictures = transformed(pictures, torch.cat([unit.maps[:, step] for unit in units]))
        if self.moves.noise:
            pictures = pictures + self._random(pictures, units, step, self.moves.noise)
        return pictures

    def _random(
        self, like: Tensor, units: list[Unit], step: int, sd: float, *, smooth: bool = False
    ) -> Tensor:
        """Noise of this step, each picture's from its own seed; `smooth` noise has a few pixels to a side."""
        shape = [like.shape[1], *((8, 8) if smooth else like.shape[2:])]
        seeds = [number + step + 1 for unit in units for number in unit.seeds]
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        noise = sd * torch.stack(drawn).to(like)
        if smooth:
            noise = torch.nn.functional.interpolate(noise, size=like.shape[2:], mode="bicubic")
        return noise


def _optimise(scene: _Scene, units: list[Unit], rate: float, cached: bool, track: Steps) -> None:
    """Take these units, all at the same step, to the end; what they have reached is kept whatever happens."""
    kept = time.monotonic()
    try:
        for step in track(range(units[0].step, len(units[0].history))):
            alive = [unit for unit in units if not unit.stopped]
            if not alive:
                break
            values, grads = _gradients(scene, alive, step)
            counts = [len(unit.seeds) for unit in alive]
            for unit, value, grad in zip(alive, values.split(counts), grads.split(counts), strict=True):
                unit.update(value, grad, rate)
            if cached and time.monotonic() - kept > KEPT:
                kept = time.monotonic()
                for unit in alive:
                    unit.save()
        _finish(scene, units)
    finally:
        if cached:
            for unit in units:
                unit.save()


def _gradients(
    scene: _Scene, units: list[Unit], step: int
) -> tuple[Float[Tensor, " picture"], Float[Tensor, "picture *axes"]]:
    """The objectives at this step, and the gradient of the loss for each picture's parameters."""
    with torch.enable_grad():
        parameters = torch.cat([unit.parameters for unit in units]).requires_grad_()
        pictures = scene.writing.picture(parameters)
        with redirected(torch.cat([unit.off(REDIRECTED) for unit in units])):
            values, gains = scene.judged(units, scene.moved(pictures, units, step))
        if scene.alpha:  # opacity costs as much as what it buys
            gains = gains - values.detach().abs() * pictures[:, -1].mean((1, 2))
        (grads,) = torch.autograd.grad(-gains.sum(), parameters)
    return values.detach(), grads


def _finish(scene: _Scene, units: list[Unit]) -> None:
    """The pictures in eight bits, and what the network makes of them as they are."""
    with torch.no_grad():
        pictures = scene.writing.picture(torch.cat([unit.parameters for unit in units]))
        images = (pictures * 255).round().to(torch.uint8)
        shown = images.float() / 255
        shown = _over(shown, torch.full_like(shown[:, :-1], 0.5)) if scene.alpha else shown
        values, _ = scene.judged(units, shown)
    counts = [len(unit.seeds) for unit in units]
    for unit, image, value in zip(units, images.split(counts), values.split(counts), strict=True):
        unit.images, unit.activation = image, value


def _never_alone(pictures: Tensor) -> Tensor:
    """A single picture beside a copy of itself: for a batch of one, convolutions take another kernel."""
    return torch.cat([pictures, pictures]) if len(pictures) == 1 else pictures


def _over(pictures: Tensor, background: Tensor) -> Tensor:
    """Pictures with opacity, laid over a background."""
    colour, opacity = pictures[:, :-1], pictures[:, -1:]
    return colour * opacity + background * (1 - opacity)


def _gathered(units: list[Unit], settings: dict) -> Visualisation:
    skipped = {str(unit.objective): unit.stopped for unit in units if unit.stopped}
    if units and all(unit.stopped and unit.history.isnan().all() for unit in units):
        label, why = next(iter(skipped.items()))
        raise VesaliusError(
            f"'{label}' cannot be visualised: {why}; expected weights that give finite numbers"
        )
    labels = [str(unit.objective) for unit in units for _ in unit.seeds]
    return Visualisation(
        images=torch.cat([unit.images for unit in units if unit.images is not None]),
        activation=torch.cat([unit.activation for unit in units if unit.activation is not None]),
        history=torch.cat([unit.history for unit in units], 1),
        labels=labels,
        skipped=skipped,
        settings=settings,
    )
