"""Programs compiled to transformer weights: every head and neuron has a purpose, and the program states it.

Tracr (Lindner et al. 2023, arXiv 2301.05062; the extra `tracr`) compiles RASP (Weiss et al. 2021, arXiv
2106.06981) to a transformer without norms, with ReLU neurons, attention in both directions, and one direction
of the residual stream for every value of every variable. Its matrices move into a plain `nn.Module` here;
nothing else of it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vesalius.architectures import Architecture
from vesalius.architectures.readers import attention, conv1d, measured, mlp, ports, unembedding
from vesalius.errors import VesaliusError
from vesalius.model import Model

if TYPE_CHECKING:
    from tracr.compiler.assemble import AssembledTransformerModel
    from tracr.rasp.rasp import SOp


def tracr(program: SOp, vocabulary: Iterable[str | int], *, n_ctx: int, name: str = "tracr") -> Model:
    """Compile a RASP program on texts of at most `n_ctx` tokens of `vocabulary`; they begin with `model.bos`.

    `model.module` has `labels` for the directions of the residual stream and `ids` for the tokens. Raises
    VesaliusError if Tracr is not installed.
    """
    try:
        from tracr.compiler.compiling import compile_rasp_to_model
    except ImportError as missing:
        raise VesaliusError("Tracr is not installed; pip install 'vesalius[tracr]' brings it.") from missing
    return converted(compile_rasp_to_model(program, set(vocabulary), n_ctx, compiler_bos="BOS"), name=name)


def converted(compiled: AssembledTransformerModel, *, name: str) -> Model:
    """What Tracr compiled, as a network of torch with the same weights and, to rounding, the same outputs."""
    import haiku
    import numpy

    config, d_model = compiled.model_config, len(compiled.residual_labels)
    read_out = haiku.without_apply_rng(
        haiku.transform(lambda x: compiled.get_compiled_model().unembed(x, use_unembed_argmax=False))
    )
    tables = {
        key: {kind: torch.tensor(numpy.array(w)) for kind, w in group.items()}
        for key, group in compiled.params.items()
    }
    module = CompiledTransformer(
        {
            key.removeprefix("transformer/"): group.get("w", group.get("embeddings"))
            for key, group in tables.items()
        },
        torch.tensor(numpy.array(read_out.apply({}, numpy.eye(d_model, dtype="float32")))).reshape(
            d_model, -1
        ),
        n_layers=config.num_layers,
        n_heads=config.num_heads,
        causal=config.causal,
    )
    module.labels, module.ids = list(compiled.residual_labels), dict(compiled.input_encoder.encoding_map)
    return Model(module, bos=module.ids["BOS"], architecture=COMPILED, name=name)


class CompiledTransformer(nn.Module):
    """Embeddings, then attention and ReLU neurons in turn, no norm anywhere; `weights` by Tracr's names."""

    labels: list[str]
    ids: dict[str | int, int]

    def __init__(
        self,
        weights: Mapping[str, Float[Tensor, "_ _"]],
        unembed: Float[Tensor, "d_model d_out"],
        *,
        n_layers: int,
        n_heads: int,
        causal: bool,
    ):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(weights["token_embed"])
        self.positions = nn.Parameter(weights["pos_embed"], requires_grad=False)
        self.blocks = nn.ModuleList(
            CompiledBlock(weights, f"layer_{layer}", n_heads=n_heads, causal=causal)
            for layer in range(n_layers)
        )
        self.unembed = linear(unembed)

    def forward(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_out"]:
        x = self.embed(input_ids) + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


class CompiledBlock(nn.Module):
    """One layer of attention and one of neurons, each added to the residual stream."""

    def __init__(self, weights: Mapping[str, Tensor], layer: str, *, n_heads: int, causal: bool):
        super().__init__()
        self.attn = CompiledAttention(weights, f"{layer}/attn", n_heads=n_heads, causal=causal)
        self.up, self.down = (linear(weights[f"{layer}/mlp/linear_{n}"]) for n in (1, 2))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        x = x + self.attn(x)
        return x + self.down(self.up(x).relu())


class CompiledAttention(nn.Module):
    """Attention to every position, or to earlier ones alone if `causal`."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, *, n_heads: int, causal: bool):
        super().__init__()
        self.n_heads, self.causal = n_heads, causal
        for part in ("query", "key", "value", "linear"):
            self.add_module(part, linear(weights[f"{name}/{part}"]))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        q, k, v = (
            rearrange(project(x), "batch pos (head d_head) -> batch head pos d_head", head=self.n_heads)
            for project in (self.query, self.key, self.value)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.linear(rearrange(z, "batch head pos d_head -> batch pos (head d_head)"))


def linear(weight: Float[Tensor, "d_in d_out"]) -> nn.Linear:
    """x · weight."""
    layer = nn.Linear(*weight.shape, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.T.float().contiguous(), requires_grad=False)
    return layer


def heads(module: CompiledTransformer) -> int:
    return module.blocks[0].attn.n_heads


WEIGHTS = {
    "W_E": conv1d("embed"),
    "W_pos": lambda module, layer: module.positions,
    **attention(
        *(f"blocks.{{}}.attn.{part}" for part in ("query", "key", "value", "linear")),
        heads=heads,
        kv_heads=heads,
    ),
    **mlp("blocks.{}.up", "blocks.{}.down"),
    **unembedding("unembed"),
}
COMPILED = Architecture(
    name="tracr",
    modules=("CompiledTransformer",),
    sites={
        "embed": "blocks.0:in",
        "resid_pre": "blocks.{}:in",
        "resid_mid": "blocks.{}.up:in",
        "resid_post": "blocks.{}:out",
        "attn_out": "blocks.{}.attn:out",
        "mlp_out": "blocks.{}.down:out",
        "neurons": "blocks.{}.down:in",
        "logits": "unembed:out",
        **ports("blocks.{}.attn"),
    },
    weights=WEIGHTS,
    shape=measured(
        WEIGHTS, layers=lambda module: len(module.blocks), context=lambda module: len(module.positions)
    ),
    norm="none",
    positions="residual",
    causal=False,
)
