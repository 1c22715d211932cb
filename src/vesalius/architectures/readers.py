"""Readers of weights: closures that slice a module's parameters into the one layout every analysis uses.

A family stores its matrices transposed, fused or per group; a reader `(module, layer) -> weight` undoes that,
so that everywhere `x · W` holds: W_Q [head, d_model, d_head], W_O [head, d_head, d_model], W_in [d_model,
d_mlp], W_U [d_model, d_vocab]. Paths carry `{}` where the layer goes. A bias that is not there reads as 0.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vesalius.architectures import Reader, Shape

ATTENTION_PORTS = ("q", "k", "v", "pattern", "z")
Count = Callable[[Any], int]
"""How many heads, layers or positions a module has."""

HEADS: Count = attrgetter("config.num_attention_heads")
KV_HEADS: Count = attrgetter("config.num_key_value_heads")
LAYERS: Count = attrgetter("config.num_hidden_layers")
CONTEXT: Count = attrgetter("config.max_position_embeddings")


def ports(path: str) -> dict[str, str]:
    """The five addresses inside one attention module."""
    return {port: f"{path}:{port}" for port in ATTENTION_PORTS}


def part(module: Any, path: str, layer: int) -> Any:
    """The submodule at a path template."""
    return module.get_submodule(path.format(layer))


def linear(path: str) -> Reader:
    """An `nn.Linear`, which stores [out, in], read as [in, out]."""
    return lambda module, layer: part(module, path, layer).weight.T


def conv1d(path: str) -> Reader:
    """GPT-2's `Conv1D` (or an embedding table), which already stores [in, out]."""
    return lambda module, layer: part(module, path, layer).weight


def bias(path: str) -> Reader:
    """The bias of a layer that maps to `out`: [out], zeros if it has none."""

    def read(module: Any, layer: int) -> Tensor:
        owner = part(module, path, layer)
        return owner.weight.new_zeros(owner.weight.shape[0]) if owner.bias is None else owner.bias

    return read


def gain(path: str) -> Reader:
    """What a norm multiplies by."""
    return lambda module, layer: part(module, path, layer).weight


def gain_plus_one(path: str) -> Reader:
    """What a Gemma norm multiplies by: it stores the difference from one."""
    return lambda module, layer: 1 + part(module, path, layer).weight


def constant(attribute: str) -> Reader:
    """A number of the module, such as `config.rms_norm_eps`, as a tensor without axes."""
    return lambda module, layer: torch.tensor(float(attrgetter(attribute)(module)))


def columns(matrix: Reader, index: int, *, of: int) -> Reader:
    """One of `of` equal blocks of columns of a fused matrix (or bias)."""
    return lambda module, layer: matrix(module, layer).chunk(of, dim=-1)[index]


def head_columns(matrix: Reader, heads: Count) -> Reader:
    """[d_model, (head d_head)] -> [head, d_model, d_head]."""
    return lambda module, layer: rearrange(
        matrix(module, layer), "d_model (head d_head) -> head d_model d_head", head=heads(module)
    )


def head_rows(matrix: Reader, heads: Count) -> Reader:
    """[(head d_head), d_model] -> [head, d_head, d_model]; a vector [(head d_head)] -> [head, d_head]."""
    return lambda module, layer: rearrange(
        matrix(module, layer), "(head d_head) ... -> head d_head ...", head=heads(module)
    )


def attention(q: str, k: str, v: str, o: str, *, heads: Count, kv_heads: Count) -> dict[str, Reader]:
    """Weights and biases of four separate `nn.Linear` projections; K and V keep their own number of heads."""
    return {
        "W_Q": head_columns(linear(q), heads),
        "W_K": head_columns(linear(k), kv_heads),
        "W_V": head_columns(linear(v), kv_heads),
        "W_O": head_rows(linear(o), heads),
        "b_Q": head_rows(bias(q), heads),
        "b_K": head_rows(bias(k), kv_heads),
        "b_V": head_rows(bias(v), kv_heads),
        "b_O": bias(o),
    }


def mlp(up: str, down: str) -> dict[str, Reader]:
    """Weights and biases of an MLP with one hidden layer of `nn.Linear`s."""
    return {"W_in": linear(up), "b_in": bias(up), "W_out": linear(down), "b_out": bias(down)}


def gated_mlp(gate: str, up: str, down: str) -> dict[str, Reader]:
    """An MLP whose neurons are act(x W_gate + b_gate) · (x W_in + b_in) (Shazeer 2020, arXiv 2002.05202)."""
    return mlp(up, down) | {"W_gate": linear(gate), "b_gate": bias(gate)}


def layer_norm(role: str, path: str) -> dict[str, Reader]:
    """Gain and bias of an `nn.LayerNorm`, e.g. `norm1` and `norm1_bias`."""
    return {role: gain(path), f"{role}_bias": bias(path)}


def unembedding(path: str) -> dict[str, Reader]:
    """W_U and b_U of the `nn.Linear` that makes logits."""
    return {"W_U": linear(path), "b_U": bias(path)}


def measured(weights: Mapping[str, Reader], *, layers: Count, context: Count) -> Callable[[Any], Shape]:
    """Sizes read off the weights themselves; only depth and context have to be told."""

    def shape(module: Any) -> Shape:
        n_heads, d_model, d_head = weights["W_Q"](module, 0).shape
        return Shape(
            n_layers=layers(module),
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=weights["W_K"](module, 0).shape[0],
            d_head=d_head,
            d_mlp=weights["W_in"](module, 0).shape[1] if "W_in" in weights else 0,
            d_vocab=weights["W_U"](module, 0).shape[1],
            n_ctx=context(module),
        )

    return shape
