"""BERT (Devlin et al. 2018, arXiv 1810.04805): bidirectional; one more layer before W_U guesses masked words.

Each sum is normalised: `resid_mid` and `resid_post` are what the norms give. W_pos includes the embedding of
segment 0, which every token gets unless told otherwise.
"""

from vesalius.architectures import Architecture, register
from vesalius.architectures.readers import (
    CONTEXT,
    HEADS,
    LAYERS,
    attention,
    bias,
    constant,
    conv1d,
    layer_norm,
    linear,
    measured,
    mlp,
    ports,
    unembedding,
)  # fmt: skip

BLOCK = "bert.encoder.layer.{}"
TABLES = "bert.embeddings"
HEAD = "cls.predictions"
WEIGHTS = {
    "W_E": conv1d(f"{TABLES}.word_embeddings"),
    "W_pos": lambda module, layer: (
        module.get_parameter(f"{TABLES}.position_embeddings.weight")
        + module.get_parameter(f"{TABLES}.token_type_embeddings.weight")[0]
    ),
    **layer_norm("norm_embed", f"{TABLES}.LayerNorm"),
    **attention(
        *(f"{BLOCK}.attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")),
        heads=HEADS,
        kv_heads=HEADS,
    ),
    **mlp(f"{BLOCK}.intermediate.dense", f"{BLOCK}.output.dense"),
    **layer_norm("norm1", f"{BLOCK}.attention.output.LayerNorm"),
    **layer_norm("norm2", f"{BLOCK}.output.LayerNorm"),
    "W_head": linear(f"{HEAD}.transform.dense"),
    "b_head": bias(f"{HEAD}.transform.dense"),
    **layer_norm("norm_final", f"{HEAD}.transform.LayerNorm"),
    **unembedding(f"{HEAD}.decoder"),
    "eps": constant("config.layer_norm_eps"),
}

register(
    Architecture(
        name="bert",
        modules=("BertForMaskedLM",),
        matches=lambda module: not module.config.is_decoder,
        sites={
            "embed": "bert.encoder.layer.0:in",
            "resid_pre": f"{BLOCK}:in",
            "resid_mid": f"{BLOCK}.intermediate:in",
            "resid_post": f"{BLOCK}:out",
            "attn_out": f"{BLOCK}.attention.output.dense:out",
            "mlp_out": f"{BLOCK}.output.dense:out",
            **ports(f"{BLOCK}.attention.self"),
            "neurons": f"{BLOCK}.output.dense:in",
            "logits": f"{HEAD}.decoder:out",
        },
        weights=WEIGHTS,
        shape=measured(WEIGHTS, layers=LAYERS, context=CONTEXT),
        residual="post_norm",
        causal=False,
        activation=f"{BLOCK}.intermediate.intermediate_act_fn",
    )
)
