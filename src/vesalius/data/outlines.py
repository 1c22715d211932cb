"""Outlines of figures and strokes: what is drawn, before it is turned, stretched, scaled and put somewhere.

Each function takes four uniform numbers a picture and gives points `[picture, point, 2]`, x to the right and y
upwards, within about 1 of the origin. Those of `CLOSED` run around a figure, those of `OPEN` are strokes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CLOSED = (
    "circle", "ellipse", "crescent", "semicircle", "drop", "heart",
    "triangle", "square", "star", "cross", "gear", "flower",
)  # fmt: skip
OPEN = ("line", "arc", "angle", "wave", "zigzag", "s-curve", "mirrored s-curve", "spiral")
CURVE = 48  # straight pieces a round outline is made of

Dice = Float[Tensor, "picture 4"]
Points = Float[Tensor, "picture point 2"]


def circle(dice: Dice) -> Points:
    return on_circle(torch.arange(CURVE) * (2 * math.pi / CURVE)).expand(len(dice), -1, -1)


def ellipse(dice: Dice) -> Points:
    return circle(dice) * torch.stack([torch.ones(len(dice)), 0.35 + 0.3 * dice[:, 0]], 1)[:, None]


def crescent(dice: Dice) -> Points:
    """A disc without a disc beside it: the outer arc, and the inner arc back between the same tips."""
    tip, centre = 0.6 + 0.45 * dice[:, :1], 0.35 + 0.25 * dice[:, 1:2]
    share = torch.linspace(0, 1, CURVE // 2)
    outer = on_circle(tip + (2 * math.pi - 2 * tip) * share)
    inner_radius = ((tip.cos() - centre) ** 2 + tip.sin() ** 2).sqrt()
    start = torch.atan2(tip.sin(), tip.cos() - centre)
    inner = on_circle(2 * math.pi - start - (2 * math.pi - 2 * start) * share) * inner_radius[..., None]
    return torch.cat([outer, (inner + F.pad(centre, (0, 1))[:, None])[:, 1:-1]], 1)


def semicircle(dice: Dice) -> Points:
    arc_points = on_circle(torch.linspace(0, math.pi, CURVE // 2)) - torch.tensor([0.0, 0.4])
    return arc_points.expand(len(dice), -1, -1)


def drop(dice: Dice) -> Points:
    """A circle and the tip of its two tangents."""
    radius = 0.5 + 0.15 * dice[:, :1]
    touch = torch.acos(radius / 1.3)
    share = torch.linspace(0, 1, CURVE * 3 // 4)
    body = on_circle(touch + (2 * math.pi - 2 * touch) * share) * radius[..., None]
    tip = torch.tensor([1.3, 0.0]).expand(len(dice), 1, 2)
    return torch.cat([body, tip], 1) - torch.tensor([0.3, 0.0])


def heart(dice: Dice) -> Points:
    t = torch.arange(CURVE) * (2 * math.pi / CURVE)
    x = 16 * t.sin() ** 3
    y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
    return (torch.stack([x, y + 2], -1) / 17).expand(len(dice), -1, -1)


def triangle(dice: Dice) -> Points:
    return on_circle(2 * math.pi / 3 * torch.arange(3) + 0.5 * (dice[:, :3] - 0.5))


def square(dice: Dice) -> Points:
    return on_circle(math.pi / 2 * (torch.arange(4) + 0.5)).expand(len(dice), -1, -1)


def star(dice: Dice) -> Points:
    tips = 4 + (4 * dice[:, :1]).floor()
    corner = torch.minimum(torch.arange(14.0), 2 * tips)
    radius = torch.where(corner % 2 == 0, 1.0, 0.35 + 0.15 * dice[:, 1:2])
    return on_circle(corner * (math.pi / tips)) * radius[..., None]


def cross(dice: Dice) -> Points:
    arm = (0.2 + 0.15 * dice[:, 0])[:, None]
    one = torch.ones_like(arm)
    x = torch.cat([one, arm, arm, -arm, -arm, -one, -one, -arm, -arm, arm, arm, one], 1)
    y = torch.cat([arm, arm, one, one, arm, arm, -arm, -arm, -one, -one, -arm, -arm], 1)
    return torch.stack([x, y], 2)


def gear(dice: Dice) -> Points:
    teeth = 8 + (5 * dice[:, :1]).floor()
    corner = torch.minimum(torch.arange(48.0), 4 * teeth)
    radius = torch.where(corner % 4 < 2, 1.0, 0.72 + 0.1 * dice[:, 1:2])
    return on_circle(corner * (math.pi / 2 / teeth)) * radius[..., None]


def flower(dice: Dice) -> Points:
    petals = 5 + (4 * dice[:, :1]).floor()
    angle = torch.arange(64) * (2 * math.pi / 64)
    return on_circle(angle).expand(len(dice), -1, -1) * (0.8 + 0.2 * (petals * angle).cos())[..., None]


def line(dice: Dice) -> Points:
    return torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).expand(len(dice), -1, -1)


def arc(dice: Dice) -> Points:
    span = 1.2 + 2.3 * dice[:, :1]  # 70 to 200 degrees
    points = on_circle(span * (torch.linspace(0, 1, CURVE // 2) - 0.5))
    return points - points.mean(1, keepdim=True)


def angle(dice: Dice) -> Points:
    half = 0.35 + 0.6 * dice[:, :1]  # 40 to 110 degrees between the legs
    ends = on_circle(torch.cat([-half, half], 1))
    return torch.stack([ends[:, 0], torch.zeros_like(ends[:, 0]), ends[:, 1]], 1) - torch.tensor([0.5, 0.0])


def wave(dice: Dice) -> Points:
    x = torch.linspace(-1, 1, CURVE).expand(len(dice), -1)
    y = (0.2 + 0.15 * dice[:, :1]) * (math.pi * (1.5 + dice[:, 1:2]) * x + 6.3 * dice[:, 2:3]).sin()
    return torch.stack([x, y], 2)


def zigzag(dice: Dice) -> Points:
    pieces = 4 + (4 * dice[:, :1]).floor()
    corner = torch.minimum(torch.arange(8.0), pieces)
    y = (0.22 + 0.15 * dice[:, 1:2]) * (1 - 2 * (corner % 2))
    return torch.stack([2 * corner / pieces - 1, y], 2)


def s_curve(dice: Dice) -> Points:
    open_end = 0.3 + 0.9 * dice[:, :1]  # where the two ends stop, in radians
    share = torch.linspace(0, 1, CURVE // 2)
    upper = on_circle(open_end + (1.5 * math.pi - open_end) * share) * 0.5 + torch.tensor([0.0, 0.5])
    return torch.cat([upper, -upper.flip(1)[:, 1:]], 1)


def mirrored_s_curve(dice: Dice) -> Points:
    return s_curve(dice) * torch.tensor([-1.0, 1.0])


def spiral(dice: Dice) -> Points:
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
