"""dictionary_learning (Marks, Karvonen & Mueller, github.com/saprmarks/dictionary_learning): ae.pt and config.json.

`ae.pt` is a pickle; it is read by PyTorch's reader of weights, which makes tensors and nothing else. Classes
AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE and
MatryoshkaBatchTopKSAE.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError, nearest
from vesalius.formats.dictionaries.sites import known, site_of_words
from vesalius.formats.dictionaries.tensors import described, required, single, thresholds

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES = f"dictionary_learning's {CONFIG} and {WEIGHTS}"
CLASSES = {
    "AutoEncoder": ("encoder.weight", "encoder.bias", "decoder.weight", "bias"),
    "AutoEncoderNew": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
    "GatedAutoEncoder": (
        "encoder.weight",
        "r_mag",
        "gate_bias",
        "mag_bias",
        "decoder.weight",
        "decoder_bias",
    ),
    "JumpReluAutoEncoder": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "AutoEncoderTopK": ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k"),
    "BatchTopKSAE": ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "threshold"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
}
"""The tensors of each class."""


def recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, *, site: str = "", source: str = "") -> SparseDictionary:
    """The dictionary as the library's own loader gives it: AutoEncoder with its directions at norm 1."""
    config = described(path / CONFIG)
    trainer = config.get("trainer", {})
    kind = trainer.get("dict_class", "")
    if kind not in CLASSES:
        raise VesaliusError(f"'{path}' is a '{kind}'; expected {', '.join(CLASSES)}{nearest(kind, CLASSES)}")
    tensors = _weights(path / WEIGHTS)
    required(tensors, CLASSES[kind], path / WEIGHTS)
    parts = _parts(kind, tensors)
    layer = trainer.get("layer")
    there = site_of_words(trainer.get("submodule_name") or "", layer=layer)
    return SparseDictionary(
        known(site or there, path),
        parts["W_enc"],
        parts["b_enc"],
        parts["W_dec"],
        parts["b_dec"],
        thresholds(parts, len(parts["b_enc"])),
        int(tensors["k"]) if kind == "AutoEncoderTopK" else None,
        source=source,
        b_in=parts.get("b_in"),
        about={"format": "dictionary_learning", "config": config},
    )


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name; raises VesaliusError for a pickle of anything else."""
    if not zipfile.is_zipfile(path):  # what PyTorch wrote before 2020, or nothing it wrote
        raise VesaliusError(f"'{path}' is torn, or a bare pickle, which may run anything; it is not read")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise VesaliusError(
            f"'{path}' is a pickle of more than tensors, which may run anything; it is not read"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(part, Tensor) for part in found.values()):
        raise VesaliusError(f"'{path}' holds no named tensors; expected the state of one dictionary")
    return single(found)


def _parts(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same computation in our words."""
    if "W_enc" in tensors:
        parts = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
        return parts | ({} if kind == "JumpReluAutoEncoder" else {"b_in": tensors["b_dec"].clone()})
    W_enc, W_dec = tensors["encoder.weight"].T.contiguous(), tensors["decoder.weight"].T.contiguous()
    if kind == "GatedAutoEncoder":
        scale, bias = tensors["r_mag"].exp(), tensors["decoder_bias"]
        return {
            "W_enc": W_enc * scale, "b_enc": tensors["mag_bias"], "W_dec": W_dec, "b_dec": bias, "b_in": bias.clone(),
            "threshold": tensors["mag_bias"] - scale * tensors["gate_bias"],
        }  # fmt: skip
    parts = {"W_enc": W_enc, "b_enc": tensors["encoder.bias"], "W_dec": W_dec}
    if kind == "AutoEncoderNew":
        return parts | {"b_dec": tensors["decoder.bias"]}
    if kind == "AutoEncoder":
        norms, bias = W_dec.norm(dim=1).clamp(min=1e-12), tensors["bias"]
        scaled = {
            "W_enc": W_enc * norms,
            "b_enc": tensors["encoder.bias"] * norms,
            "W_dec": W_dec / norms[:, None],
        }
        return scaled | {"b_dec": bias, "b_in": bias.clone()}
    parts |= {"b_dec": tensors["b_dec"], "b_in": tensors["b_dec"].clone()}
    return parts | ({"threshold": tensors["threshold"]} if kind == "BatchTopKSAE" else {})
