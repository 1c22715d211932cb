"""Where in which pictures: the activations of a site over a set of pictures, and what one position saw of one.

Methods that ask what a feature fires for share this: the stream that reducers are fed with, the address before
the nonlinearity, and crops the size of the receptive field.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vesalius.data.images import Images
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.site import Site
from vesalius.weights.receptive_field import ReceptiveField, receptive_field

GREY = 0.5
"""What is shown outside the picture."""
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU)


def pre_activation(model: Model, site: str) -> str:
    """The address of the same units before their nonlinearity, or `site` itself where it has none of its own.

    >>> from vesalius.testbed.curve_network import curve_network
    >>> pre_activation(curve_network(), "curves")
    'curves_pre_relu'
    """
    address = Site.parse(site)
    roles = model.architecture.sites if model.architecture else {}
    if "maps_pre" in roles and address.role == "maps":
        return str(replace(address, role="maps_pre"))
    if "maps_pre" in roles and address.path in model.architecture.layer_names(model.module):
        return str(Site.parse(roles["maps_pre"].format(address.path)))
    module = None if address.role or address.port != "out" else model.module.get_submodule(address.path)
    return str(replace(address, port="in")) if isinstance(module, ACTIVATIONS) else site


def before_nonlinearity(model: Model, feature: Feature) -> Feature:
    """A neuron read before its nonlinearity; a direction is a direction where it is, and stays."""
    return feature if feature.read is not None else replace(feature, site=pre_activation(model, feature.site))


def activations(
    models: Sequence[Model], site: str, pictures: Images, *, batch: int = 16
) -> Iterator[tuple[Int[Tensor, " example"], list[Tensor]]]:
    """The values at a site of several networks for all pictures, batch by batch, with the pictures' numbers.

    The networks, a model and its twins, read the same pixels, so that a picture is opened once.
    """
    for numbers, pixels in pictures.batches(models[0].pictures, batch=batch):
        yield torch.as_tensor(numbers), [model.value_at(site, pixels) for model in models]


def by_unit(acts: Float[Tensor, "example *axes"]) -> Float[Tensor, "example unit position"]:
    """As reducers want it: maps `[example, unit, row, column]`, tokens `[example, position, unit]`, rows of units."""
    if acts.dim() == 4:
        return acts.flatten(2)
    return acts.mT if acts.dim() == 3 else acts[..., None]


def of_feature(feature: Feature, acts: Float[Tensor, "example *axes"]) -> Float[Tensor, "example 1 position"]:
    """One feature's values, as reducers want them."""
    return feature.value(acts).reshape(len(acts), 1, -1)


def field_of(model: Model, site: str) -> ReceptiveField | None:
    """The receptive field of a site's positions; None where they may see the whole picture."""
    shape = model.map_shape(site)
    if len(shape) < 3 or min(shape[1:]) < 2:
        return None
    try:
        field = receptive_field(model, site)
    except VesaliusError:  # it says so of a site that sees all
        return None
    return field if field.size < min(model.pictures.size) else None


def places(
    model: Model, site: str, field: ReceptiveField | None, where: Literal["all", "inside"]
) -> Int[Tensor, " position"]:
    """The positions of a site's maps, or those whose field lies inside the picture; all of them without a field.

    Near the border a unit also sees the padding, and may answer to it. Raises VesaliusError if no field lies inside.
    """
    *_, rows, columns = model.map_shape(site) if field else (1, model.map_shape(site)[-1])
    positions = torch.arange(rows * columns)
    if field is None or where == "all":
        return positions
    boxes = torch.tensor([field.box(*divmod(position, columns)) for position in positions.tolist()])
    height, width = model.pictures.size
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] <= height) & (boxes[:, 3] <= width)
    if not inside.any():
        raise VesaliusError(
            f"no field of '{site}', {field.size} pixels wide, lies inside {height}×{width}; take all"
        )
    return positions[inside]


def crops(
    model: Model,
    pictures: Images,
    *,
    site: str,
    field: ReceptiveField | None,
    examples: Sequence[int],
    positions: Sequence[int],
) -> tuple[UInt8[Tensor, "crop channel height width"], Float[Tensor, " crop"]]:
    """What each position saw of its picture, grey where it looks outside; and the share that is outside, 0 to 1.

    The whole picture without a `field`, as in late layers and transformers.
    """
    columns = model.map_shape(site)[-1]
    side = model.pictures.size if field is None else (field.size, field.size)
    shown = torch.full((len(examples), model.pictures.channels, *side), GREY)
    outside = torch.zeros(len(examples))
    for number, (example, position) in enumerate(zip(examples, positions, strict=True)):
        picture = pictures.fitted(example, model.pictures)
        if field is None:
            shown[number] = picture
            continue
        top, left, bottom, right = field.box(*divmod(position, columns))
        seen = picture[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        down, across = max(-top, 0), max(-left, 0)
        shown[number, :, down : down + seen.shape[1], across : across + seen.shape[2]] = seen
        outside[number] = 1 - seen[0].numel() / field.size**2
    return (shown * 255).round().to(torch.uint8), outside
