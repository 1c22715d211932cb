"""A small decoder-only transformer, as plain as torch allows: the body that our own zoo is trained in.

The family of Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits): attention without
biases, no normalisation unless asked for, and by default positions that are added to what the queries and
keys read and to nothing else, so that the residual stream never carries them (shortformer: Press et al.
2020, arXiv 2012.15832). The two usual alternatives are here to compare with: positions added to the
residual stream (Radford et al. 2019) and rotated queries and keys (Su et al. 2021, arXiv 2104.09864).

One forward pass, written out:

1. x = embed(input_ids), plus positions if they are `residual`;
2. in each block, x = x + attn(norm1(x)), then x = x + mlp(norm2(x)) if there is an MLP;
3. logits = unembed(norm(x)).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class ToyTransformer(nn.Module):
    """Decoder-only transformer; `shape` holds the arguments that rebuild it, `seed` draws its weights."""

    def __init__(
        self,
        *,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_vocab: int,
        n_ctx: int,
        d_mlp: int = 0,
        norm: bool = False,
        positions: str = "shortformer",
        seed: int = 0,
    ):
        super().__init__()
        if positions not in ("shortformer", "residual", "rotary"):
            raise ValueError(f"positions is {positions!r}; it can be 'shortformer', 'residual' or 'rotary'.")
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}.")
        self.shape = {
            "n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "d_vocab": d_vocab, "n_ctx": n_ctx,
            "d_mlp": d_mlp, "norm": norm, "positions": positions,
        }  # fmt: skip
        with torch.random.fork_rng(
            devices=[]
        ):  # torch draws default weights; leave the caller's generator alone
            self.embed = nn.Embedding(d_vocab, d_model)
            self.positions = None if positions == "rotary" else nn.Parameter(sinusoids(n_ctx, d_model))
            self.blocks = nn.ModuleList(Block(d_model, n_heads, d_mlp, norm) for _ in range(n_layers))
            self.norm = nn.LayerNorm(d_model) if norm else nn.Identity()
            self.unembed = nn.Linear(d_model, d_vocab, bias=False)
        init(self, seed)

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "row place d_vocab"]:
        """Next-token logits; `attention_mask` is 1 at tokens and 0 at padding, on either side of the text.

        A row for each of the batch and a place for each position, unless an edit changed how many there are.
        """
        x = self.embed(input_ids)
        place, mask = self.places(input_ids, attention_mask)
        if self.shape["positions"] == "residual":
            x = x + self.positions[place]
        for block in self.blocks:
            x = block(x, self.shown_to_attention(place), mask)
        return self.unembed(self.norm(x))

    def places(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None
    ) -> tuple[Int[Tensor, "#batch pos"], Bool[Tensor, "batch 1 query key"] | None]:
        """Every token's position, padding not counted, and who may look at whom (None: at all before)."""
        length = input_ids.shape[1]
        if length > self.shape["n_ctx"]:
            raise ValueError(
                f"The text has {length} tokens, and this model reads at most {self.shape['n_ctx']}."
            )
        if attention_mask is None:
            return torch.arange(length, device=input_ids.device)[None], None
        real = attention_mask.bool()
        itself = torch.eye(
            length, dtype=torch.bool, device=real.device
        )  # so that padding has something to attend
        mask = (real[:, None, None, :] | itself).tril()
        return (real.long().cumsum(1) - 1).clamp(min=0), mask

    def shown_to_attention(self, place: Int[Tensor, "#batch pos"]) -> Tensor | None:
        """What attention is told of positions: vectors for Q and K, angles to turn them by, or nothing."""
        kind = self.shape["positions"]
        if kind == "shortformer":
            return self.positions[place]
        return angles(place, self.shape["d_model"] // self.shape["n_heads"]) if kind == "rotary" else None


class Block(nn.Module):
    """Attention, then an MLP if `d_mlp` is not 0; each reads the residual stream and adds to it."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int, norm: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model) if norm else nn.Identity()
        self.attn = Attention(d_model, n_heads)
        if d_mlp:
            self.norm2 = nn.LayerNorm(d_model) if norm else nn.Identity()
            self.mlp = MLP(d_model, d_mlp)
        self.has_mlp = d_mlp > 0

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        position: Tensor | None = None,
        mask: Bool[Tensor, "batch 1 query key"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        x = x + self.attn(self.norm1(x), position, mask)
        return x + self.mlp(self.norm2(x)) if self.has_mlp else x


class Attention(nn.Module):
    """Causal multi-head attention without biases; the values never see a position."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        position: Tensor | None = None,
        mask: Bool[Tensor, "batch 1 query key"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        q, k, v = self.qkv(x, position)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(rearrange(z, "batch head pos d_head -> batch pos (head d_head)"))

    def qkv(
        self, x: Float[Tensor, "batch pos d_model"], position: Tensor | None
    ) -> tuple[Float[Tensor, "batch head pos d_head"], ...]:
        """Queries, keys and values; `position` is vectors [.. pos d_model], angles (complex) or None."""
        rotary = position is not None and position.is_complex()
        at = x if position is None or rotary else x + position
        q, k, v = (
            rearrange(heads, "batch pos (head d_head) -> batch head pos d_head", head=self.n_heads)
            for heads in (self.q_proj(at), self.k_proj(at), self.v_proj(x))
        )
        if position is None or not rotary:
            return q, k, v
        return turn(q, position), turn(k, position), v


class MLP(nn.Module):
    """One hidden layer of GELU neurons, with biases."""

    def __init__(self, d_model: int, d_mlp: int):
        super().__init__()
        self.up = nn.Linear(d_model, d_mlp)
        self.act = nn.GELU()
        self.down = nn.Linear(d_mlp, d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.down(self.act(self.up(x)))


def init(model: ToyTransformer, seed: int) -> ToyTransformer:
    """Draw every weight anew: normal with sd 1/√fan_in, 1/√writers of that for what writes to the residual.

    Biases are 0, norms 1, positions sinusoids. Two models of one shape and one seed are equal to the bit.
    """
    generator = torch.Generator().manual_seed(seed)
    writers = sum(1 + block.has_mlp for block in model.blocks)  # pyright: ignore
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "positions":
                weight.copy_(sinusoids(*weight.shape))
            elif weight.ndim == 1:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                sd = weight.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down.weight")):
                    sd /= math.sqrt(writers)
                weight.copy_(torch.randn(weight.shape, generator=generator) * sd)
    return model


def sinusoids(n_ctx: int, d_model: int) -> Float[Tensor, "pos d_model"]:
    """Sines in the first half of the dimensions, cosines in the rest (Vaswani et al. 2017, 1706.03762)."""
    phase = torch.arange(n_ctx)[:, None] * 10_000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    return torch.cat([phase.sin(), phase.cos()], 1)[:, :d_model]


def angles(place: Int[Tensor, "batch pos"], d_head: int) -> Tensor:
    """Unit complex numbers [batch 1 pos d_head/2] by which rotary positions turn pairs of dimensions."""
    rate = 10_000.0 ** (-torch.arange(0, d_head, 2, device=place.device) / d_head)
    phase = place[:, None, :, None] * rate
    return torch.polar(torch.ones_like(phase), phase)


def turn(x: Float[Tensor, "batch head pos d_head"], by: Tensor) -> Float[Tensor, "batch head pos d_head"]:
    """Rotate dimension i with dimension i + d_head/2."""
    real, imaginary = x.chunk(2, dim=-1)
    turned = torch.complex(real, imaginary) * by
    return torch.cat([turned.real, turned.imag], -1)
