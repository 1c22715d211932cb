"""Othello-GPT (Li et al. 2023, arXiv 2210.13382): pre-norm, learned positions, biases, GELU."""

from operator import itemgetter
from typing import Any

from vesalius.architectures import Architecture, Shape, register
from vesalius.architectures.readers import (
    attention,
    constant,
    conv1d,
    layer_norm,
    mlp,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "blocks.{}"


def heads(module: Any) -> int:
    return module.shape["n_heads"]


def shape(module: Any) -> Shape:
    names = ("n_layers", "d_model", "n_heads", "d_mlp", "d_vocab", "n_ctx")
    n_layers, d_model, n_heads, d_mlp, d_vocab, n_ctx = itemgetter(*names)(module.shape)
    return Shape(n_layers, d_model, n_heads, n_heads, d_model // n_heads, d_mlp, d_vocab, n_ctx)


register(
    Architecture(
        name="othello-gpt",
        modules=("OthelloGPT",),
        sites={
            "embed": f"{BLOCK.format(0)}:in",
            "resid_pre": f"{BLOCK}:in",
            "resid_mid": f"{BLOCK}.norm2:in",
            "resid_post": f"{BLOCK}:out",
            "attn_out": f"{BLOCK}.attn:out",
            "mlp_out": f"{BLOCK}.mlp:out",
            **ports(f"{BLOCK}.attn"),
            "neurons": f"{BLOCK}.mlp.down:in",
            "logits": "unembed:out",
        },
        weights={
            "W_E": conv1d("embed"),
            "W_pos": lambda module, layer: module.positions,
            **attention(*(f"{BLOCK}.attn.{n}_proj" for n in "qkvo"), heads=heads, kv_heads=heads),
            **mlp(f"{BLOCK}.mlp.up", f"{BLOCK}.mlp.down"),
            **layer_norm("norm1", f"{BLOCK}.norm1"),
            **layer_norm("norm2", f"{BLOCK}.norm2"),
            **layer_norm("norm_final", "norm"),
            **unembedding("unembed"),
            "eps": constant("norm.eps"),
        },
        shape=shape,
        activation=f"{BLOCK}.mlp.act",
    )
)
