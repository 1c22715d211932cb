"""GPT-2 (Radford et al. 2019): pre-norm, learned positions, fused Q, K and V, `Conv1D` matrices.

W_Q carries the extra 1/(layer + 1) of the variant that divides scores by depth, so scores are always
q·k/√d_head.
"""

from vesalius.architectures import Architecture, Reader, register
from vesalius.architectures.readers import (
    CONTEXT,
    HEADS,
    LAYERS,
    columns,
    constant,
    conv1d,
    head_columns,
    head_rows,
    layer_norm,
    measured,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "transformer.h.{}"


def conv1d_bias(path: str) -> Reader:
    return lambda module, layer: module.get_parameter(f"{path.format(layer)}.bias")


def by_depth(query: Reader) -> Reader:
    return lambda module, layer: (
        query(module, layer) / (layer + 1 if module.config.scale_attn_by_inverse_layer_idx else 1)
    )


FUSED, FUSED_BIAS = conv1d(f"{BLOCK}.attn.c_attn"), conv1d_bias(f"{BLOCK}.attn.c_attn")
WEIGHTS = {
    "W_E": conv1d("transformer.wte"),
    "W_pos": conv1d("transformer.wpe"),
    "W_Q": by_depth(head_columns(columns(FUSED, 0, of=3), HEADS)),
    "W_K": head_columns(columns(FUSED, 1, of=3), HEADS),
    "W_V": head_columns(columns(FUSED, 2, of=3), HEADS),
    "W_O": head_rows(conv1d(f"{BLOCK}.attn.c_proj"), HEADS),
    "b_Q": by_depth(head_rows(columns(FUSED_BIAS, 0, of=3), HEADS)),
    "b_K": head_rows(columns(FUSED_BIAS, 1, of=3), HEADS),
    "b_V": head_rows(columns(FUSED_BIAS, 2, of=3), HEADS),
    "b_O": conv1d_bias(f"{BLOCK}.attn.c_proj"),
    "W_in": conv1d(f"{BLOCK}.mlp.c_fc"),
    "b_in": conv1d_bias(f"{BLOCK}.mlp.c_fc"),
    "W_out": conv1d(f"{BLOCK}.mlp.c_proj"),
    "b_out": conv1d_bias(f"{BLOCK}.mlp.c_proj"),
    **layer_norm("norm1", f"{BLOCK}.ln_1"),
    **layer_norm("norm2", f"{BLOCK}.ln_2"),
    **layer_norm("norm_final", "transformer.ln_f"),
    **unembedding("lm_head"),
    "eps": constant("config.layer_norm_epsilon"),
}

register(
    Architecture(
        name="gpt2",
        modules=("GPT2LMHeadModel",),
        sites={
            "embed": "transformer.h.0:in",
            "resid_pre": f"{BLOCK}:in",
            "resid_mid": f"{BLOCK}.ln_2:in",
            "resid_post": f"{BLOCK}:out",
            "attn_out": f"{BLOCK}.attn.c_proj:out",
            "mlp_out": f"{BLOCK}.mlp:out",
            **ports(f"{BLOCK}.attn"),
            "neurons": f"{BLOCK}.mlp.c_proj:in",
            "logits": "lm_head:out",
        },
        weights=WEIGHTS,
        shape=measured(WEIGHTS, layers=LAYERS, context=CONTEXT),
        activation=f"{BLOCK}.mlp.act",
    )
)
