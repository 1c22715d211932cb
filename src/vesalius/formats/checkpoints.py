"""Checkpoints in a quarter of the space: one byte a weight, and one scale a row.

A matrix becomes int8 and, under its name with `.scale` added, a float16 column: weight ≈ int8 · scale, with
scale = the row's largest magnitude / 127. What has one dimension stays float16. No weight moves by more than
0.6 of its row's scale.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = ".scale"
SMALLEST = 2.0**-14  # the smallest scale that float16 holds at full precision


def quantise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round every matrix of a state dict to int8 rows and their scales."""
    small: dict[str, Tensor] = {}
    for name, weight in state.items():
        if weight.ndim < 2:
            small[name] = weight.half()
            continue
        scale = (weight.float().abs().amax(-1, keepdim=True) / 127).clamp(min=SMALLEST).half()
        small[name] = (weight.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
        small[name + SCALE] = scale
    return small


def dequantise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The float32 state dict that `quantise` made small."""
    return {
        name: weight.float() * state[name + SCALE].float() if name + SCALE in state else weight.float()
        for name, weight in state.items()
        if not name.endswith(SCALE)
    }


def write_checkpoint(state: dict[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(quantise(state), file)


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    return dequantise(load_file(file))
