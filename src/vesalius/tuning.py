"""The mathematics of tuning curves: how a unit's response depends on an orientation, and how a family shares a circle.

A tuning curve is a response at `angle` equally spaced orientations over one turn of 360°, so the last axis is a
circle. Widths, echoes and coverage read the positive part of a curve (Cammarata et al. 2020 and 2021, Curve Detectors
and Curve Circuits, distill.pub/2020/circuits, do so too); where a curve is positive nowhere they are NaN.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

Curves = Float[Tensor, "*unit angle"]


def angles(count: int) -> Float[Tensor, " angle"]:
    """The orientations of a curve of this many points, in degrees from 0."""
    return torch.arange(count) * (360 / count)


def preferred(curves: Curves) -> Float[Tensor, "*unit"]:
    """The orientation of the peak, in degrees.

    >>> preferred(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    tensor(180.)
    """
    return curves.argmax(-1) * (360 / curves.shape[-1])


def circular_mean(curves: Curves) -> tuple[Float[Tensor, "*unit"], Float[Tensor, "*unit"]]:
    """The mean direction in degrees 0..360, and how much there is of one: 0 equal all round, 1 a single orientation.

    The angle and the length of Σ r(θ) exp(iθ) / Σ r(θ) (Mardia 1972).
    """
    positive = _positive(curves)
    turn = angles(curves.shape[-1]).to(positive).deg2rad()
    total = positive.sum(-1)
    right, up = ((positive * part).sum(-1) / total for part in (turn.cos(), turn.sin()))
    return torch.atan2(up, right).rad2deg() % 360, torch.hypot(right, up)


def width(curves: Curves) -> Float[Tensor, "*unit"]:
    """Full width at half maximum in degrees: from the peak both ways to half of it, linear between points.

    360 for a curve that never falls to half.

    >>> width(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    tensor(90.)
    """
    count = curves.shape[-1]
    centred = _positive(turned(curves, -curves.argmax(-1)))
    halves = [_to_half(side) for side in (centred, centred.flip(-1).roll(1, -1))]
    return (halves[0] + halves[1]).clamp(max=count) * (360 / count)


def echo_ratio(curves: Curves, *, within: float = 30.0) -> Float[Tensor, "*unit"]:
    """The largest response within 30° of the opposite orientation over the peak: 0 no echo, 1 as strong as the peak.

    >>> echo_ratio(torch.tensor([4.0, 0.0, 1.0, 0.0]))
    tensor(0.2500)
    """
    count = curves.shape[-1]
    centred = _positive(turned(curves, -curves.argmax(-1)))
    return centred[..., distance(angles(count), 180.0) <= within].amax(-1) / centred[..., 0]


def coverage(curves: Float[Tensor, "unit angle"]) -> Float[Tensor, " angle"]:
    """The response of the unit that responds most at each orientation, each unit's peak being 1.

    Its minimum is what the family has for the orientation it likes least: 1 no gap, 0 one where all are silent.
    """
    return (_positive(curves) / _positive(curves).amax(-1, keepdim=True)).nan_to_num(0.0).amax(0)


def gaps(orientations: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Degrees from each preferred orientation to the next one round the circle; they add up to 360."""
    ordered = orientations.sort().values
    return torch.cat([ordered[1:], ordered[:1] + 360]) - ordered


def distance(first: Tensor, second: Tensor | float, *, period: float = 360.0) -> Tensor:
    """How far two orientations lie apart: 0..period / 2 degrees.

    >>> distance(torch.tensor(350.0), 20.0)
    tensor(30.)
    """
    return ((first - second + period / 2) % period - period / 2).abs()


def turned(curves: Curves, steps: Int[Tensor, "*unit"]) -> Curves:
    """Each curve moved by its own whole number of points towards larger orientations."""
    count = curves.shape[-1]
    places = (torch.arange(count, device=curves.device) - steps[..., None]) % count
    return curves.gather(-1, places.expand(curves.shape))


def aligned(curves: Float[Tensor, "example angle"], *, rounds: int = 5) -> Int[Tensor, " example"]:
    """By how many points to move each curve so that all lie on one another, the peak of their mean at 0.

    First every peak is put at 0; then each curve is moved to where its circular correlation with the mean of all is
    largest, until nothing moves.
    """
    steps = -curves.argmax(-1)
    for _ in range(rounds):
        mean = turned(curves, steps).mean(0)
        better = cross_correlation(curves, mean[None])[:, 0].argmax(-1)
        better = better - (-turned(curves, better).mean(0).argmax())
        if torch.equal(better % curves.shape[-1], steps % curves.shape[-1]):
            break
        steps = better
    return steps % curves.shape[-1]


def cross_correlation(
    first: Float[Tensor, "unit angle"], second: Float[Tensor, "other angle"]
) -> Float[Tensor, "unit other angle"]:
    """Pearson correlation of every first curve, moved by 0, 1, 2 … points, with every second one; -1..1."""
    if not len(first) or not len(second):  # which a Fourier transform refuses
        return first.new_zeros(len(first), len(second), first.shape[-1])
    spectra = [torch.fft.rfft(_standard(curves)) for curves in (first, second)]
    product = spectra[0].conj()[:, None] * spectra[1][None]
    return torch.fft.irfft(product, n=first.shape[-1])


def permutation(
    curves: Float[Tensor, "unit angle"], *, degrees: float, among: Bool[Tensor, " unit"] | None = None
) -> tuple[Int[Tensor, " unit"], Float[Tensor, " unit"]]:
    """To which unit a turn of the picture by `degrees` takes each one, and the correlation of the two curves.

    Unit j stands where i does after the turn if j's curve is i's moved by `degrees`. Each unit's best match is taken
    on its own, so that nothing forces the answer to be a permutation; where it is one, the family says so. Only units
    `among` are matched; the others map to themselves, with NaN.
    """
    count = curves.shape[-1]
    members = torch.arange(len(curves)) if among is None else among.nonzero()[:, 0]
    moved = round(degrees * count / 360) % count
    match = cross_correlation(curves[members], curves[members])[..., moved].nan_to_num(-1.0)
    target, score = torch.arange(len(curves)), torch.full((len(curves),), torch.nan, dtype=curves.dtype)
    if len(members):
        target[members], score[members] = members[match.argmax(1)], match.amax(1)
    return target, score


def smoothed(curves: Curves, *, sd: float) -> Curves:
    """Convolved round the circle with a Gaussian of this sd in degrees."""
    count = curves.shape[-1]
    kernel = torch.exp(-0.5 * (distance(angles(count), 0.0) / sd) ** 2).to(curves)
    return torch.fft.irfft(torch.fft.rfft(curves) * torch.fft.rfft(kernel / kernel.sum()), n=count)


def _positive(curves: Tensor) -> Tensor:
    return curves.clamp(min=0)


def _standard(curves: Tensor) -> Tensor:
    centred = curves - curves.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True)


def _to_half(centred: Tensor) -> Tensor:
    """Points from the peak, which is first, to where the curve is first at half of it."""
    share = centred / centred[..., :1]
    below = share < 0.5
    after = below.int().argmax(-1, keepdim=True)
    low, high = share.gather(-1, after), share.gather(-1, (after - 1).clamp(min=0))
    steps = rearrange(after - 1 + (high - 0.5) / (high - low), "... 1 -> ...")
    steps = torch.where(below.any(-1), steps, float(centred.shape[-1]))
    return torch.where(centred[..., 0] > 0, steps, torch.nan)
