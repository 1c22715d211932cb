"""GPT-NeoX and Pythia (Biderman et al. 2023, arXiv 2304.01373).

Attention and MLP read the same residual stream side by side (one after the other in the checkpoints that say
so); rotary positions turn a part of each head; Q, K and V are fused head by head.
"""

from einops import rearrange

from vesalius.architectures import Architecture, Reader, register
from vesalius.architectures.readers import (
    CONTEXT,
    HEADS,
    LAYERS,
    bias,
    constant,
    conv1d,
    head_rows,
    layer_norm,
    linear,
    measured,
    mlp,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "gpt_neox.layers.{}"


def of_fused(read: Reader, index: int) -> Reader:
    """Q, K or V out of [..., (head three d_head)]."""
    return lambda module, layer: rearrange(
        read(module, layer), "... (head three d_head) -> three head ... d_head", head=HEADS(module), three=3
    )[index]


FUSED = f"{BLOCK}.attention.query_key_value"
WEIGHTS = {
    "W_E": conv1d("gpt_neox.embed_in"),
    **{f"W_{name}": of_fused(linear(FUSED), index) for index, name in enumerate("QKV")},
    **{f"b_{name}": of_fused(bias(FUSED), index) for index, name in enumerate("QKV")},
    "W_O": head_rows(linear(f"{BLOCK}.attention.dense"), HEADS),
    "b_O": bias(f"{BLOCK}.attention.dense"),
    **mlp(f"{BLOCK}.mlp.dense_h_to_4h", f"{BLOCK}.mlp.dense_4h_to_h"),
    **layer_norm("norm1", f"{BLOCK}.input_layernorm"),
    **layer_norm("norm2", f"{BLOCK}.post_attention_layernorm"),
    **layer_norm("norm_final", "gpt_neox.final_layer_norm"),
    **unembedding("lm_head"),
    "eps": constant("config.layer_norm_eps"),
}
SITES = {
    "embed": "gpt_neox.layers.0:in",
    "resid_pre": f"{BLOCK}:in",
    "resid_post": f"{BLOCK}:out",
    "attn_out": f"{BLOCK}.attention.dense:out",
    "mlp_out": f"{BLOCK}.mlp:out",
    **ports(f"{BLOCK}.attention"),
    "neurons": f"{BLOCK}.mlp.dense_4h_to_h:in",
    "logits": "lm_head:out",
}

for name, sites, parallel in (
    ("neox", SITES, True),
    ("neox-sequential", SITES | {"resid_mid": f"{BLOCK}.post_attention_layernorm:in"}, False),
):
    register(
        Architecture(
            name=name,
            modules=("GPTNeoXForCausalLM",),
            matches=lambda module, parallel=parallel: module.config.use_parallel_residual == parallel,
            sites=sites,
            weights=WEIGHTS,
            shape=measured(WEIGHTS, layers=LAYERS, context=CONTEXT),
            residual="parallel" if parallel else "sequential",
            positions="rotary",
            activation=f"{BLOCK}.mlp.act",
        )
    )
