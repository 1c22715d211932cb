"""What the card of a small network says about it, each in a few plain lines, without the analyses it lets us
test.

The numbers are those of Elhage et al. 2021 and Olsson et al. 2022 (arXiv 2209.11895). Every one of them is
also taken on a twin: the same shape with its first, random weights.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.architectures.toy import Attention, ToyTransformer


@torch.no_grad()
def mean_loss(model: ToyTransformer, rows: Int[Tensor, "row pos"], *, batch: int = 16) -> float:
    """Mean cross-entropy of every token of every row after `<|bos|>`, in nats."""
    losses = [
        F.cross_entropy(model(after_bos(part)).flatten(0, 1), part.flatten().long())
        for part in rows.split(batch)
    ]
    return torch.stack(losses).mean().item()


def after_bos(rows: Int[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """What the model reads to predict `rows`: token 0, then all but the last."""
    return F.pad(rows.long()[:, :-1], (1, 0))


def repeated(d_vocab: int, *, length: int, rows: int, seed: int = 0) -> Int[Tensor, "row pos"]:
    """Random tokens twice: [bos, r, r], r uniform over the vocabulary without `<|bos|>`."""
    generator = torch.Generator().manual_seed(seed)
    r = torch.randint(1, d_vocab, (rows, length), generator=generator)
    return F.pad(torch.cat([r, r], 1), (1, 0))


@torch.no_grad()
def patterns(
    model: ToyTransformer, ids: Int[Tensor, "batch pos"]
) -> list[Float[Tensor, "batch head query key"]]:
    """The attention pattern of every layer."""
    place, _ = model.places(ids, None)
    x, position = model.embed(ids), model.shown_to_attention(place)
    if model.shape["positions"] == "residual":
        x = x + model.positions[place]
    found = []
    for block in model.blocks:
        q, k, _ = block.attn.qkv(block.norm1(x), position)
        score = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
        found.append(score.masked_fill(future, -torch.inf).softmax(-1))
        x = block(x, position)
    return found


def prefix_matching(model: ToyTransformer, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer head"]:
    """On [bos, r, r]: mean attention from repeated tokens to those after their first occurrence, in 0..1."""
    return offset_attention(model, ids, ids.shape[1] // 2 - 1, skip=2)


def previous_token(model: ToyTransformer, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer head"]:
    """Mean attention from each token to the one before it, in 0..1."""
    return offset_attention(model, ids, 1)


def offset_attention(
    model: ToyTransformer, ids: Int[Tensor, "batch pos"], offset: int, *, skip: int = 0
) -> Float[Tensor, "layer head"]:
    """Mean attention to the token `offset` back, without the first `skip` queries that have one."""
    diagonals = [p.diagonal(-offset, dim1=-2, dim2=-1)[..., skip:].mean((0, 2)) for p in patterns(model, ids)]
    return torch.stack(diagonals) if diagonals else torch.zeros(0, 0)


@torch.no_grad()
def repeated_loss(model: ToyTransformer, ids: Int[Tensor, "batch pos"]) -> tuple[float, float]:
    """On [bos, r, r]: mean loss on the first r and on the second, in nats."""
    loss = F.cross_entropy(model(ids)[:, :-1].mT, ids[:, 1:], reduction="none").mean(0)
    first, second = loss.split(ids.shape[1] // 2)
    return first.mean().item(), second.mean().item()


@torch.no_grad()
def copying(model: ToyTransformer) -> Float[Tensor, "layer head"]:
    """Σ Re λ / Σ |λ| over the eigenvalues of W_E W_V W_O W_U: 1 copies, -1 suppresses, 0 does neither.

    That matrix is d_vocab × d_vocab; its nonzero eigenvalues are those of W_O (W_U W_E) W_V, d_head × d_head.
    """
    through_vocabulary = model.unembed.weight.double().T @ model.embed.weight.double()
    scores = []
    for block in model.blocks:
        v, o = (head_slices(block.attn, name) for name in ("v_proj", "o_proj"))
        eigenvalues = torch.linalg.eigvals(o @ through_vocabulary @ v)
        scores.append(eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1))
    return torch.stack(scores).float() if scores else torch.zeros(0, 0)


@torch.no_grad()
def k_composition(model: ToyTransformer) -> Float[Tensor, "early late"]:
    """‖W_OV W_QKᵀ‖ / (‖W_OV‖ ‖W_QK‖) of layer-0 heads with layer-1 heads; 1/√d_model if unrelated."""
    early, late = model.blocks[0].attn, model.blocks[1].attn
    ov = head_slices(early, "v_proj") @ head_slices(early, "o_proj")
    kq = head_slices(late, "k_proj") @ head_slices(late, "q_proj").mT
    both = torch.einsum("eij,ljk->elik", ov, kq)
    return both.flatten(2).norm(dim=2) / (ov.flatten(1).norm(dim=1)[:, None] * kq.flatten(1).norm(dim=1))


def head_slices(attention: Attention, name: str) -> Float[Tensor, "head rows columns"]:
    """Each head's weights for row vectors, in float64: d_model × d_head; d_head × d_model for the output."""
    weight = getattr(attention, name).weight.double().T
    words = "(head d_head) d_model -> head d_head d_model"
    if name != "o_proj":
        words = "d_model (head d_head) -> head d_model d_head"
    return rearrange(weight, words, head=attention.n_heads)


@torch.no_grad()
def without(model: ToyTransformer, heads: list[tuple[int, int]]) -> ToyTransformer:
    """A copy in which the given (layer, head) write nothing."""
    silenced = copy.deepcopy(model)
    for layer, head in heads:
        attention = silenced.blocks[layer].attn
        rearrange(attention.o_proj.weight, "out (head d_head) -> head out d_head", head=attention.n_heads)[
            head
        ] = 0
    return silenced
