"""Parametrisations: what is optimised, and how it becomes a picture.

`fourier`  amplitudes of all spatial frequencies, each scaled by 1/frequency as in natural images, in decorrelated
           colours (Olah, Mordvintsev & Schubert 2017, distill.pub/2017/feature-visualization; Mordvintsev et al.
           2018, distill.pub/2018/differentiable-parameterizations)
`pixel`    the pixels themselves, in decorrelated colours
`maco`     the phases alone; the magnitudes stay those of natural images (Fel et al. 2023, arXiv 2306.06805)

All end in a sigmoid, so that pixels lie in 0..1. A parametrisation is two functions: `start`, from a seeded
generator to the parameters of one picture, and `picture`, from parameters of a batch to the batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from vesalius.errors import VesaliusError
from vesalius.visualization.colour import decorrelate, recorrelate

Start = Callable[[torch.Generator], Tensor]
Draw = Callable[[Tensor], Tensor]

SPREAD = 0.01
"""Standard deviation of the parameters that `fourier` and `pixel` start from."""


@dataclass(frozen=True)
class Parametrisation:
    """How a picture is written down; `rate` is the learning rate that suits it (Adam)."""

    name: str
    start: Start
    picture: Draw
    rate: float


def fourier(
    size: tuple[int, int], colour: Float[Tensor, "colour channel"], *, decay: float = 1.0, alpha: bool = False
) -> Parametrisation:
    """Amplitudes over 1/frequency^decay, as in Lucid: sigmoid(colour · irfft2(amplitude · scale) / 4).

    With `alpha` one more channel, of no colour, says how opaque each pixel is.
    """
    height, width = size
    scale = (height * width) ** 0.5 / frequencies(size).clamp_min(1 / max(size)) ** decay
    channels = colour.shape[1] + alpha

    def start(generator: torch.Generator) -> Tensor:
        return SPREAD * torch.randn(channels, height, width // 2 + 1, 2, generator=generator)

    def picture(amplitudes: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(amplitudes) * scale.to(amplitudes)
        return _coloured(torch.fft.irfft2(spectrum, s=size) / 4, colour)

    return Parametrisation("fourier", start, picture, rate=0.05)


def pixel(
    size: tuple[int, int], colour: Float[Tensor, "colour channel"], *, alpha: bool = False
) -> Parametrisation:
    """The pixels: sigmoid(colour · parameters). High frequencies come cheap, which shows."""

    def start(generator: torch.Generator) -> Tensor:
        return SPREAD * torch.randn(colour.shape[1] + alpha, *size, generator=generator)

    return Parametrisation("pixel", start, lambda values: _coloured(values, colour), rate=0.05)


def maco(
    size: tuple[int, int],
    colour: Float[Tensor, "colour channel"],
    *,
    spectrum: Float[Tensor, "channel row frequency"] | None = None,
) -> Parametrisation:
    """The phases, of magnitudes that never change: `spectrum`, as `natural_spectrum` gives it.

    Where a real picture has the same frequency twice, at k and -k, its two phases are kept opposite. Without a
    spectrum it is that of a power law, 1/frequency, alike in all decorrelated channels. What the sigmoid sees has
    sd 1.
    """
    magnitudes = power_law(colour.shape[1], size) if spectrum is None else _resized(spectrum, size)
    if magnitudes.shape[0] != colour.shape[1]:
        raise VesaliusError(
            f"the spectrum has {magnitudes.shape[0]} channels; expected {colour.shape[1]}, as the colours have"
        )
    magnitudes = magnitudes / _spread(magnitudes, size)

    def start(generator: torch.Generator) -> Tensor:
        return torch.fft.rfft2(torch.randn(colour.shape[1], *size, generator=generator)).angle()

    def picture(phases: Tensor) -> Tensor:
        opposite = (phases - _mirrored(phases)) / 2
        phases = torch.where(_twice(size[1]).to(phases.device), opposite, phases)
        return _coloured(torch.fft.irfft2(torch.polar(magnitudes.to(phases), phases), s=size), colour)

    return Parametrisation("maco", start, picture, rate=0.2)


def natural_spectrum(
    pictures: Iterable[Float[Tensor, "_ colour height width"]], colour: Float[Tensor, "colour channel"]
) -> Float[Tensor, "channel row frequency"]:
    """Mean magnitude of every frequency over pictures of one size, in decorrelated colours, for `maco`.

    Pixels are first taken through the inverse of the sigmoid that ends a parametrisation. Raises VesaliusError if
    there are no pictures.
    """
    count, total = 0, torch.zeros(())
    for batch in pictures:
        flat = decorrelate(batch.clamp(0.02, 0.98).logit(), colour)
        total = total + torch.fft.rfft2(flat).abs().sum(0)
        count += len(batch)
    if count == 0:
        raise VesaliusError("no pictures were given; expected at least one to measure a spectrum from")
    return total / count


def power_law(channels: int, size: tuple[int, int]) -> Float[Tensor, "channel row frequency"]:
    """Magnitude 1/frequency, none at frequency 0: that of natural images on average (Field 1987)."""
    frequency = frequencies(size)
    return torch.where(frequency > 0, 1 / frequency.clamp_min(1e-9), 0.0).expand(channels, -1, -1)


def frequencies(size: tuple[int, int]) -> Float[Tensor, "row frequency"]:
    """Cycles per pixel of every entry of a real two-dimensional spectrum.

    >>> frequencies((4, 4))[0]
    tensor([0.0000, 0.2500, 0.5000])
    """
    return torch.hypot(torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])[None, :])


PARAMETRISATIONS = ("fourier", "pixel", "maco")


def _coloured(channels: Tensor, colour: Tensor) -> Tensor:
    """Recorrelate, leave what is beyond the colours (opacity) as it is, and squash."""
    colours = recorrelate(channels[..., : colour.shape[1], :, :], colour)
    return torch.cat([colours, channels[..., colour.shape[1] :, :, :]], -3).sigmoid()


def _resized(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """A spectrum for another size of picture: magnitudes are read at the same cycles per pixel."""
    centred = torch.fft.fftshift(spectrum, dim=1)[None]
    shape = (size[0], size[1] // 2 + 1)
    if centred.shape[2:] != shape:
        centred = interpolate(centred, size=shape, mode="bilinear", align_corners=True)
    resized = torch.fft.ifftshift(centred[0], dim=1)
    symmetric = torch.where(_twice(size[1]), (resized + _mirrored(resized)) / 2, resized)
    return torch.where(frequencies(size) > 0, symmetric, 0.0)


def _twice(width: int) -> Bool[Tensor, " frequency"]:
    """Which columns of a real spectrum hold a frequency and its opposite: the first, and the last of an even width."""
    return torch.arange(width // 2 + 1) % (width / 2) == 0


def _mirrored(spectrum: Tensor) -> Tensor:
    """Rows k as rows -k."""
    return spectrum.flip(-2).roll(1, -2)


def _spread(magnitudes: Tensor, size: tuple[int, int]) -> Tensor:
    """The standard deviation, over all channels and pixels, of a picture of these magnitudes (Parseval)."""
    height, width = size
    entries = torch.where(_twice(width), 1.0, 2.0)
    power = (magnitudes.square() * entries).sum((1, 2)) / (height * width) ** 2
    return power.mean().sqrt()
