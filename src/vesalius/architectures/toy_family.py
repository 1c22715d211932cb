"""The testbed's transformer (`toy.py`): a table per combination of positions, norm, MLP, and no layers."""

from itertools import product
from typing import Any

from vesalius.architectures import Architecture, Positions, Reader, Shape, register
from vesalius.architectures.readers import attention, constant, conv1d, layer_norm, mlp, ports, unembedding

BLOCK = "blocks.{}"


def toy(positions: Positions, norm: bool, has_mlp: bool, has_layers: bool) -> Architecture:
    """The table of one variant; a role that a variant lacks is left out."""
    weights: dict[str, Reader] = {"W_E": conv1d("embed"), **unembedding("unembed")}
    sites = {"embed": "blocks.0:in" if has_layers else "norm:in", "logits": "unembed:out"}
    if positions != "rotary":
        weights["W_pos"] = lambda module, layer: module.positions
    if norm:
        weights |= layer_norm("norm_final", "norm") | {"eps": constant("norm.eps")}
    if has_layers:
        projections = (f"{BLOCK}.attn.{name}_proj" for name in "qkvo")
        weights |= attention(*projections, heads=heads, kv_heads=heads)
        weights |= layer_norm("norm1", f"{BLOCK}.norm1") if norm else {}
        sites |= {"resid_pre": f"{BLOCK}:in", "resid_post": f"{BLOCK}:out"}
        sites |= {"attn_out": f"{BLOCK}.attn:out", **ports(f"{BLOCK}.attn")}
    if has_layers and has_mlp:
        weights |= mlp(f"{BLOCK}.mlp.up", f"{BLOCK}.mlp.down")
        weights |= layer_norm("norm2", f"{BLOCK}.norm2") if norm else {}
        sites |= {"resid_mid": f"{BLOCK}.norm2:in", "mlp_out": f"{BLOCK}.mlp:out"}
        sites["neurons"] = f"{BLOCK}.mlp.down:in"

    def matches(module: Any) -> bool:
        kind = (
            module.shape["positions"],
            module.shape["norm"],
            module.shape["d_mlp"] > 0,
            len(module.blocks) > 0,
        )
        return kind == (positions, norm, has_mlp, has_layers)

    parts = ("toy", positions, "norm" * norm, "mlp" * has_mlp, "bigram" * (not has_layers))
    return Architecture(
        name="-".join(filter(None, parts)),
        modules=("ToyTransformer",),
        matches=matches,
        sites=sites,
        weights=weights,
        shape=shape,
        norm="layer" if norm else "none",
        positions=positions,
        activation=f"{BLOCK}.mlp.act" if has_mlp else "",
    )


def heads(module: Any) -> int:
    return module.shape["n_heads"]


def shape(module: Any) -> Shape:
    names = ("n_layers", "d_model", "n_heads", "n_heads", "d_mlp", "d_vocab", "n_ctx")
    n_layers, d_model, n_heads, n_kv_heads, d_mlp, d_vocab, n_ctx = (module.shape[name] for name in names)
    return Shape(n_layers, d_model, n_heads, n_kv_heads, d_model // n_heads, d_mlp, d_vocab, n_ctx)


KINDS: tuple[Positions, ...] = ("shortformer", "residual", "rotary")
for variant in product(KINDS, (False, True), (False, True), (True, False)):
    register(toy(*variant))
