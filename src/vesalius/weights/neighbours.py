"""The layers before and after a site of a conv network: where its inputs come from and where it is used."""

from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.site import Site

PIXELS = ":in"
"""The network's own input, as a site."""


def layer_before(model: Model, site: str) -> str:
    """The layer before the one that `site` is, or lies in; the pixels before the first.

    >>> from vesalius.testbed import curve_network
    >>> layer_before(curve_network(), "curves_pre_relu"), layer_before(curve_network(), "edges")
    ('small_curves', ':in')
    """
    layers, number = _within(model, site)
    return layers[number - 1] if number else PIXELS


def layer_after(model: Model, site: str) -> str:
    """The layer after the one that `site` is, or lies in; raises VesaliusError at the last."""
    layers, number = _within(model, site)
    if number + 1 == len(layers):
        raise VesaliusError(f"'{site}' is in the last layer of maps of {model.name}; none after it uses it")
    return layers[number + 1]


def layer_number(model: Model, site: str) -> int:
    """The number of the layer that a site is, or lies in; -1 for the pixels."""
    return -1 if site == PIXELS else _within(model, site)[1]


def unit_of(name: str) -> str:
    """What a drawing calls a unit under a heading that names its layer.

    >>> unit_of("mixed3b[379]")
    '379'
    """
    return name.split("[")[-1].rstrip("]")


def _within(model: Model, site: str) -> tuple[tuple[str, ...], int]:
    address = Site.parse(site)
    layers = model.architecture.layer_names(model.module) if model.architecture else ()
    if address.role in ("maps", "maps_pre"):
        return layers, address.layer_numbers(len(layers))[0]
    around = [layer for layer in layers if address.path.startswith(layer)]
    if not around:
        raise VesaliusError(
            f"'{site}' lies in none of the layers that {model.name} is known to have; name the other site"
        )
    return layers, layers.index(max(around, key=len))
