"""Dictionaries as files: tensors, and in the header, in JSON, what they are of."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.files import whole


def write(file: str | Path, kind: str, described: dict, tensors: Mapping[str, Tensor]) -> Path:
    """Write a .safetensors file of one kind of dictionary, under a temporary name until it is whole."""
    file = Path(file).with_suffix(".safetensors")
    parts = {part: tensor.detach().contiguous() for part, tensor in tensors.items()}
    with whole(file) as fresh:
        save_file(parts, fresh, metadata={f"vesalius_{kind}": json.dumps(described)})
    return file


def read(file: str | Path, kind: str, *, called: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write` was given. Raises VesaliusError, with what the kind is `called`, if the file is not of it."""
    try:
        with safe_open(file, "pt") as opened:
            described = (opened.metadata() or {}).get(f"vesalius_{kind}")
            tensors = {part: opened.get_tensor(part) for part in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise VesaliusError(f"{file} cannot be read as {called}: {error}") from error
    if described is None:
        raise VesaliusError(f"{file} is a file of tensors, but not {called} that Vesalius saved")
    return json.loads(described), tensors


def hash_of(said: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over a text, and the names and bytes of tensors."""
    digest = hashlib.sha256(said.encode())
    for name, tensor in tensors:
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
