"""Llama (Touvron et al. 2023, arXiv 2302.13971) and the families that keep its names.

Pre-norm with RMSNorm, rotary positions, grouped queries, gated MLP. Mistral is the same table; Qwen 2 has
biases on Q, K and V, which the readers find; Qwen 3 normalises every query and key.
"""

from vesalius.architectures import Architecture, register
from vesalius.architectures.readers import (
    CONTEXT,
    HEADS,
    KV_HEADS,
    LAYERS,
    attention,
    constant,
    conv1d,
    gain,
    gated_mlp,
    measured,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "model.layers.{}"
SITES = {
    "embed": "model.layers.0:in",
    "resid_pre": f"{BLOCK}:in",
    "resid_mid": f"{BLOCK}.post_attention_layernorm:in",
    "resid_post": f"{BLOCK}:out",
    "attn_out": f"{BLOCK}.self_attn.o_proj:out",
    "mlp_out": f"{BLOCK}.mlp:out",
    **ports(f"{BLOCK}.self_attn"),
    "neurons": f"{BLOCK}.mlp.down_proj:in",
    "logits": "lm_head:out",
}
PROJECTIONS = attention(
    *(f"{BLOCK}.self_attn.{name}_proj" for name in "qkvo"),
    heads=HEADS,
    kv_heads=KV_HEADS,
)
MLP = gated_mlp(*(f"{BLOCK}.mlp.{name}_proj" for name in ("gate", "up", "down")))
WEIGHTS = {
    "W_E": conv1d("model.embed_tokens"),
    **PROJECTIONS,
    **MLP,
    "norm1": gain(f"{BLOCK}.input_layernorm"),
    "norm2": gain(f"{BLOCK}.post_attention_layernorm"),
    "norm_final": gain("model.norm"),
    **unembedding("lm_head"),
    "eps": constant("config.rms_norm_eps"),
}
NORMED_QK = {"norm_q": gain(f"{BLOCK}.self_attn.q_norm"), "norm_k": gain(f"{BLOCK}.self_attn.k_norm")}

for name, module, weights in (
    ("llama", "LlamaForCausalLM", WEIGHTS),
    ("mistral", "MistralForCausalLM", WEIGHTS),
    ("qwen2", "Qwen2ForCausalLM", WEIGHTS),
    ("qwen3", "Qwen3ForCausalLM", WEIGHTS | NORMED_QK),
):
    register(
        Architecture(
            name=name,
            modules=(module,),
            sites=SITES,
            weights=weights,
            shape=measured(weights, layers=LAYERS, context=CONTEXT),
            norm="rms",
            positions="rotary",
            activation=f"{BLOCK}.mlp.act_fn",
        )
    )
