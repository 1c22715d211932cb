"""OLMo 2 (arXiv 2501.00656): what each sublayer adds is normalised, what it reads is not.

Queries and keys are normalised over all heads together, so their gains are [head, d_head].
"""

from vesalius.architectures import Architecture, register
from vesalius.architectures.llama import BLOCK, SITES, WEIGHTS
from vesalius.architectures.readers import (
    CONTEXT,
    HEADS,
    KV_HEADS,
    LAYERS,
    gain,
    head_rows,
    measured,
)  # fmt: skip

OLMO_2 = {role: reader for role, reader in WEIGHTS.items() if role not in ("norm1", "norm2")} | {
    "norm1_post": gain(f"{BLOCK}.post_attention_layernorm"),
    "norm2_post": gain(f"{BLOCK}.post_feedforward_layernorm"),
    "norm_q": head_rows(gain(f"{BLOCK}.self_attn.q_norm"), HEADS),
    "norm_k": head_rows(gain(f"{BLOCK}.self_attn.k_norm"), KV_HEADS),
}

register(
    Architecture(
        name="olmo2",
        modules=("Olmo2ForCausalLM",),
        sites=SITES
        | {
            "resid_mid": f"{BLOCK}.mlp:in",
            "attn_out": f"{BLOCK}.post_attention_layernorm:out",
            "mlp_out": f"{BLOCK}.post_feedforward_layernorm:out",
        },
        weights=OLMO_2,
        shape=measured(OLMO_2, layers=LAYERS, context=CONTEXT),
        norm="rms",
        positions="rotary",
        activation=f"{BLOCK}.mlp.act_fn",
    )
)
