"""Gemma 2 (arXiv 2408.00118) and Gemma 3 text models (arXiv 2503.19786).

Each sublayer is normalised before it reads and again before it adds, so `attn_out` and `mlp_out` are what
the second norm gives. Norms store their gain minus one. W_E includes the factor √d_model that the embedding
applies (W_U, tied to it, does not). So that scores are always q·k/√d_head, the factor
√(d_head / query_pre_attn_scalar) is part of Gemma 2's W_Q, and of Gemma 3's norm_q, which comes after W_Q.
Gemma 2 squashes scores and logits by cap · tanh(x / cap); the `logits` site is before that.
"""

from typing import Any

from torch import Tensor

from vesalius.architectures import Architecture, Reader, register
from vesalius.architectures.llama import BLOCK, MLP, PROJECTIONS, SITES
from vesalius.architectures.readers import (
    CONTEXT,
    LAYERS,
    constant,
    conv1d,
    gain_plus_one,
    measured,
    unembedding,
)  # fmt: skip


def scaled_embedding(path: str) -> Reader:
    table = conv1d(path)

    def read(module: Any, layer: int) -> Tensor:
        weight = table(module, layer)
        return weight * module.get_submodule(path).embed_scale.to(weight.dtype)

    return read


def scaled_query(query: Reader) -> Reader:
    """`query` for scores that are divided by √d_head instead of √query_pre_attn_scalar."""
    return lambda module, layer: (
        query(module, layer) * (module.config.head_dim / module.config.query_pre_attn_scalar) ** 0.5
    )


NORMS = {
    "norm1": "input_layernorm",
    "norm1_post": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "norm2_post": "post_feedforward_layernorm",
}
GEMMA_2 = {
    "W_E": scaled_embedding("model.embed_tokens"),
    **PROJECTIONS,
    "W_Q": scaled_query(PROJECTIONS["W_Q"]),
    "b_Q": scaled_query(PROJECTIONS["b_Q"]),
    **MLP,
    **{role: gain_plus_one(f"{BLOCK}.{name}") for role, name in NORMS.items()},
    "norm_final": gain_plus_one("model.norm"),
    **unembedding("lm_head"),
    "eps": constant("config.rms_norm_eps"),
    "attn_softcap": constant("config.attn_logit_softcapping"),
}
GEMMA_3 = {role: reader for role, reader in GEMMA_2.items() if role != "attn_softcap"} | {
    "W_Q": PROJECTIONS["W_Q"],  # the scale is on what follows it, the gain of the query's norm
    "b_Q": PROJECTIONS["b_Q"],
    "norm_q": scaled_query(gain_plus_one(f"{BLOCK}.self_attn.q_norm")),
    "norm_k": gain_plus_one(f"{BLOCK}.self_attn.k_norm"),
}

for name, module, weights in (
    ("gemma2", "Gemma2ForCausalLM", GEMMA_2),
    ("gemma3", "Gemma3ForCausalLM", GEMMA_3),
):
    register(
        Architecture(
            name=name,
            modules=(module,),
            sites=SITES
            | {
                "resid_mid": f"{BLOCK}.pre_feedforward_layernorm:in",
                "attn_out": f"{BLOCK}.post_attention_layernorm:out",
                "mlp_out": f"{BLOCK}.post_feedforward_layernorm:out",
            },
            weights=weights,
            shape=measured(weights, layers=LAYERS, context=CONTEXT),
            norm="rms",
            positions="rotary",
            gain_offset=1.0,
            activation=f"{BLOCK}.mlp.act_fn",
        )
    )
