"""A tiny instance of every family, all its parameters drawn anew, and the sizes it should report."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from vesalius.architectures import Shape
from vesalius.architectures.toy import ToyTransformer
from vesalius.networks.othello_gpt import OthelloGPT

SIZES = {
    "vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 20, "max_position_embeddings": 16, "attn_implementation": "sdpa",
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}
GEMMA = WIDE | {
    "query_pre_attn_scalar": 5, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
SOFTCAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attn_implementation": "eager"}

PLAIN_SHAPE = Shape(n_layers=2, d_model=24, n_heads=4, n_kv_heads=4, d_head=6, d_mlp=20, d_vocab=29, n_ctx=16)
GROUPED_SHAPE = replace(PLAIN_SHAPE, n_kv_heads=2)
WIDE_SHAPE = replace(GROUPED_SHAPE, d_head=8)


def huggingface(config: str, head: str, sizes: dict, **options: object) -> Callable[[], nn.Module]:
    """A builder of a transformers class from its configuration class."""

    def build() -> nn.Module:
        import transformers

        return randomised(getattr(transformers, head)(getattr(transformers, config)(**sizes, **options)))

    return build


def toy(**options: object) -> Callable[[], nn.Module]:
    """A builder of one variant of the testbed's transformer."""
    return lambda: randomised(
        ToyTransformer(**{"n_layers": 2, "d_model": 24, "n_heads": 4, "d_vocab": 29, "n_ctx": 16} | options)
    )


def othello_gpt() -> nn.Module:
    """The published player of Othello, but for its vocabulary."""
    return randomised(OthelloGPT(n_layers=2, d_model=24, n_heads=4, d_mlp=20, d_vocab=29, n_ctx=16))


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random, biases and norms too: default values of 0 and 1 would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            sd = 0.5 if parameter.dim() < 2 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * sd)
            if parameter.dim() == 1:
                parameter += 0.3
    return module.eval()


TINY: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    **{
        f"toy-{positions}{'-norm' * norm}{'-mlp' * (d_mlp > 0)}": (
            toy(positions=positions, norm=norm, d_mlp=d_mlp),
            replace(PLAIN_SHAPE, d_mlp=d_mlp),
        )
        for positions in ("shortformer", "residual", "rotary")
        for norm in (False, True)
        for d_mlp in (0, 20)
    },
    "toy-residual-norm-bigram": (
        toy(n_layers=0, positions="residual", norm=True),
        replace(PLAIN_SHAPE, n_layers=0, d_mlp=0),
    ),
    "gpt2": (huggingface("GPT2Config", "GPT2LMHeadModel", SIZES, n_inner=20), PLAIN_SHAPE),
    "gpt2 scaled by depth": (
        huggingface("GPT2Config", "GPT2LMHeadModel", SIZES, n_inner=20, scale_attn_by_inverse_layer_idx=True),
        PLAIN_SHAPE,
    ),
    "gpt2 eager": (
        huggingface("GPT2Config", "GPT2LMHeadModel", SIZES | {"attn_implementation": "eager"}, n_inner=20),
        PLAIN_SHAPE,
    ),
    "neox": (huggingface("GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES, rotary_pct=0.34), PLAIN_SHAPE),
    "neox-sequential": (
        huggingface(
            "GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES, rotary_pct=1.0, use_parallel_residual=False
        ),
        PLAIN_SHAPE,
    ),
    "opt": (
        huggingface("OPTConfig", "OPTForCausalLM", SIZES, ffn_dim=20, word_embed_proj_dim=24),
        PLAIN_SHAPE,
    ),
    "llama": (
        huggingface("LlamaConfig", "LlamaForCausalLM", WIDE, attention_bias=True, mlp_bias=True),
        WIDE_SHAPE,
    ),
    "llama eager": (
        huggingface("LlamaConfig", "LlamaForCausalLM", WIDE | {"attn_implementation": "eager"}),
        WIDE_SHAPE,
    ),
    "mistral": (huggingface("MistralConfig", "MistralForCausalLM", WIDE, sliding_window=4), WIDE_SHAPE),
    "qwen2": (huggingface("Qwen2Config", "Qwen2ForCausalLM", GROUPED), GROUPED_SHAPE),
    "qwen3": (huggingface("Qwen3Config", "Qwen3ForCausalLM", WIDE), WIDE_SHAPE),
    "gemma2": (huggingface("Gemma2Config", "Gemma2ForCausalLM", GEMMA | SOFTCAPPED), WIDE_SHAPE),
    "gemma3": (huggingface("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA), WIDE_SHAPE),
    "olmo2": (huggingface("Olmo2Config", "Olmo2ForCausalLM", GROUPED), GROUPED_SHAPE),
    "phi": (huggingface("PhiConfig", "PhiForCausalLM", GROUPED, partial_rotary_factor=0.67), GROUPED_SHAPE),
    "phi3": (huggingface("Phi3Config", "Phi3ForCausalLM", GROUPED), GROUPED_SHAPE),
    "othello-gpt": (othello_gpt, PLAIN_SHAPE),
    "bert": (huggingface("BertConfig", "BertForMaskedLM", SIZES), PLAIN_SHAPE),
    "vit": (
        huggingface(
            "ViTConfig", "ViTForImageClassification", SIZES, image_size=8, patch_size=2, num_labels=29
        ),
        replace(PLAIN_SHAPE, n_ctx=17),
    ),
}
