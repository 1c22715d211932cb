"""OPT (Zhang et al. 2022, arXiv 2205.01068): pre-norm, learned positions, ReLU.

The 350m checkpoint, which normalises after each sum and projects its embeddings, is not of this family. The
first two rows of the position table are never read. The MLP runs on [batch · position, d_model]: `resid_mid`,
`mlp_out` and `neurons` come in that shape.
"""

from typing import Any

from vesalius.architectures import Architecture, register
from vesalius.architectures.readers import (
    CONTEXT,
    HEADS,
    LAYERS,
    attention,
    constant,
    conv1d,
    layer_norm,
    measured,
    mlp,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "model.decoder.layers.{}"
WEIGHTS = {
    "W_E": conv1d("model.decoder.embed_tokens"),
    "W_pos": lambda module, layer: module.model.decoder.embed_positions.weight[2:],
    **attention(
        *(f"{BLOCK}.self_attn.{n}_proj" for n in ("q", "k", "v", "out")), heads=HEADS, kv_heads=HEADS
    ),
    **mlp(f"{BLOCK}.fc1", f"{BLOCK}.fc2"),
    **layer_norm("norm1", f"{BLOCK}.self_attn_layer_norm"),
    **layer_norm("norm2", f"{BLOCK}.final_layer_norm"),
    **layer_norm("norm_final", "model.decoder.final_layer_norm"),
    **unembedding("lm_head"),
    "eps": constant("model.decoder.final_layer_norm.eps"),
}


def matches(module: Any) -> bool:
    config = module.config
    return (
        config.do_layer_norm_before
        and not config._remove_final_layer_norm
        and config.layer_norm_elementwise_affine
        and config.word_embed_proj_dim == config.hidden_size
    )


register(
    Architecture(
        name="opt",
        modules=("OPTForCausalLM",),
        matches=matches,
        sites={
            "embed": "model.decoder.layers.0:in",
            "resid_pre": f"{BLOCK}:in",
            "resid_mid": f"{BLOCK}.final_layer_norm:in",
            "resid_post": f"{BLOCK}:out",
            "attn_out": f"{BLOCK}.self_attn.out_proj:out",
            "mlp_out": f"{BLOCK}.fc2:out",
            **ports(f"{BLOCK}.self_attn"),
            "neurons": f"{BLOCK}.fc2:in",
            "logits": "lm_head:out",
        },
        weights=WEIGHTS,
        shape=measured(WEIGHTS, layers=LAYERS, context=CONTEXT),
        activation=f"{BLOCK}.activation_fn",
    )
)
