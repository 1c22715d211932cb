"""Procedural pictures with labels: figures and textures whose names ask for curvature, corners and grain.

A picture is a function of (seed, number) alone, so a set of any length is neither stored nor fetched, and
picture 7 is the same in a set of 10 and of 10,000. Twelve closed figures (filled or as an outline), eight
strokes and four textures, in every orientation, position, size and colour, on plain, shaded, noisy and
textured grounds; one closed figure in eight is filled, and differs from its ground in its grain alone. The
noise has amplitudes that fall as frequency^-d, d from 0.2 to 2.2. To tell the classes apart needs oriented
edges, curves of every orientation, corners, handedness (the two s-curves), texture, and boundaries between
high and low frequency.

Lengths are in widths of the picture: the same picture can be drawn at any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vesalius.data.outlines import CLOSED, OPEN, OUTLINES

TEXTURES = ("stripes", "checks", "dots", "rings")
CLASSES = CLOSED + OPEN + TEXTURES

PLAIN = ("flat", "shade", "noise")
PAINTS = PLAIN + TEXTURES
DICE = 48  # uniform numbers a picture is made of, beside two fields of noise
GRAIN = 64  # pixels along a side of a field of noise
TOGETHER = 16  # pictures drawn at a time: what fits the processor's cache


def shapes(
    numbers: Sequence[int], *, size: int = 64, seed: int = 0
) -> tuple[UInt8[Tensor, "picture 3 size size"], Int[Tensor, " picture"]]:
    """The pictures of these numbers, and the index of each one's class in `CLASSES` (number mod 24).

    >>> pictures, labels = shapes(range(24), size=32)
    >>> pictures.shape, CLASSES[labels[7]]
    (torch.Size([24, 3, 32, 32]), 'square')
    """
    wanted = torch.as_tensor(list(numbers), dtype=torch.long)
    labels = wanted % len(CLASSES)
    pictures = torch.empty(len(wanted), 3, size, size, dtype=torch.uint8)
    for label in range(len(CLASSES)):
        for part in (labels == label).nonzero()[:, 0].split(TOGETHER):
            if len(part):
                pictures[part] = drawn(CLASSES[label], wanted[part].tolist(), size=size, seed=seed)
    return pictures, labels


def drawn(name: str, numbers: list[int], *, size: int, seed: int) -> UInt8[Tensor, "picture 3 size size"]:
    """Pictures of one class: a ground, a figure on it, light from one side, a little noise."""
    outline_dice, dice, noise = thrown(numbers, seed)
    remaining = iter(dice.unbind(1))

    def roll(times: int) -> list[Float[Tensor, " picture"]]:
        return [next(remaining) for _ in range(times)]

    # what the ground and the figure are painted with
    alone, ground_chance, figure_chance, swap, ground_decay, figure_decay = roll(6)
    grain_only = (alone < 0.125) & torch.tensor(name in CLOSED)
    ground_kind = paint_of(ground_chance, (0.25, 0.2, 0.35))
    if name in TEXTURES:
        ground_kind = torch.full_like(ground_kind, PAINTS.index(name))
    kinds = torch.stack([ground_kind, paint_of(figure_chance, (0.55, 0.15, 0.15))])
    kinds = torch.where(grain_only, PAINTS.index("noise"), kinds)
    decay = 0.3 + 1.9 * torch.stack([ground_decay, figure_decay])
    apart = torch.stack([torch.where(swap < 0.5, 2.2, 0.2), torch.where(swap < 0.5, 0.2, 2.2)])
    decay = torch.where(grain_only, apart, decay)
    grain = [fitted(field(noise[:, side], decay[side]), size) for side in range(2)]

    # their colours, which do not differ where the grain does
    ground, figure = colours_of(torch.stack(roll(15), 1), *roll(2), grain_only, texture=name in TEXTURES)
    figure = torch.where(grain_only[:, None, None], ground, figure)

    x, y = places(size)
    picture = mixed(ground, painted(kinds[0], grain[0], x, y, roll(5)))
    fill = mixed(figure, painted(kinds[1], grain[1], x, y, roll(5)))
    if name not in TEXTURES:
        cover = figure_cover(name, outline_dice, grain_only, roll(8), x, y)
        picture = picture + cover[:, None] * (fill - picture)
    right_up, right_down, fine = (one[:, None, None, None] for one in roll(3))
    picture = picture * (1 + 0.5 * (right_up - 0.5) * (x + y) + 0.5 * (right_down - 0.5) * (x - y))
    white = fitted(field(noise[:, 1].flip(-2), torch.zeros(len(noise))), size)
    picture = picture + 0.05 * fine * white[:, None]
    return picture.clamp(0, 1).mul(255).round().to(torch.uint8)


def thrown(
    numbers: list[int], seed: int
) -> tuple[
    Float[Tensor, "picture 4"], Float[Tensor, "picture dice"], Float[Tensor, "picture 2 grain half 2"]
]:
    """All that is random about each picture, from a generator of its own."""
    dice, noise = [], []
    for number in numbers:
        generator = torch.Generator().manual_seed((seed * 2_147_483_659 + number) % 2**63)
        dice.append(torch.rand(4 + DICE, generator=generator))
        noise.append(torch.randn(2, GRAIN, GRAIN // 2 + 1, 2, generator=generator))
    stacked = torch.stack(dice)
    return stacked[:, :4], stacked[:, 4:], torch.stack(noise)


def paint_of(chance: Float[Tensor, " picture"], plain: tuple[float, ...]) -> Int[Tensor, " picture"]:
    """The kind of paint: flat, shade and noise with the given chances, the textures with the rest."""
    left = (1 - sum(plain)) / len(TEXTURES)
    edges = torch.tensor([*plain, *([left] * len(TEXTURES))]).cumsum(0)[:-1]
    return torch.bucketize(chance.contiguous(), edges, right=True)


def colours_of(
    dice: Float[Tensor, "picture 15"],
    ground_contrast: Float[Tensor, " picture"],
    figure_contrast: Float[Tensor, " picture"],
    grain_only: Bool[Tensor, " picture"],
    *,
    texture: bool,
) -> tuple[Float[Tensor, "picture 2 3"], Float[Tensor, "picture 2 3"]]:
    """Two colours of the ground and two of the figure, which is the farthest of three from both of the ground's."""
    one, other, *candidates = rearrange(dice, "picture (colour rgb) -> colour picture rgb", rgb=3)
    weak = torch.where(grain_only, 0.7, 0.1 + 0.4 * ground_contrast)
    contrast = 0.5 + 0.5 * ground_contrast if texture else weak
    two = one + contrast[:, None] * directed(one, other, least=0.8 if texture else 0.4)
    choice = torch.stack(candidates)
    far = (choice - one).norm(dim=2).minimum((choice - two).norm(dim=2)).argmax(0)
    figure = choice[far, torch.arange(len(far))]
    second = figure + 0.3 * figure_contrast[:, None] * directed(figure, other, least=0.4)
    return torch.stack([one, two], 1), torch.stack([figure, second], 1)


