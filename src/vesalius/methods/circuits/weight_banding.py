"""Weight banding: last layers whose weights lie in horizontal stripes.

Petrov et al. 2021 (Weight Banding, distill.pub/2020/circuits/weight-banding): in InceptionV1, ResNet50 and VGG19 the
weights of the last conv layer, factored by one-sided NMF into three maps a unit, form horizontal bands; they go where
the global average pooling behind the layer goes (not in VGG19), turn with the training pictures, and are absent in
AlexNet.

The number is the share of the weights' variance over positions that lies between rows, 0 if rows are alike and 1 if
nothing else differs, with that between columns beside it; it is that of the weights themselves, the factors are for
the picture. Two controls: the same weights with the positions of each unit shuffled, and the same layer of an untrained
twin.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.errors import Inapplicable
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.expanded import expanded_weights
from vesalius.weights.linearised import linearised
from vesalius.weights.neighbours import layer_before
from vesalius.weights.nmf import one_sided_nmf
from vesalius.weights.receptive_field import receptive_field

UNITS = 256
"""So many units of the layer at most, evenly spaced."""
SHOWN, PIXELS_A_WEIGHT = 48, 12


@dataclass(frozen=True)
class WeightBanding(Result):
    """Shares are of the variance over positions, of all of a unit's weights together."""

    site: str
    source: str
    maps: Float[Tensor, "factor unit row column"]
    explained: float
    """Share of the squared weights that the factors hold."""
    rows: Float[Tensor, " unit"]
    """Of each unit, the share between rows."""
    columns: Float[Tensor, " unit"]
    interval: list
    """Of the mean share between rows, over units."""
    shuffled_rows: float
    """The largest mean share between rows in a hundred shuffles."""
    twin_rows: float
    twin_columns: float
    pooled: bool | None
    """Whether the outputs see the layer through a global average; None if they do not depend on it."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows, columns = self.rows.mean().item(), self.columns.mean().item()
        chance = max(self.shuffled_rows, self.twin_rows, columns)
        behind = {
            True: "a global average follows",
            False: "no global average follows",
            None: "no output follows",
        }
        return [
            Headline(
                f"variance of {self.site}'s weights that is between rows",
                rows,
                chance,
                tuple(self.interval),
                self.interval[0] > chance,
                f"control: the largest of shuffled maps {self.shuffled_rows:.3f}, an untrained twin "
                f"{self.twin_rows:.3f}, between columns {columns:.3f}; {behind[self.pooled]}",
            )
        ]

    def figure(self) -> Figure:
        some = self.maps[:, : SHOWN * (len(self.rows) // SHOWN or 1) : len(self.rows) // SHOWN or 1]
        colours = some.abs() / some.abs().amax((0, 2, 3), keepdim=True).clamp(min=1e-30)
        red, green, blue = (
            colours[k] if k < len(colours) else torch.zeros_like(colours[0]) for k in range(3)
        )
        pictures = (torch.stack([red, green, blue], dim=1) * 255).round().to(torch.uint8)
        pictures = pictures.repeat_interleave(PIXELS_A_WEIGHT, 2).repeat_interleave(PIXELS_A_WEIGHT, 3)
        names = self.choices["units"][:: len(self.rows) // SHOWN or 1][: len(pictures)]
        return figures.group(
            [
                figures.images(
                    pictures,
                    title="Weights of single units",
                    labels=[str(unit) for unit in names],
                    columns=12,
                    caption=f"How strongly each position of {self.source} is read: red, green and blue are three "
                    f"groups of inputs (one-sided NMF, {self.explained:.0%} of the squared weight), either sign.",
                ),
                figures.heatmap(
                    self.maps.abs().mean(1),
                    title="Mean size over units",
                    panels=[f"factor {k}" for k in range(len(self.maps))],
                    value_label="weight",
                    diverging=False,
                ),
                figures.histogram(
                    {"between rows": self.rows, "between columns": self.columns},
                    title="Share of the variance over positions",
                    x_label="share, one for each unit",
                    references=[("x", self.shuffled_rows, "shuffled"), ("x", self.twin_rows, "untrained")],
                ),
            ],
            title=f"Banding of {self.site}",
        )


@method(needs=("images", "conv"))
def weight_banding(
    model: Model, *, site: str = "", source: str = "", factors: int = 3, seed: int = 0
) -> WeightBanding:
    """Whether the weights of the last conv layer lie in horizontal bands.

    `site` is the last layer that reads more than one position of the layer before it, and `source` that layer, if
    left out. Raises Inapplicable if every position reads one position alone.

    >>> from vesalius.testbed import curve_network
    >>> weight_banding(curve_network()).pooled
    True
    """
    site = site or _last(model)
    source = source or layer_before(model, site)
    if receptive_field(model, site, source=source).size < 2:
        raise Inapplicable(f"each position of '{site}' reads one position of '{source}'; there are no rows")
    width = model.map_shape(site)[0]
    units = list(range(0, width, -(-width // UNITS)))
    weights = expanded_weights(model, source, site, channels=units)
    factored = one_sided_nmf(weights, min(factors, weights.shape[1]))
    rows, columns = _between(weights)
    generator = torch.Generator().manual_seed(seed)
    orders = [_between(_together(weights, generator))[0].mean().item() for _ in range(100)]
    null = expanded_weights(model.random_twin(seed + 1), source, site, channels=units)
    twin_rows, twin_columns = _between(null)
    return WeightBanding(
        site=site,
        source=source,
        maps=factored.maps,
        explained=factored.explained,
        rows=rows,
        columns=columns,
        interval=list(bootstrap(rows, seed=seed)),
        shuffled_rows=max(orders),
        twin_rows=twin_rows.mean().item(),
        twin_columns=twin_columns.mean().item(),
        pooled=_pooled(model, site),
        choices={
            "factors": len(factored.maps),
            "units": units,
            "nonlinearities": "rectifiers left out, max pools averaged",
        },
    )


def _last(model: Model) -> str:
    """The last layer with rows to read."""
    for layer in reversed(model.architecture.layer_names(model.module)):
        if receptive_field(model, layer, source=layer_before(model, layer)).size > 1:
            return layer
    raise Inapplicable(f"no layer of {model.name} reads more than one position of the one before")


def _between(
    weights: Float[Tensor, "unit source row column"],
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """Share of the variance over positions that means of rows have, and means of columns; 0 of constant maps."""
    centred = weights - weights.mean((2, 3), keepdim=True)
    total = centred.square().mean((2, 3)).sum(1).clamp(min=1e-30)
    rows, columns = (centred.mean(axis).square().mean(2).sum(1) / total for axis in (3, 2))
    return rows, columns


def _together(weights: Float[Tensor, "unit source row column"], generator: torch.Generator) -> Tensor:
    """Each unit's positions in another order, the same for all sources."""
    order = torch.rand(weights[:, :1].shape, generator=generator).flatten(2).argsort(2).to(weights.device)
    return (
        weights.flatten(2).gather(2, order.expand(-1, weights.shape[1], -1)).unflatten(2, weights.shape[2:])
    )


def _pooled(model: Model, site: str) -> bool | None:
    """Whether the gradient of an output, everything made linear, is the same at all positions of the layer."""
    pixels = torch.full((1, model.pictures.channels, *model.pictures.size), 0.5)
    with torch.enable_grad(), linearised(), record(model, site, gradients=True) as acts:
        first = model.logits(pixels.to(model.device, model.dtype)).flatten()[0]
    (maps,) = acts.values()
    if not first.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(first, maps, allow_unused=True)
    if gradient is None:
        return None
    spread = (gradient - gradient.mean((2, 3), keepdim=True)).abs().max()
    return bool(spread < 1e-4 * gradient.abs().max())
