"""What units answer to pictures that are centred on what they see: stimuli, and crops of photographs turned about.

One position of a map is asked, and the picture is as small as that position's receptive field allows: a network of
which one layer's field is 40 px is run on 40 px, not on 224, and no further than the layer. A picture's size differs
from the network's own by a multiple of the layer's stride, so that padding falls where it falls there.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius.data.images import Images
from vesalius.dictionaries import Feature
from vesalius.dictionaries.feature import channel_axis
from vesalius.errors import VesaliusError
from vesalius.examples import by_unit, field_of
from vesalius.method import progress
from vesalius.model import Model
from vesalius.store.reducers import Moments, TopExamples

EDGE = 0.1
"""The share of the radius over which a circular mask falls to nothing."""
OUTSIDE = 0.2
"""How much of a field's side may lie outside the picture where a unit's best places are looked for."""


WEAK = 0.1
"""An example counts with at least this share of the best one's activation."""


@dataclass(frozen=True)
class Window:
    """The smallest square picture in which one position of a map sees its whole receptive field.

    Where a position may see everything (late layers, tokens), the picture is the network's own.
    """

    size: int
    """Its side in px."""
    field: int
    """The side of the receptive field in px."""
    start: int
    """Where in the window, from its top and from its left, the receptive field begins."""
    position: int | None
    """Row and column of the position that is asked; None: all of what is no map, the mean over tokens."""
    middle: float
    """Row and column of the receptive field's centre in px; whole numbers are the centres of pixels."""

    @property
    def centre(self) -> tuple[float, float]:
        return self.middle, self.middle


@dataclass(frozen=True)
class Survey:
    """Every unit of a site over a set of pictures; the feature itself comes last if it is not one of the units."""

    mean: Float[Tensor, " unit"]
    sd: Float[Tensor, " unit"]
    """Over all positions of all pictures: the units in which responses are told."""
    top: TopExamples
    """Where each unit is highest, once a picture, among positions that see little outside of it if there are such."""
    columns: int
    first: int
    """The positions that `top` counts: how many there are in a row, and the first row and column."""

    @property
    def sigma(self) -> Float[Tensor, " unit"]:
        """The sd, of a unit that hardly ever fires a tenth of the layer's median one, so that none is endless."""
        median = self.sd[self.sd > 0].median() if (self.sd > 0).any() else torch.tensor(1.0)
        return self.sd.clamp(min=float(median) / 10)


