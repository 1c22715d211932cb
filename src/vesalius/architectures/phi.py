"""Phi 1 to 2 (arXiv 2306.11644) and Phi 3 (arXiv 2404.14219).

Phi's attention and MLP read one and the same normalised stream, side by side, and everything has biases (a
checkpoint with `qk_layernorm` is not of this family). Phi 3 is Llama with fused matrices.
"""

from typing import Any

from torch import Tensor

from vesalius.architectures import Architecture, Reader, llama, register
from vesalius.architectures.readers import (
    CONTEXT,
    HEADS,
    KV_HEADS,
    LAYERS,
    attention,
    bias,
    columns,
    constant,
    conv1d,
    head_columns,
    head_rows,
    layer_norm,
    linear,
    measured,
    mlp,
    unembedding,
)  # fmt: skip

BLOCK = llama.BLOCK

PHI = {
    "W_E": conv1d("model.embed_tokens"),
    **attention(
        *(f"{BLOCK}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "dense")),
        heads=HEADS,
        kv_heads=KV_HEADS,
    ),
    **mlp(f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2"),
    **layer_norm("norm1", f"{BLOCK}.input_layernorm"),
    **layer_norm("norm2", f"{BLOCK}.input_layernorm"),
    **layer_norm("norm_final", "model.final_layernorm"),
    **unembedding("lm_head"),
    "eps": constant("config.layer_norm_eps"),
}
PHI_SITES = {role: address for role, address in llama.SITES.items() if role != "resid_mid"} | {
    "attn_out": f"{BLOCK}.self_attn.dense:out",
    "neurons": f"{BLOCK}.mlp.fc2:in",
}

register(
    Architecture(
        name="phi",
        modules=("PhiForCausalLM",),
        matches=lambda module: not module.config.qk_layernorm,
        sites=PHI_SITES,
        weights=PHI,
        shape=measured(PHI, layers=LAYERS, context=CONTEXT),
        residual="parallel",
        positions="rotary",
        activation=f"{BLOCK}.mlp.activation_fn",
    )
)


def of_qkv(matrix: Reader, index: int) -> Reader:
    """Q, K or V columns of [d_model, n_heads · d_head + 2 · n_kv_heads · d_head]."""

    def read(module: Any, layer: int) -> Tensor:
        fused, heads, kv_heads = matrix(module, layer), HEADS(module), KV_HEADS(module)
        d_head = fused.shape[-1] // (heads + 2 * kv_heads)
        return fused.split([heads * d_head, kv_heads * d_head, kv_heads * d_head], dim=-1)[index]

    return read


QKV, GATE_UP = f"{BLOCK}.self_attn.qkv_proj", f"{BLOCK}.mlp.gate_up_proj"
COUNTS = {"Q": HEADS, "K": KV_HEADS, "V": KV_HEADS}
PHI_3 = llama.WEIGHTS | {
    **{f"W_{n}": head_columns(of_qkv(linear(QKV), i), COUNTS[n]) for i, n in enumerate(COUNTS)},
    **{f"b_{n}": head_rows(of_qkv(bias(QKV), i), COUNTS[n]) for i, n in enumerate(COUNTS)},
    "W_gate": columns(linear(GATE_UP), 0, of=2),
    "b_gate": columns(bias(GATE_UP), 0, of=2),
    "W_in": columns(linear(GATE_UP), 1, of=2),
    "b_in": columns(bias(GATE_UP), 1, of=2),
}

register(
    Architecture(
        name="phi3",
        modules=("Phi3ForCausalLM",),
        sites=llama.SITES,
        weights=PHI_3,
        shape=measured(PHI_3, layers=LAYERS, context=CONTEXT),
        norm="rms",
        positions="rotary",
        activation=f"{BLOCK}.mlp.activation_fn",
    )
)
