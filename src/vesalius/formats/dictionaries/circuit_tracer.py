"""circuit-tracer (Hanna, Piotrowski et al. 2025, github.com/safety-research/circuit-tracer): layer_N.safetensors.

A transcoder of each layer, W_enc [latent, d_model], with config.yaml beside them saying which hooks they read and
write and, where it is neither a rectifier nor a stored threshold, the activation. One file is one dictionary.
"""

import re
from pathlib import Path
from typing import Any

from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.formats.dictionaries.sites import known, site_of_hook
from vesalius.formats.dictionaries.tensors import (
    described,
    names,
    required,
    safetensors,
    settings,
    thresholds,
)

FILES = "circuit-tracer's layer_0.safetensors"
WANTED = ("W_enc", "b_enc", "W_dec", "b_dec")
ACTIVATIONS = ("relu", "jump_relu", "topk")


def recognises(path: Path) -> bool:
    return bool(_layers(path)) or set(WANTED) <= names(path)


def read(path: Path, *, site: str = "", source: str = "") -> SparseDictionary:
    """The transcoder of one layer; raises VesaliusError for a folder of several, which it names."""
    if path.is_dir():
        first, *others = _layers(path)
        if others:
            raise VesaliusError(
                f"'{path}' holds {len(others) + 1} dictionaries, one of each layer; name one, as in '{first}'"
            )
        path = first
    tensors, config = safetensors(path), _config(path.parent)
    required(tensors, WANTED, path)
    activation = config.get("activation") or ("topk" if "k" in tensors else "relu")
    if activation not in ACTIVATIONS:
        raise VesaliusError(f"'{path}' has the activation '{activation}'; expected {', '.join(ACTIVATIONS)}")
    k = tensors.get("k", config.get("k"))
    if activation == "topk" and k is None:
        raise VesaliusError(f"'{path}' is top-k, but neither it nor its config says k")
    layer = re.search(r"layer_(\d+)", path.stem)
    number = int(layer[1]) if layer else None
    reads, writes = (
        site_of_hook(str(config.get(f"feature_{end}_hook", "")), number) for end in ("input", "output")
    )
    tensors["threshold"] = tensors.pop("activation_function.threshold", 0 * tensors["b_enc"])
    return SparseDictionary(
        known(site or writes, path),
        tensors["W_enc"].T.contiguous(),
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        thresholds(tensors, len(tensors["b_enc"])),
        int(k) if activation == "topk" and k is not None else None,
        source=source or ("" if site or reads == writes else reads),
        W_skip=tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
        about={"format": "circuit-tracer", "config": config},
    )


def _layers(path: Path) -> list[Path]:
    """The files of a folder, by layer."""
    files = path.glob("layer_*.safetensors") if path.is_dir() else []
    return sorted(files, key=lambda file: int(re.sub(r"\D", "", file.stem) or 0))


def _config(folder: Path) -> dict[str, Any]:
    if (folder / "config.yaml").is_file():
        return settings(folder / "config.yaml")
    return described(folder / "config.json") if (folder / "config.json").is_file() else {}