def directed(
    start: Float[Tensor, "picture 3"], end: Float[Tensor, "picture 3"], *, least: float
) -> Float[Tensor, "picture 3"]:
    """The way from one colour to another, no shorter than `least`, within the cube where there is room."""
    step = end - start
    step = step * (least / step.norm(dim=1, keepdim=True).clamp(min=1e-3)).clamp(min=1)
    outside = ((start + step) < 0) | ((start + step) > 1)
    back = -step.sign() * step.abs().minimum(torch.where(step > 0, start, 1 - start))
    return torch.where(outside, back, step)


def places(size: int) -> tuple[Float[Tensor, "size size"], Float[Tensor, "size size"]]:
    """x to the right and y upwards of every pixel's centre, 0 in the middle of the picture."""
    along = (torch.arange(size) + 0.5) / size - 0.5
    return along.expand(size, size), (-along)[:, None].expand(size, size)


# ------------------------------------------------------------------------------------------------------- paint


def field(spectrum: Float[Tensor, "picture grain half 2"], decay: Float[Tensor, " picture"]) -> Tensor:
    """Noise whose amplitude falls as frequency^-decay, mean 0 and variance 1: [picture grain grain]."""
    fy, fx = torch.fft.fftfreq(GRAIN)[:, None], torch.fft.rfftfreq(GRAIN)
    frequency = (fy**2 + fx**2).sqrt().clamp(min=1 / GRAIN)
    shaped = torch.view_as_complex(spectrum) * frequency ** -decay[:, None, None]
    waves = torch.fft.irfft2(shaped, s=(GRAIN, GRAIN))
    return (waves - waves.mean((1, 2), keepdim=True)) / waves.std((1, 2), keepdim=True)


def fitted(values: Float[Tensor, "picture grain grain"], size: int) -> Float[Tensor, "picture size size"]:
    if values.shape[-1] == size:
        return values
    return F.interpolate(values[:, None], (size, size), mode="bilinear", antialias=True)[:, 0]


