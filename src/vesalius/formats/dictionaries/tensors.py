"""Tensors and descriptions out of files that come with a published dictionary."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vesalius.errors import VesaliusError, nearest


def header(path: Path) -> dict[str, str]:
    """The free words in the header of a file of safetensors; nothing of any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with _opened(path) as file:
        return file.metadata() or {}


def names(path: Path) -> set[str]:
    """The names of the tensors in a file of safetensors; none of any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return set()
    with _opened(path) as file:
        return set(file.keys())


def single(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of any precision in single precision, which is what dictionaries compute in."""
    return {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file."""
    try:
        return single(load_file(path))
    except (SafetensorError, OSError) as error:
        raise VesaliusError(f"'{path}' cannot be read: {error}") from error


def described(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VesaliusError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise VesaliusError(f"'{path}' holds a {type(found).__name__}; expected an object of settings")
    return found


def settings(path: Path) -> dict[str, Any]:
    """The `key: value` lines of a YAML file that stand at its margin; lists and what is nested are left out.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "config.yaml"
    >>> _ = file.write_text("model_kind: 'transcoder_set'  # of all layers\\nk: 16\\n")
    >>> settings(file)
    {'model_kind': 'transcoder_set', 'k': 16}
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(\w+):\s+(\"[^\"]*\"|'[^']*'|[^#\s][^#]*?)\s*(#.*)?", line)
        if match:
            word = match[2].strip("\"'")
            found[match[1]] = int(word) if re.fullmatch(r"-?\d+", word) else word
    return found


def required(tensors: dict[str, Tensor], wanted: tuple[str, ...], path: Path) -> None:
    """Raises VesaliusError naming the tensors that are missing, and what is there instead."""
    for name in wanted:
        if name not in tensors:
            there = ", ".join(sorted(tensors))
            raise VesaliusError(f"'{path}' has no tensor '{name}'; it has {there}{nearest(name, tensors)}")


def thresholds(tensors: dict[str, Tensor], latents: int) -> Tensor:
    """A threshold for each latent; below 0 there is none, since codes are never negative."""
    given = tensors.get("threshold", torch.zeros(()))
    return given.float().clamp(min=0).expand(latents).clone()


def _opened(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise VesaliusError(f"'{path}' cannot be read: {error}") from error
