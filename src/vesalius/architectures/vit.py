"""Vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929).

Position 0 is [CLS], then come the patches row by row. W_E is the patch projection [channel · row ·
column, d_model]; the logits are the classifier's, read at [CLS].
"""

from typing import Any

from einops import rearrange
from torch import Tensor

from vesalius.architectures import Architecture, register
from vesalius.architectures.readers import (
    HEADS,
    LAYERS,
    attention,
    bias,
    constant,
    layer_norm,
    measured,
    mlp,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "vit.layers.{}"
TABLES = "vit.embeddings"


def patch_projection(module: Any, layer: int) -> Tensor:
    kernel = module.get_parameter(f"{TABLES}.patch_embeddings.projection.weight")
    return rearrange(kernel, "d_model channel row column -> (channel row column) d_model")


WEIGHTS = {
    "W_E": patch_projection,
    "b_E": bias(f"{TABLES}.patch_embeddings.projection"),
    "W_cls": lambda module, layer: module.get_parameter(f"{TABLES}.cls_token")[0, 0],
    "W_pos": lambda module, layer: module.get_parameter(f"{TABLES}.position_embeddings")[0],
    **attention(*(f"{BLOCK}.attention.{name}_proj" for name in "qkvo"), heads=HEADS, kv_heads=HEADS),
    **mlp(f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2"),
    **layer_norm("norm1", f"{BLOCK}.layernorm_before"),
    **layer_norm("norm2", f"{BLOCK}.layernorm_after"),
    **layer_norm("norm_final", "vit.layernorm"),
    **unembedding("classifier"),
    "eps": constant("config.layer_norm_eps"),
}

register(
    Architecture(
        name="vit",
        modules=("ViTForImageClassification",),
        matches=lambda module: module.config.num_labels > 0,
        sites={
            "embed": "vit.layers.0:in",
            "resid_pre": f"{BLOCK}:in",
            "resid_mid": f"{BLOCK}.layernorm_after:in",
            "resid_post": f"{BLOCK}:out",
            "attn_out": f"{BLOCK}.attention.o_proj:out",
            "mlp_out": f"{BLOCK}.mlp:out",
            **ports(f"{BLOCK}.attention"),
            "neurons": f"{BLOCK}.mlp.fc2:in",
            "logits": "classifier:out",
        },
        weights=WEIGHTS,
        shape=measured(WEIGHTS, layers=LAYERS, context=lambda module: WEIGHTS["W_pos"](module, 0).shape[0]),
        causal=False,
        inputs="image",
        activation=f"{BLOCK}.mlp.activation_fn",
    )
)
