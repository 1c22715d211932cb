"""One tiny random-weight instance of every family, all parameters drawn anew, and the sizes it should report."""

from collections.abc import Callable

import torch
from torch import nn

from vesalius.architectures import Shape
from vesalius.architectures.toy import ToyTransformer

SIZES = dict(
    vocab_size=29, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20,
    max_position_embeddings=16, attn_implementation="sdpa", bos_token_id=0, eos_token_id=1, pad_token_id=2,
)  # fmt: skip
GROUPED = SIZES | dict(num_key_value_heads=2, head_dim=8)
SHAPE = Shape(n_layers=2, d_model=24, n_heads=4, n_kv_heads=4, d_head=6, d_mlp=20, d_vocab=29, n_ctx=16)
GROUPED_SHAPE = Shape(
    n_layers=2, d_model=24, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=20, d_vocab=29, n_ctx=16
)


def huggingface(config: str, head: str, options: dict) -> Callable[[], nn.Module]:
    """A builder of a transformers class from its configuration class."""

    def build() -> nn.Module:
        import transformers

        return randomised(getattr(transformers, head)(getattr(transformers, config)(**options)))

    return build


def toy(**options) -> Callable[[], nn.Module]:
    return lambda: randomised(
        ToyTransformer(n_layers=2, d_model=24, n_heads=4, d_vocab=29, n_ctx=16, **options)
    )


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


GPT2 = SIZES | dict(n_inner=20, n_positions=16)
GEMMA = GROUPED | dict(
    query_pre_attn_scalar=5, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
)
VIT = SIZES | dict(image_size=8, patch_size=2, num_channels=3, num_labels=29)
TINY: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    **{
        f"toy-{positions}{'-norm' if norm else ''}{'-mlp' if d_mlp else ''}": (
            toy(positions=positions, norm=norm, d_mlp=d_mlp),
            Shape(2, 24, 4, 4, 6, d_mlp, 29, 16),
        )
        for positions in ("shortformer", "residual", "rotary")
        for norm in (False, True)
        for d_mlp in (0, 20)
    },
    "gpt2": (huggingface("GPT2Config", "GPT2LMHeadModel", GPT2), SHAPE),
    "gpt2 eager": (huggingface("GPT2Config", "GPT2LMHeadModel", GPT2 | dict(attn_implementation="eager")), SHAPE),
    "gpt2 by depth": (huggingface("GPT2Config", "GPT2LMHeadModel", GPT2 | dict(scale_attn_by_inverse_layer_idx=True)), SHAPE),
    "neox": (huggingface("GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES | dict(rotary_pct=0.34)), SHAPE),
    "neox-sequential": (huggingface("GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES | dict(use_parallel_residual=False, rotary_pct=1.0)), SHAPE),
    "opt": (huggingface("OPTConfig", "OPTForCausalLM", SIZES | dict(ffn_dim=20, word_embed_proj_dim=24)), SHAPE),
    "llama": (huggingface("LlamaConfig", "LlamaForCausalLM", GROUPED | dict(attention_bias=True, mlp_bias=True)), GROUPED_SHAPE),
    "llama eager": (huggingface("LlamaConfig", "LlamaForCausalLM", GROUPED | dict(attn_implementation="eager")), GROUPED_SHAPE),
    "mistral": (huggingface("MistralConfig", "MistralForCausalLM", GROUPED | dict(sliding_window=4)), GROUPED_SHAPE),
    "qwen2": (huggingface("Qwen2Config", "Qwen2ForCausalLM", SIZES | dict(num_key_value_heads=2)), Shape(2, 24, 4, 2, 6, 20, 29, 16)),
    "qwen3": (huggingface("Qwen3Config", "Qwen3ForCausalLM", GROUPED), GROUPED_SHAPE),
    "gemma2": (huggingface("Gemma2Config", "Gemma2ForCausalLM", GEMMA | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0, attn_implementation="eager")), GROUPED_SHAPE),
    "gemma3": (huggingface("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA), GROUPED_SHAPE),
    "olmo2": (huggingface("Olmo2Config", "Olmo2ForCausalLM", SIZES | dict(num_key_value_heads=2)), Shape(2, 24, 4, 2, 6, 20, 29, 16)),
    "phi": (huggingface("PhiConfig", "PhiForCausalLM", SIZES | dict(num_key_value_heads=2, partial_rotary_factor=0.67)), Shape(2, 24, 4, 2, 6, 20, 29, 16)),
    "phi3": (huggingface("Phi3Config", "Phi3ForCausalLM", SIZES | dict(num_key_value_heads=2)), Shape(2, 24, 4, 2, 6, 20, 29, 16)),
    "bert": (huggingface("BertConfig", "BertForMaskedLM", SIZES), SHAPE),
    "vit": (huggingface("ViTConfig", "ViTForImageClassification", VIT), Shape(2, 24, 4, 4, 6, 20, 29, 17)),
}  # fmt: skip
