"""SAELens (Bloom et al., github.com/decoderesearch/SAELens): a folder with cfg.json and sae_weights.safetensors.

Architectures standard, gated, jumprelu, topk, batchtopk and matryoshka_batchtopk (as they are trained, and as
jumprelu, which they are for use), and the transcoders: plain, skip, jumprelu, jumprelu and skip.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError, nearest
from vesalius.formats.dictionaries.sites import known, site_of_hook
from vesalius.formats.dictionaries.tensors import described, required, safetensors, thresholds

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FILES = f"SAELens' {CONFIG} and {WEIGHTS}"
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = (
    "standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", *TRANSCODERS,
)  # fmt: skip


def recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, *, site: str = "", source: str = "") -> SparseDictionary:
    """The dictionary with the same codes and reconstructions; what is folded here computes the same."""
    config, tensors = described(path / CONFIG), safetensors(path / WEIGHTS)
    kind = _architecture(config, path)
    required(tensors, ("W_enc", "W_dec", "b_dec"), path / WEIGHTS)
    _check_norm(config, path)
    tensors = _gate_folded(tensors, path) if kind == "gated" else tensors
    required(tensors, ("b_enc",), path / WEIGHTS)
    if config.get("rescale_acts_by_decoder_norm", False) and kind not in ("standard", "gated"):
        tensors = _norms_folded(tensors)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors["log_threshold"].exp()
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors["topk_threshold"]
    hooks = config | config.get("metadata", {})
    named = site_of_hook(hooks.get("hook_name") or hooks.get("hook_point") or "")
    writes = site_of_hook(hooks.get("hook_name_out") or "") if kind in TRANSCODERS else named
    centred = config.get("apply_b_dec_to_input", True) and kind not in TRANSCODERS
    return SparseDictionary(
        known(site or writes, path),
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        thresholds(tensors, len(tensors["b_enc"])),
        _k(config) if kind == "topk" else None,
        source=source or (named if kind in TRANSCODERS else ""),
        b_in=tensors["b_dec"].clone() if centred else None,
        W_skip=tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
        about={"format": "saelens", "cfg": config},
    )


def _architecture(config: dict[str, Any], path: Path) -> str:
    """What it is; before version 6 a top-k activation was said in other words."""
    old = config.get("activation_fn_str") or config.get("activation_fn")
    kind = "topk" if old == "topk" else config.get("architecture", "standard")
    if kind not in ARCHITECTURES:
        raise VesaliusError(
            f"'{path}' is a SAELens {kind}; expected {', '.join(ARCHITECTURES)}{nearest(kind, ARCHITECTURES)}"
        )
    return kind


def _k(config: dict[str, Any]) -> int:
    return int(config.get("k") or config["activation_fn_kwargs"]["k"])


def _check_norm(config: dict[str, Any], path: Path) -> None:
    """Norms of each row are no affine map; an average norm has been folded into the weights when they were saved."""
    norm = config.get("normalize_activations") or "none"
    if norm in ("layer_norm", "constant_norm_rescale", "covariance_whitening"):
        raise VesaliusError(
            f"'{path}' was trained on activations after '{norm}', which is not folded into its weights; "
            "expected activations as they are, 'none'"
        )
    if config.get("finetuning_scaling_factor"):
        raise VesaliusError(f"'{path}' scales its codes by a finetuning factor, which is not supported")


def _gate_folded(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A gate opens where x W + b_gate > 0; of the magnitude e^r x W + b_mag that is a threshold."""
    required(tensors, ("b_gate", "b_mag", "r_mag"), path)
    scale = tensors["r_mag"].exp()
    return tensors | {
        "W_enc": tensors["W_enc"] * scale,
        "b_enc": tensors["b_mag"],
        "threshold": tensors["b_mag"] - scale * tensors["b_gate"],
    }


def _norms_folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Codes in units of what they write, which is what is compared."""
    norms = tensors["W_dec"].norm(dim=1)
    return tensors | {
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": torch.nn.functional.normalize(tensors["W_dec"], dim=1),
    }
