"""Units taken out of a network, and units written by hand put in their place.

The last of the seven arguments (Cammarata et al. 2021, Curve Circuits, distill.pub/2020/circuits/curve-circuits): if
we understand what a family computes, a family that we wrote computes it too, and the network hardly notices. The
handwritten network sees the same picture, magnified so that its units look for features of the natural size; its
maps are read at the centres of the natural receptive fields, and each unit's are brought to the natural unit's mean
and sd.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius.access import intervene, record
from vesalius.errors import VesaliusError
from vesalius.metrics import kl
from vesalius.model import Model
from vesalius.weights.receptive_field import ReceptiveField, receptive_field

Pixels = Float[Tensor, "picture channel height width"]
LOUDEST = 0.1
"""A written unit that hardly varies is not made louder than by this share of the median unit's sd."""
Maps = Float[Tensor, "picture unit row column"]


@dataclass(frozen=True, eq=False)
class Transplant:
    """Units of a handwritten network, one for each natural unit, at the natural places and of the natural loudness."""

    model: Model
    site: str
    units: tuple[int, ...]
    magnified: float
    """How much larger the handwritten network sees the picture."""
    field: ReceptiveField
    """Of the natural units."""
    own: ReceptiveField
    mean: Float[Tensor, " unit"]
    gain: Float[Tensor, " unit"]
    """What is added to the maps after they were multiplied: (0, 1) before calibration."""
    floor: float | None = None
    """The least value of the natural maps, if they were rectified."""

    def maps(self, pixels: Pixels, *, rows: int, columns: int) -> Maps:
        """What stands in for the natural units' maps of as many rows and columns; differentiable."""
        sides = [max(1, round(side * self.magnified)) for side in pixels.shape[2:]]
        seen = F.interpolate(pixels, size=sides, mode="bilinear", antialias=True)
        channels = self.model.pictures.channels
        if channels != pixels.shape[1]:
            seen = seen.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        with record(self.model, self.site, stop=True, gradients=True) as acts:
            self.model(seen)
        written = acts[self.site][:, list(self.units)]
        places = [
            ((self.field.offset + torch.arange(count) * self.field.stride) * new / old - self.own.offset)
            / self.own.stride
            for count, new, old in zip((rows, columns), sides, pixels.shape[2:])
        ]
        y, x = (2 * at / max(n - 1, 1) - 1 for at, n in zip(places, written.shape[2:]))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).to(written)
        moved = F.grid_sample(
            written, grid.expand(len(written), -1, -1, -1), padding_mode="border", align_corners=True
        )
        scaled = moved * self.gain[:, None, None] + self.mean[:, None, None]
        return scaled if self.floor is None else scaled.clamp(min=self.floor)


def transplant(
    natural: Model,
    site: str,
    units: Sequence[int],
    *,
    pixels: Pixels,
    written: Model,
    written_site: str,
    written_units: Sequence[int],
    magnified: float = 1.0,
) -> Transplant:
    """Units `written_units` in the place of `units`, calibrated on `pixels`: same mean, same sd, unit by unit.

    Raises VesaliusError if there is not one written unit for each natural one, `site` has no maps, or both networks
    are one.
    """
    if written.module is natural.module:
        raise VesaliusError(
            f"{natural.name} was to be operated on with its own running units; expected another network"
        )
    if len(units) != len(written_units):
        raise VesaliusError(
            f"{len(written_units)} written units were given for {len(units)} natural ones; expected one each"
        )
    with torch.no_grad(), record(natural, site, stop=True) as acts:
        natural(pixels)
    maps = acts[site][:, list(units)]
    raw = Transplant(
        written,
        written_site,
        tuple(written_units),
        magnified,
        receptive_field(natural, site),
        receptive_field(written, written_site),
        torch.zeros(len(units)),
        torch.ones(len(units)),
    )
    with torch.no_grad():
        drafts = raw.maps(pixels, rows=maps.shape[2], columns=maps.shape[3])
    spread = drafts.std((0, 2, 3))
    gain = maps.std((0, 2, 3)) / spread.clamp(min=max(LOUDEST * spread.median().item(), 1e-12))
    mean = maps.mean((0, 2, 3)) - drafts.mean((0, 2, 3)) * gain
    return replace(raw, mean=mean, gain=gain, floor=0.0 if acts[site].min() >= 0 else None)


def outputs(
    model: Model,
    site: str,
    units: Sequence[int],
    pixels: Pixels,
    *,
    instead: Transplant | Float[Tensor, " unit"] | None,
) -> Float[Tensor, "picture *rest"]:
    """The network's output as it is (None), with units held at constants, or with a transplant in their place."""
    chosen = list(units)

    def edit(maps: Tensor) -> Tensor:
        edited = maps.clone()
        if isinstance(instead, Transplant):
            edited[:, chosen] = instead.maps(pixels, rows=maps.shape[2], columns=maps.shape[3])
        else:
            edited[:, chosen] = instead[:, None, None].to(maps)
        return edited

    with torch.no_grad():
        if instead is None:
            return model.logits(pixels)
        with intervene(model, {site: edit}):
            return model.logits(pixels)


def losses(
    outputs: Float[Tensor, "picture *rest"],
    original: Float[Tensor, "picture *rest"],
    *,
    metric: str,
    labels: Tensor | None = None,
) -> Float[Tensor, " picture"]:
    """Per picture: 1 for a wrong class (accuracy), KL from the original in nats (divergence), or 1 - cosine."""
    if metric == "accuracy":
        return (outputs.argmax(-1) != labels).float()
    if metric == "divergence":
        return kl(original.double(), outputs.double())
    return 1 - F.cosine_similarity(outputs.flatten(1).double(), original.flatten(1).double(), dim=1)


def recovered(
    original: Float[Tensor, " picture"],
    ablated: Float[Tensor, " picture"],
    replaced: Float[Tensor, " picture"],
    *,
    seed: int,
    draws: int = 1000,
) -> tuple[float, tuple[float, float]]:
    """(m_replaced - m_ablated) / (m_original - m_ablated) of the mean losses, and its 95% interval over pictures.

    1: as good as the original, 0: as bad as nothing in its place. NaN if the ablation costs nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(original), (draws, len(original)), generator=generator)
    rows = torch.cat([torch.arange(len(original))[None], picked])
    cost, gained = ((ablated - other)[rows].mean(1) for other in (original, replaced))
    share = torch.where(cost > 0, gained / cost, torch.nan)
    low, high = (share[1:].nanquantile(at).item() for at in (0.025, 0.975))
    return share[0].item(), (low, high)