def window(model: Model, site: str) -> Window:
    """The window of a site of an image network.

    >>> from vesalius.testbed import curve_network
    >>> seen = window(curve_network(), "lines")
    >>> seen.field, seen.size
    (16, 18)
    """
    field = field_of(model, site)
    height, width = model.pictures.size
    if field is None or model.pictures.fixed:
        size, shape = min(height, width), model.map_shape(site)
        if len(shape) < 3:
            return Window(size, size, 0, None, (size - 1) / 2)
        middle = (shape[1] // 2 + 0.5) * size / shape[1] - 0.5
        return Window(size, size, 0, shape[1] // 2, middle)
    position = math.ceil((field.size / 2 - field.offset) / field.stride)
    start = field.box(position, position)[0]
    needed = start + field.size
    size = needed + (height - needed) % field.stride
    return Window(size, field.size, start, position, start + (field.size - 1) / 2)


def answers(
    model: Model,
    site: str,
    pictures: Float[Tensor, "picture channel size size"],
    *,
    seen: Window,
    batch: int = 64,
) -> Float[Tensor, "picture unit"]:
    """The activation of every unit of a site at the window's position, for pictures of the window's size."""
    given = []
    for part in _fitted(pictures, model.pictures.channels).split(batch):
        value = model.value_at(site, part)
        if value.dim() == 4:
            value = value[:, :, seen.position, seen.position]
        given.append((value.mean(1) if value.dim() == 3 else value).float().cpu())
    return torch.cat(given)


def survey(
    model: Model, site: str, pictures: Images, *, examples: int, feature: Feature | None = None
) -> Survey:
    """Mean and sd of every unit over all positions of the pictures, and the pictures in which each is highest.

    Raises VesaliusError if there are no pictures.
    """
    moments = top = None
    columns = first = 0
    field = field_of(model, site)
    for numbers, pixels in progress(pictures.batches(model.pictures, batch=16), f"pictures at {site}"):
        value = model.value_at(site, pixels)
        if feature is not None and feature.read is not None:
            axis = channel_axis(value)
            value = torch.cat([value, feature.value(value).unsqueeze(axis)], axis)
        inner, first = _inner(value, field, model.pictures.size)
        columns = inner.shape[-1] if inner.dim() == 4 else 1
        every, among = by_unit(value), by_unit(inner)
        if moments is None or top is None:
            moments, top = Moments(every.shape[1]), TopExamples(every.shape[1], examples)
        moments.add(every, torch.tensor(numbers))
        top.add(among, torch.tensor(numbers))
    if moments is None or top is None:
        raise VesaliusError(f"there are no pictures to ask {model.name} with; expected at least one")
    return Survey(moments.mean.float(), moments.sd.float(), top, columns, first)


def best_crops(
    model: Model, site: str, pictures: Images, found: Survey, *, unit: int, seen: Window
) -> Float[Tensor, "example channel size size"]:
    """The window around a unit's best places, best first, with the picture's edge carried on outside.

    Places where the unit has less than a tenth of its highest value are left out; at least one stays.
    """
    field = field_of(model, site)
    shown = []
    values = found.top.values[unit]
    kept = (values >= WEAK * values[0]) & (found.top.examples[unit] >= 0)
    kept[0] = True
    for example, place in zip(
        found.top.examples[unit][kept].tolist(), found.top.positions[unit][kept].tolist()
    ):
        picture = model.pictures.fit(pictures[example])
        if field is None:
            shown.append(picture[:, : seen.size, : seen.size])
            continue
        row, column = (found.first + step for step in divmod(place, found.columns))
        top, left = (edge - seen.start for edge in field.box(row, column)[:2])
        shown.append(carried_on(picture, top, left, seen.size))
    return torch.stack(shown)


def carried_on(
    picture: Float[Tensor, "channel height width"], top: int, left: int, side: int
) -> Float[Tensor, "channel side side"]:
    """A square of a picture, the picture's edge carried on where it looks outside."""
    down, right = (torch.arange(side) + start for start in (top, left))
    down, right = down.clamp(0, picture.shape[1] - 1), right.clamp(0, picture.shape[2] - 1)
    return picture[:, down][:, :, right]


def turns(
    crop: Float[Tensor, "channel size size"], degrees: Float[Tensor, " angle"], *, seen: Window
) -> Float[Tensor, "angle channel size size"]:
    """A crop turned counter-clockwise about the receptive field's centre, within the largest circle in it.

    Bilinear; what is outside the circle has the mean colour of the inside, so that no corner and no change of
    brightness comes in with the turn.
    """
    return _turned(crop, *_circle(degrees, seen))


def turned_answers(
    model: Model,
    site: str,
    crops: Float[Tensor, "example channel size size"],
    *,
    seen: Window,
    degrees: Float[Tensor, " angle"],
    batch: int = 64,
) -> Float[Tensor, "example angle unit"]:
    """Every unit's answer to every crop turned by every angle."""
    grid, inside = _circle(degrees, seen)
    return torch.stack(
        [
            answers(model, site, _turned(crop, grid, inside), seen=seen, batch=batch)
            for crop in progress(list(crops), "examples turned about")
        ]
    )


def with_feature(values: Float[Tensor, "*rest unit"], feature: Feature) -> Float[Tensor, "*rest asked"]:
    """Units' values with the feature's own behind them, if it is a direction and not one of the units."""
    if feature.read is None:
        return values
    return torch.cat([values, (values @ feature.vector(values.shape[-1]).to(values))[..., None]], -1)


def _circle(
    degrees: Float[Tensor, " angle"], seen: Window
) -> tuple[Float[Tensor, "angle size size 2"], Float[Tensor, "size size"]]:
    """Where in the crop each pixel of each turned picture comes from, in -1..1, and how much of it is in the circle."""
    row, column = seen.centre
    along = torch.arange(seen.size, dtype=torch.float64)
    x, y = (along - column)[None, :], (row - along)[:, None]
    turn = degrees.double().deg2rad()[:, None, None]
    from_x, from_y = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    grid = torch.stack([from_x + column, row - from_y], -1) * 2 / (seen.size - 1) - 1
    radius = seen.field / 2
    return grid.float(), ((radius - torch.hypot(x, y)) / (EDGE * radius)).clamp(0, 1).float()


def _turned(crop: Tensor, grid: Tensor, inside: Tensor) -> Float[Tensor, "angle channel size size"]:
    pictures = F.grid_sample(
        crop.expand(len(grid), *crop.shape), grid, padding_mode="border", align_corners=True
    )
    colour = (crop * inside).sum((1, 2)) / inside.sum()
    return torch.lerp(colour[:, None, None], pictures, inside)


def _inner(value: Tensor, field: object, size: tuple[int, int]) -> tuple[Tensor, int]:
    """The positions whose receptive fields lie within the picture or nearly so (all, if none do), and the first."""
    if value.dim() != 4 or field is None:
        return value, 0
    spare = OUTSIDE * field.size
    reach = [
        [
            at
            for at in range(count)
            if -spare <= field.box(at, at)[0] and field.box(at, at)[2] <= length + spare
        ]
        for count, length in zip(value.shape[2:], size)
    ]
    if not all(reach):
        return value, 0
    rows, columns = reach
    return value[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], rows[0]


def _fitted(pictures: Tensor, channels: int) -> Tensor:
    """Coloured stimuli for a network of one channel or of another number: their brightness, repeated."""
    if pictures.shape[1] == channels:
        return pictures
    return pictures.mean(1, keepdim=True).expand(-1, channels, -1, -1)
