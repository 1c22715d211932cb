"""The testbed's transformer (`toy.py`): one table per combination of positions, norm and MLP."""

from itertools import product

from torch import nn

from vesalius.architectures import Architecture, register
from vesalius.architectures.readers import (
    attention,
    constant,
    conv1d,
    layer_norm,
    measured,
    mlp,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "blocks.{}"


def heads(module: nn.Module) -> int:
    return module.shape["n_heads"]


def toy(positions: str, norm: bool, has_mlp: bool) -> Architecture:
    """The table of one variant; a role that a variant lacks is left out."""
    weights = {
        "W_E": conv1d("embed"),
        **attention(*(f"{BLOCK}.attn.{name}_proj" for name in "qkvo"), heads=heads, kv_heads=heads),
        **unembedding("unembed"),
    }
    sites = {
        "embed": "blocks.0:in",
        "resid_pre": f"{BLOCK}:in",
        "resid_post": f"{BLOCK}:out",
        "attn_out": f"{BLOCK}.attn:out",
        **ports(f"{BLOCK}.attn"),
        "logits": "unembed:out",
    }
    if positions != "rotary":
        weights["W_pos"] = lambda module, layer: module.positions
    if norm:
        weights |= layer_norm("norm1", f"{BLOCK}.norm1") | layer_norm("norm_final", "norm")
        weights["eps"] = constant("norm.eps")
    if has_mlp:
        weights |= mlp(f"{BLOCK}.mlp.up", f"{BLOCK}.mlp.down")
        sites |= {
            "resid_mid": f"{BLOCK}.norm2:in",
            "mlp_out": f"{BLOCK}.mlp:out",
            "neurons": f"{BLOCK}.mlp.down:in",
        }
    if norm and has_mlp:
        weights |= layer_norm("norm2", f"{BLOCK}.norm2")

    def matches(module: nn.Module) -> bool:
        shape = module.shape
        return (shape["positions"], bool(shape["norm"]), shape["d_mlp"] > 0) == (positions, norm, has_mlp)

    return Architecture(
        name=f"toy-{positions}" + ("-norm" if norm else "") + ("-mlp" if has_mlp else ""),
        modules=("ToyTransformer",),
        matches=matches,
        sites=sites,
        weights=weights,
        shape=measured(
            weights,
            layers=lambda module: module.shape["n_layers"],
            context=lambda module: module.shape["n_ctx"],
        ),
        norm="layer" if norm else "none",
        positions=positions,
        activation=f"{BLOCK}.mlp.act" if has_mlp else "",
    )


for variant in product(("shortformer", "residual", "rotary"), (False, True), (False, True)):
    register(toy(*variant))
