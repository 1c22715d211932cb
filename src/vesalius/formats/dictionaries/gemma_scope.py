"""Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147): params.npz with W_enc, W_dec, b_enc, b_dec and threshold.

What it is of is said only by the folders it lies in, as in `gemma-scope-2b-pt-res/layer_20/width_16k/…`; attention's
dictionaries read all heads side by side, which is no site of ours, so that one has to be named for them.
"""

import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.formats.dictionaries.sites import known
from vesalius.formats.dictionaries.tensors import required, single, thresholds

WEIGHTS = "params.npz"
FILES = f"Gemma Scope's {WEIGHTS}"
WANTED = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
KINDS = {"res": ("resid_post@{}", ""), "mlp": ("mlp_out@{}", ""), "transcoders": ("mlp_out@{}", "mlp_in@{}")}
"""What the end of a release's name says: the site, and what is read if that is another."""


def recognises(path: Path) -> bool:
    return _file(path).is_file() and _file(path).suffix == ".npz"


def read(path: Path, *, site: str = "", source: str = "") -> SparseDictionary:
    """JumpReLU: a latent is active above its own threshold; nothing is subtracted from the input."""
    file = _file(path)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = single({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except (ValueError, OSError, zipfile.BadZipFile, TypeError) as error:
        raise VesaliusError(f"'{file}' cannot be read as arrays of numbers: {error}") from error
    required(tensors, WANTED, file)
    there, read_from = _places(file)
    return SparseDictionary(
        known(site or there, file),
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        thresholds(tensors, len(tensors["b_enc"])),
        source=source or ("" if site else read_from),
        about={"format": "gemma-scope", "folder": "/".join(file.parent.parts[-4:])},
    )


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _places(file: Path) -> tuple[str, str]:
    """The site and what is read, if the folders name the layer and a release whose kind is known."""
    words = "/".join(file.parent.parts)
    layer, kind = re.search(r"layer_(\d+)", words), re.search(r"gemma-scope-[\w.]+-\w+-(\w+)", words)
    if layer is None or kind is None or kind[1] not in KINDS:
        return "", ""
    site, source = (template.format(layer[1]) for template in KINDS[kind[1]])
    return site, source
