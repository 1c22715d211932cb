"""Gemma Scope 2 (Google DeepMind 2025): params.safetensors with w_enc, w_dec, b_enc, b_dec, threshold; config.json.

The same computation as Gemma Scope; a transcoder may have `affine_skip_connection`, the way around.
"""

import re
from pathlib import Path

from vesalius.dictionaries import SparseDictionary
from vesalius.formats.dictionaries.sites import known, site_of_words
from vesalius.formats.dictionaries.tensors import described, names, required, safetensors, thresholds

WEIGHTS, CONFIG = "params.safetensors", "config.json"
WANTED = ("w_enc", "b_enc", "w_dec", "b_dec")


def recognises(path: Path) -> bool:
    return set(WANTED) <= names(_file(path))


def read(path: Path, *, site: str = "", source: str = "") -> SparseDictionary:
    """JumpReLU; the hook points of config.json name the sites if they are words known here."""
    file = _file(path)
    tensors = safetensors(file)
    required(tensors, WANTED, file)
    config = described(file.parent / CONFIG) if (file.parent / CONFIG).is_file() else {}
    reads, writes = (_site(str(config.get(key, ""))) for key in ("hf_hook_point_in", "hf_hook_point_out"))
    return SparseDictionary(
        known(site or writes, file),
        tensors["w_enc"],
        tensors["b_enc"],
        tensors["w_dec"],
        tensors["b_dec"],
        thresholds(tensors, len(tensors["b_enc"])),
        source=source or (reads if reads != writes and not site else ""),
        W_skip=tensors.get("affine_skip_connection"),
        about={"format": "gemma-scope-2", "config": config},
    )


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _site(hook: str) -> str:
    """`model.layers.22.output` is the residual after layer 22; a module's own name stays."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.output", hook)
    return f"resid_post@{layer[1]}" if layer else site_of_words(hook.removesuffix(".output"))
