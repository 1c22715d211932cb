"""Procedural pictures with labels: figures and textures whose names ask for curvature, corners and grain.

A picture is a function of (seed, number) alone, so a set of any length is neither stored nor fetched, and
picture 7 is the same in a set of 10 and of 10,000. Twelve closed figures (filled or as an outline), eight
strokes and four textures, in every orientation, position, size and colour, on plain, shaded, noisy and
textured grounds; one filled figure in eight differs from its ground in its grain alone. The noise has a power spectrum
1/f^d, d from 0.3 to 2.2. To tell the classes apart needs oriented edges, curves of every orientation, corners,
handedness (the two s-curves), texture, and boundaries between high and low frequency.

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

CLOSED = (
    "circle", "ellipse", "crescent", "semicircle", "drop", "heart",
    "triangle", "square", "star", "cross", "gear", "flower",
)  # fmt: skip
OPEN = ("line", "arc", "angle", "wave", "zigzag", "s-curve", "mirrored s-curve", "spiral")
TEXTURES = ("stripes", "checks", "dots", "rings")
CLASSES = CLOSED + OPEN + TEXTURES

PLAIN = ("flat", "shade", "noise")
PAINTS = PLAIN + TEXTURES
DICE = 48  # uniform numbers a picture is made of, beside two fields of noise
GRAIN = 64  # pixels along a side of a field of noise
CURVE = 48  # straight pieces a round outline is made of
TOGETHER = 16  # pictures drawn at a time: what fits the processor's cache


def shapes(
    numbers: Sequence[int], *, size: int = 64, seed: int = 0
) -> tuple[UInt8[Tensor, "picture 3 size size"], Int[Tensor, " picture"]]:
    """The pictures of these numbers, and the index of each one's class in `CLASSES` (number mod 24).

    >>> pictures, labels = shapes(range(24), size=32)
    >>> pictures.shape, CLASSES[labels[7]]
    (torch.Size([24, 3, 32, 32]), 'square')
    """
    numbers = torch.as_tensor(list(numbers), dtype=torch.long)
    labels = numbers % len(CLASSES)
    pictures = torch.empty(len(numbers), 3, size, size, dtype=torch.uint8)
    for label in range(len(CLASSES)):
        for part in (labels == label).nonzero()[:, 0].split(TOGETHER):
            if len(part):
                pictures[part] = drawn(CLASSES[label], numbers[part].tolist(), size=size, seed=seed)
    return pictures, labels


def drawn(name: str, numbers: list[int], *, size: int, seed: int) -> UInt8[Tensor, "picture 3 size size"]:
    """Pictures of one class: a ground, a figure on it, light from one side, a little noise."""
    shape_dice, dice, noise = thrown(numbers, seed)
    roll = iter(dice.unbind(1))
    texture = name in TEXTURES
    grain_only = (next(roll) < 0.125) & torch.tensor(name in CLOSED)
    ground_kind = ground_paint(next(roll), name)
    ground_kind = torch.where(grain_only, PAINTS.index("noise"), ground_kind)
    figure_kind = torch.where(grain_only, PAINTS.index("noise"), paint_of(next(roll), (0.55, 0.15, 0.15)))
    swap = next(roll) < 0.5  # which of the two has the finer grain, where grain is all that differs
    decay = torch.stack([0.3 + 1.9 * next(roll), 0.3 + 1.9 * next(roll)])
    apart = torch.stack([torch.where(swap, 2.2, 0.2), torch.where(swap, 0.2, 2.2)])
    decay = torch.where(grain_only, apart, decay)
    grain = [fitted(field(noise[:, side], decay[side]), size) for side in range(2)]

    # two colours of the ground, the farthest of three from both of them for the figure
    colours = torch.stack([next(roll) for _ in range(15)], 1).view(-1, 5, 3)
    one, candidates = colours[:, 0], colours[:, 2:]
    contrast = next(roll)
    contrast = 0.5 + 0.5 * contrast if texture else torch.where(grain_only, 0.7, 0.1 + 0.4 * contrast)
    two = one + contrast[:, None] * directed(one, colours[:, 1], least=0.8 if texture else 0.4)
    far = (candidates - one[:, None]).norm(dim=2).minimum((candidates - two[:, None]).norm(dim=2)).argmax(1)
    figure = candidates[torch.arange(len(far)), far]
    figure_one = torch.where(grain_only[:, None], one, figure)
    figure_two = torch.where(
        grain_only[:, None],
        two,
        figure + 0.3 * next(roll)[:, None] * directed(figure, colours[:, 1], least=0.4),
    )

    x, y = places(size)
    ground = mixed(one, two, painted(ground_kind, grain[0], x, y, [next(roll) for _ in range(5)], size))
    fill = mixed(
        figure_one, figure_two, painted(figure_kind, grain[1], x, y, [next(roll) for _ in range(5)], size)
    )
    picture = ground
    if not texture:
        cover = figure_cover(name, shape_dice, grain_only, [next(roll) for _ in range(8)], x, y, size)
        picture = ground + cover[:, None] * (fill - ground)
    light = (
        1
        + 0.5 * (next(roll) - 0.5)[:, None, None] * (x + y)
        + 0.5 * (next(roll) - 0.5)[:, None, None] * (x - y)
    )
    fine = fitted(field(noise[:, 1].flip(-2), torch.zeros(len(noise))), size)
    picture = picture * light[:, None] + 0.05 * (next(roll)[:, None, None] * fine)[:, None]
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


def ground_paint(chance: Float[Tensor, " picture"], name: str) -> Int[Tensor, " picture"]:
    if name in TEXTURES:
        return torch.full(chance.shape, PAINTS.index(name))
    return paint_of(chance, (0.25, 0.2, 0.35))


def directed(
    start: Float[Tensor, "picture 3"], end: Float[Tensor, "picture 3"], *, least: float
) -> Float[Tensor, "picture 3"]:
    """The way from one colour to another, no shorter than `least`, within the cube where there is room."""
    step = end - start
    step = step * (least / step.norm(dim=1, keepdim=True).clamp(min=1e-3)).clamp(min=1)
    outside = ((start + step) < 0) | ((start + step) > 1)
    return torch.where(
        outside, -step.sign() * step.abs().minimum(torch.where(step > 0, start, 1 - start)), step
    )


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
    kind: Int[Tensor, " picture"], grain: Tensor, x: Tensor, y: Tensor, dice: list[Tensor], size: int
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


def mixed(one: Float[Tensor, "picture 3"], two: Float[Tensor, "picture 3"], share: Tensor) -> Tensor:
    return one[..., None, None] + (two - one)[..., None, None] * share[:, None]


# ------------------------------------------------------------------------------------------------------ figure


def figure_cover(
    name: str, shape_dice: Tensor, filled_only: Tensor, dice: list[Tensor], x: Tensor, y: Tensor, size: int
) -> Float[Tensor, "picture size size"]:
    """How much of each pixel the figure covers: inside its outline, or within half the width of a stroke."""
    turn, scale, right, up, stretch, style, width, soft = dice
    points = OUTLINES[name](shape_dice)
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
    cover = (0.5 - edge * size / (1 + 1.5 * soft**2)[:, None]).clamp(0, 1)
    return rearrange(cover, "picture (row column) -> picture row column", row=size)


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


# ----------------------------------------------------------------------- outlines: uniform numbers to points, radius 1


def circle(dice: Tensor) -> Tensor:
    return on_circle(torch.arange(CURVE) * (2 * math.pi / CURVE)).expand(len(dice), -1, -1)


def ellipse(dice: Tensor) -> Tensor:
    return circle(dice) * torch.stack([torch.ones(len(dice)), 0.35 + 0.3 * dice[:, 0]], 1)[:, None]


def crescent(dice: Tensor) -> Tensor:
    """A disc without a disc beside it: the outer arc, and the inner arc back between the same tips."""
    tip, centre = 0.6 + 0.45 * dice[:, :1], 0.35 + 0.25 * dice[:, 1:2]
    share = torch.linspace(0, 1, CURVE // 2)
    outer = on_circle(tip + (2 * math.pi - 2 * tip) * share)
    inner_radius = ((tip.cos() - centre) ** 2 + tip.sin() ** 2).sqrt()
    start = torch.atan2(tip.sin(), tip.cos() - centre)
    inner = on_circle(2 * math.pi - start - (2 * math.pi - 2 * start) * share) * inner_radius[..., None]
    return torch.cat([outer, (inner + F.pad(centre, (0, 1))[:, None])[:, 1:-1]], 1)


def semicircle(dice: Tensor) -> Tensor:
    arc_points = on_circle(torch.linspace(0, math.pi, CURVE // 2)) - torch.tensor([0.0, 0.4])
    return arc_points.expand(len(dice), -1, -1)


def drop(dice: Tensor) -> Tensor:
    """A circle and the tip of its two tangents."""
    radius = 0.5 + 0.15 * dice[:, :1]
    touch = torch.acos(radius / 1.3)
    body = (
        on_circle(touch + (2 * math.pi - 2 * touch) * torch.linspace(0, 1, CURVE * 3 // 4))
        * radius[..., None]
    )
    tip = torch.tensor([1.3, 0.0]).expand(len(dice), 1, 2)
    return torch.cat([body, tip], 1) - torch.tensor([0.3, 0.0])


def heart(dice: Tensor) -> Tensor:
    t = torch.arange(CURVE) * (2 * math.pi / CURVE)
    x = 16 * t.sin() ** 3
    y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
    return (torch.stack([x, y + 2], -1) / 17).expand(len(dice), -1, -1)


def triangle(dice: Tensor) -> Tensor:
    return on_circle(2 * math.pi / 3 * torch.arange(3) + 0.5 * (dice[:, :3] - 0.5))


def square(dice: Tensor) -> Tensor:
    return on_circle(math.pi / 2 * (torch.arange(4) + 0.5)).expand(len(dice), -1, -1)


def star(dice: Tensor) -> Tensor:
    tips = 4 + (4 * dice[:, :1]).floor()
    corner = torch.minimum(torch.arange(14.0), 2 * tips)
    radius = torch.where(corner % 2 == 0, 1.0, 0.35 + 0.15 * dice[:, 1:2])
    return on_circle(corner * (math.pi / tips)) * radius[..., None]


def cross(dice: Tensor) -> Tensor:
    arm = (0.2 + 0.15 * dice[:, 0])[:, None]
    one = torch.ones_like(arm)
    x = torch.cat([one, arm, arm, -arm, -arm, -one, -one, -arm, -arm, arm, arm, one], 1)
    y = torch.cat([arm, arm, one, one, arm, arm, -arm, -arm, -one, -one, -arm, -arm], 1)
    return torch.stack([x, y], 2)


def gear(dice: Tensor) -> Tensor:
    teeth = 8 + (5 * dice[:, :1]).floor()
    corner = torch.minimum(torch.arange(48.0), 4 * teeth)
    radius = torch.where(corner % 4 < 2, 1.0, 0.72 + 0.1 * dice[:, 1:2])
    return on_circle(corner * (math.pi / 2 / teeth)) * radius[..., None]


def flower(dice: Tensor) -> Tensor:
    petals = 5 + (4 * dice[:, :1]).floor()
    angle = torch.arange(64) * (2 * math.pi / 64)
    return on_circle(angle).expand(len(dice), -1, -1) * (0.8 + 0.2 * (petals * angle).cos())[..., None]


def line(dice: Tensor) -> Tensor:
    return torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).expand(len(dice), -1, -1)


def arc(dice: Tensor) -> Tensor:
    span = 1.2 + 2.3 * dice[:, :1]  # 70 to 200 degrees
    points = on_circle(span * (torch.linspace(0, 1, CURVE // 2) - 0.5))
    return points - points.mean(1, keepdim=True)


def angle(dice: Tensor) -> Tensor:
    half = 0.35 + 0.6 * dice[:, :1]  # 40 to 110 degrees between the legs
    ends = on_circle(torch.cat([-half, half], 1))
    return torch.stack([ends[:, 0], torch.zeros_like(ends[:, 0]), ends[:, 1]], 1) - torch.tensor([0.5, 0.0])


def wave(dice: Tensor) -> Tensor:
    x = torch.linspace(-1, 1, CURVE).expand(len(dice), -1)
    y = (0.2 + 0.15 * dice[:, :1]) * (math.pi * (1.5 + dice[:, 1:2]) * x + 6.3 * dice[:, 2:3]).sin()
    return torch.stack([x, y], 2)


def zigzag(dice: Tensor) -> Tensor:
    pieces = 4 + (4 * dice[:, :1]).floor()
    corner = torch.minimum(torch.arange(8.0), pieces)
    y = (0.22 + 0.15 * dice[:, 1:2]) * (1 - 2 * (corner % 2))
    return torch.stack([2 * corner / pieces - 1, y], 2)


def s_curve(dice: Tensor) -> Tensor:
    open_end = 0.3 + 0.9 * dice[:, :1]  # where the two ends stop, in radians
    share = torch.linspace(0, 1, CURVE // 2)
    upper = on_circle(open_end + (1.5 * math.pi - open_end) * share) * 0.5 + torch.tensor([0.0, 0.5])
    return torch.cat([upper, -upper.flip(1)[:, 1:]], 1)


def mirrored_s_curve(dice: Tensor) -> Tensor:
    return s_curve(dice) * torch.tensor([-1.0, 1.0])


def spiral(dice: Tensor) -> Tensor:
    turns = 2 * math.pi * (1.6 + 0.9 * dice[:, :1])
    share = torch.linspace(0.08, 1, CURVE)
    handed = torch.where(dice[:, 1:2] < 0.5, -1.0, 1.0)
    return on_circle(handed * turns * share) * share[:, None]


def on_circle(angle: Float[Tensor, ...]) -> Float[Tensor, "... 2"]:
    return torch.stack([angle.cos(), angle.sin()], -1)


OUTLINES = {
    "circle": circle, "ellipse": ellipse, "crescent": crescent, "semicircle": semicircle, "drop": drop, "heart": heart,
    "triangle": triangle, "square": square, "star": star, "cross": cross, "gear": gear, "flower": flower,
    "line": line, "arc": arc, "angle": angle, "wave": wave, "zigzag": zigzag,
    "s-curve": s_curve, "mirrored s-curve": mirrored_s_curve, "spiral": spiral,
}  # fmt: skip