def painted(
    kind: Int[Tensor, " picture"], grain: Tensor, x: Tensor, y: Tensor, dice: list[Tensor]
) -> Float[Tensor, "picture size size"]:
    """How much of the second colour there is at each pixel, 0 to 1."""
    turn, length, phase, sharp, place = (one[:, None, None] for one in dice)
    turn, phase, sharp = 2 * math.pi * turn, 2 * math.pi * phase, 1 + 3 * sharp
    wave = 2 * math.pi / (0.07 * 4**length)  # wavelengths from 0.07 to 0.28 of the picture
    along = turn.cos() * x + turn.sin() * y
    across = turn.cos() * y - turn.sin() * x
    ripple, other = (along * wave + phase).sin(), (across * wave + phase).sin()
    round_about = ((x - 0.6 * (turn.cos() * place)) ** 2 + (y - 0.6 * (turn.sin() * place)) ** 2).sqrt()
    fields = (
        torch.zeros_like(along),
        along.clone(),
        grain / 2,
        sharp * ripple / 2,
        sharp * ripple * other / 2,
        sharp * (ripple + other - 0.7) / 2,
        sharp * (round_about * wave + phase).sin() / 2,
    )
    chosen = torch.stack(fields)[kind, torch.arange(len(kind))]
    return (chosen + 0.5).clamp(0, 1)


def mixed(
    colours: Float[Tensor, "picture 2 3"], share: Float[Tensor, "picture size size"]
) -> Float[Tensor, "picture 3 size size"]:
    one, two = colours[..., None, None].unbind(1)
    return one + (two - one) * share[:, None]


# ------------------------------------------------------------------------------------------------------ figure


def figure_cover(
    name: str, outline_dice: Tensor, filled_only: Tensor, dice: list[Tensor], x: Tensor, y: Tensor
) -> Float[Tensor, "picture size size"]:
    """How much of each pixel the figure covers: inside its outline, or within half the width of a stroke."""
    turn, scale, right, up, stretch, style, width, soft = dice
    points = OUTLINES[name](outline_dice)
    stretch = torch.ones_like(stretch) if name in ("circle", "ellipse") else 0.8 * 1.5**stretch
    points = points * torch.stack([stretch.sqrt(), 1 / stretch.sqrt()], 1)[:, None]
    points = points / points.norm(dim=2).amax(1)[:, None, None]
    turn, radius = 2 * math.pi * turn, 0.2 * 2.2**scale  # 0.20 to 0.44 of the picture
    matrix = torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    room = (0.5 - 0.95 * radius).clamp(min=0)
    centre = torch.stack([(2 * right - 1) * room, (2 * up - 1) * room], 1)
    points = points @ matrix * radius[:, None, None] + centre[:, None]

    distance, inside = from_outline(points, x.flatten(), y.flatten(), closed=name in CLOSED)
    stroke = (0.02 + 0.045 * width)[:, None] * (radius / 0.3)[:, None].clamp(max=1)
    filled = (filled_only | (style < 0.5))[:, None] & torch.tensor(name in CLOSED)
    edge = torch.where(filled, torch.where(inside, -distance, distance), distance - stroke / 2)
    cover = (0.5 - edge * len(x) / (1 + 1.5 * soft**2)[:, None]).clamp(0, 1)
    return rearrange(cover, "picture (row column) -> picture row column", row=len(x))


def from_outline(
    points: Float[Tensor, "picture point 2"],
    x: Float[Tensor, " pixel"],
    y: Float[Tensor, " pixel"],
    *,
    closed: bool,
) -> tuple[Float[Tensor, "picture pixel"], Bool[Tensor, "picture pixel"]]:
    """Distance of every pixel from a polyline, and whether it lies inside (a ray crosses it an odd number of times)."""
    if closed:
        points = torch.cat([points, points[:, :1]], 1)
    nearest = torch.full((len(points), len(x)), torch.inf)
    inside = torch.zeros(nearest.shape, dtype=torch.bool)
    for start, end in zip(points.unbind(1)[:-1], points.unbind(1)[1:], strict=True):
        ax, ay = start[:, :1], start[:, 1:]
        ex, ey = (end - start)[:, :1], (end - start)[:, 1:]
        wx, wy = x - ax, y - ay
        share = ((wx * ex + wy * ey) / (ex * ex + ey * ey).clamp(min=1e-12)).clamp_(0, 1)
        nearest = torch.minimum(nearest, (wx - share * ex).square_() + (wy - share * ey).square_())
        if closed:
            crosses = (ay <= y) != (ay + ey <= y)
            height = torch.where(ey.abs() < 1e-12, 1e-12, ey)
            inside ^= crosses & (wx < wy / height * ex)
    return nearest.sqrt_(), inside
