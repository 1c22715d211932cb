"""Training a plain network on procedural shapes, and what its card says about it.

Norms over the batch stand behind the convolutions while it learns and are folded into them afterwards: what is
shipped is convolutions, rectifiers and nothing else. Each step sees its pictures turned by quarters and with
their colours exchanged, which leaves every label true, the handedness of the s-curves too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vesalius.data.shapes import CLASSES, shapes
from vesalius.networks.plain import PlainNetwork
from vesalius.recipes.training import batch_of, fit

PICTURES = 57_600  # 2,400 of each class
HELD_OUT = {"pictures": 2_400, "seed": 1}
PREPROCESSING = {"size": [64, 64], "mean": [0.5] * 3, "sd": [0.25] * 3}

Pictures = UInt8[Tensor, "picture 3 row column"]
Labels = Int[Tensor, " picture"]


def learn_shapes(model: PlainNetwork, run: Path, settings: dict) -> Path:
    """Train `model` in place; returns the log of losses and held-out accuracies."""
    batch, seed = settings["batch"], settings["seed"]
    optimiser = {name: value for name, value in settings.items() if name not in ("batch", "seed")}
    pictures, labels = drawn(PICTURES, seed=seed)
    held_out = drawn(480, seed=HELD_OUT["seed"])
    add_norms(model)
    model.train()

    def evaluate(model: PlainNetwork) -> dict:
        model.eval()
        accuracy = (predicted(model, held_out[0]) == held_out[1]).float().mean().item()
        model.train()
        return {"held_out_accuracy": accuracy}

    loss_of = classification(model, pictures, labels, batch=batch, seed=seed)
    log = fit(
        model, loss_of, run, muon=0.0, evaluate=evaluate, evaluate_every=250, save_every=100, **optimiser
    )
    fold_norms(model)
    return log


def drawn(number: int, *, seed: int) -> tuple[Pictures, Labels]:
    """The first pictures of a seed and their labels, drawn in parts as one would read them."""
    began, parts = time.monotonic(), []
    for first in range(0, number, 4_800):
        parts.append(shapes(range(first, min(first + 4_800, number)), seed=seed))
        print(
            f"\rdrawn {first + len(parts[-1][1])}/{number}, {time.monotonic() - began:.0f} s",
            end="",
            flush=True,
        )
    print()
    return torch.cat([pictures for pictures, _ in parts]), torch.cat([labels for _, labels in parts])


def drawing_hash() -> str:
    """sha256 over one picture of every class: whether shapes are still drawn as they were."""
    return hashlib.sha256(shapes(range(len(CLASSES)))[0].numpy().tobytes()).hexdigest()


def classification(
    model: nn.Module, pictures: Pictures, labels: Labels, *, batch: int, seed: int
) -> Callable[[int], Float[Tensor, ""]]:
    """The loss of a step: cross-entropy of the classes of its pictures, turned and recoloured."""

    def loss(step: int) -> Float[Tensor, ""]:
        rows = batch_of(len(pictures), step, batch, seed)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        turned = [
            part[:, torch.randperm(3, generator=generator)].rot90(quarter, (2, 3))
            for quarter, part in enumerate(pictures[rows].chunk(4))
        ]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(prepared(torch.cat(turned)))
        return F.cross_entropy(logits.float(), labels[rows])

    return loss


def prepared(pictures: Pictures) -> Float[Tensor, "picture 3 row column"]:
    """What the network reads: `PREPROCESSING` of its own size of pictures."""
    pixels = (pictures.float() / 255 - PREPROCESSING["mean"][0]) / PREPROCESSING["sd"][0]
    return pixels.contiguous(memory_format=torch.channels_last)


def add_norms(model: PlainNetwork) -> None:
    """Put a norm over the batch behind every convolution, where it is part of the map before the rectifier."""
    for name, width in zip(model.layers, model.shape["widths"], strict=True):
        model[f"{name}_pre_relu"] = nn.Sequential(model[f"{name}_pre_relu"], nn.BatchNorm2d(width))


def fold_norms(model: PlainNetwork) -> None:
    """Make each convolution and its norm one convolution, which computes the same."""
    model.eval()
    for name in model.layers:
        model[f"{name}_pre_relu"] = fuse_conv_bn_eval(*model[f"{name}_pre_relu"])


@torch.no_grad()
def predicted(model: nn.Module, pictures: Pictures) -> Labels:
    """The class the network names for each picture."""
    return torch.cat([model(prepared(part)).argmax(1) for part in pictures.split(96)])


def shape_facts(model: PlainNetwork) -> dict:
    """Held-out accuracy, by class and against an untrained twin, and which classes are taken for which."""
    pictures, labels = drawn(HELD_OUT["pictures"], seed=HELD_OUT["seed"])
    guesses, classes = predicted(model, pictures), len(CLASSES)
    confusion = (labels * classes + guesses).bincount(minlength=classes**2).view(classes, classes)
    share = confusion.diag() / confusion.sum(1)
    mistakes = confusion - torch.diag(confusion.diag())
    order = mistakes.flatten().argsort(descending=True)[:10].tolist()
    twin = PlainNetwork(**model.shape, seed=1)
    return {
        "held_out": HELD_OUT,
        "accuracy": (guesses == labels).float().mean().item(),
        "chance": 1 / classes,
        "accuracy_of_twin": (predicted(twin, pictures) == labels).float().mean().item(),
        "accuracy_by_class": {
            name: round(value, 3) for name, value in zip(CLASSES, share.tolist(), strict=True)
        },
        "confusion": confusion.tolist(),
        "most_confused": [
            f"{CLASSES[place // classes]} taken for {CLASSES[place % classes]}: {mistakes.flatten()[place]}"
            for place in order
            if mistakes.flatten()[place]
        ],
    }
