"""The circuits of attention heads, from parameters alone: where a head looks (QK) and what it then does (OV).

Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits,
transformer-circuits.pub/2021/framework): a head reads the residual stream through W_QK = W_Q W_Kᵀ/√d_head to
choose a source, and moves W_OV = W_V W_O of it. Between token embedding and unembedding these become tables
over the vocabulary: W_E W_QK W_Eᵀ [destination, source] and W_E W_OV W_U [source, output]. All are returned
`Factored`, of rank d_head, never multiplied out.

With `norm="fold"` what a normalisation does linearly moves into the weights beside it: its gain into the
weights that read it (a norm after attention: into what W_O writes), the centring of LayerNorm into reads and
writes, the gains of query and key norms into their heads, and the mean over the vocabulary, which softmax
ignores, out of W_U. Its division by a scale, which differs from token to token, is left out, and so are
biases; `norm_handling` says so in words. With `norm="ignore"` weights are taken as they are. Heads that share
keys and values (GQA: query head h uses h // (n_heads / n_kv_heads)) each get their own copy.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights.factored import Factored

Norm = Literal["fold", "ignore"]


def qk(model: Model, layer: int, head: int, *, norm: Norm = "fold") -> Factored:
    """Where head `head` looks: score of query residual (row) on key residual (column), 1/√d_head included."""
    return all_qk(model, layer, norm=norm)[_checked(model, layer, head)]


def ov(model: Model, layer: int, head: int, *, norm: Norm = "fold") -> Factored:
    """What the head moves: from the residual stream at the source (row) to what it writes (column)."""
    return all_ov(model, layer, norm=norm)[_checked(model, layer, head)]


def full_qk(model: Model, layer: int, head: int, *, norm: Norm = "fold") -> Factored:
    """QK circuit between tokens: score of destination (row) on source token (column), before softmax."""
    W_E = widened(model.weight("W_E"))
    return W_E @ qk(model, layer, head, norm=norm) @ W_E.T


def full_ov(
    model: Model, layer: int, heads: int | Sequence[int | tuple[int, int]], *, norm: Norm = "fold"
) -> Factored:
    """OV circuit between tokens: what attending to a source token (row) adds to the logits (column).

    Several heads are one circuit, their sum (one head of a known model copies 31% of tokens, two together
    96%); a pair (layer, head) names a head of another layer.
    """
    chosen = [heads] if isinstance(heads, int) else list(heads)
    pairs = [(layer, head) if isinstance(head, int) else tuple(head) for head in chosen]
    if not pairs:
        raise VesaliusError("full_ov was given no heads; it sums one or more.")
    W_E = widened(model.weight("W_E"))
    return Factored.sum([W_E @ unembed(model, ov(model, *pair, norm=norm), norm=norm) for pair in pairs])


def direct_path(model: Model, *, norm: Norm = "fold") -> Factored:
    """From token (row) straight to next-token logits (column), past every head: W_E W_U, of rank d_model."""
    W_E, W_U = widened(model.weight("W_E")), widened(model.weight("W_U"))
    if norm == "fold":
        W_E, W_U = final_gain(model, W_E), W_U - W_U.mean(-1, keepdim=True)
    return Factored(W_E, W_U)


def all_qk(model: Model, layer: int, *, norm: Norm = "fold") -> Factored:
    """QK circuits of a layer's heads, [head, d_model, d_model]."""
    W_Q, W_K = _read(model, "W_Q", layer, norm), _read(model, "W_K", layer, norm)
    return Factored(W_Q / model.shape.d_head**0.5, W_K.mT)


def all_ov(model: Model, layer: int, *, norm: Norm = "fold") -> Factored:
    """OV circuits of a layer's heads, [head, d_model, d_model]."""
    W_O = widened(model.weight("W_O", layer))
    if norm == "fold":
        if model.has("norm1_post"):
            W_O = _centred(model, W_O, -1) * widened(model.weight("norm1_post", layer))
        W_O = _centred(model, W_O, -1)
    return Factored(_read(model, "W_V", layer, norm), W_O)


def unembed(model: Model, writes: Factored, *, norm: Norm = "fold") -> Factored:
    """What a map into the residual stream does to the logits: times W_U, final norm folded if asked."""
    if norm == "ignore":
        return writes @ widened(model.weight("W_U"))
    logits = final_gain(model, writes.right) @ widened(model.weight("W_U"))
    return Factored(writes.left, logits - logits.mean(-1, keepdim=True))


def final_gain(model: Model, writes: Float[Tensor, "*lines d_model"]) -> Float[Tensor, "*lines d_model"]:
    """Vectors of the residual stream as W_U reads them: centred if LayerNorm, times the final gain."""
    writes = _centred(model, writes, -1)
    return writes * widened(model.weight("norm_final")) if model.has("norm_final") else writes


def norm_handling(model: Model, norm: Norm) -> str:
    """What was done with the model's norms and positions, in words, to be printed with every result."""
    kind = {"layer": "LayerNorm", "rms": "RMSNorm", "none": "no norm"}[model.architecture.norm]
    place = {
        "shortformer": "content only: the positions added to queries and keys are left out",
        "residual": "content only: the positions in the residual stream are left out",
        "rotary": "content only, relative offset 0: queries and keys not rotated",
        "none": "no positions",
    }[model.architecture.positions]
    if kind == "no norm":
        return f"no norm; {place}"
    if norm == "ignore":
        return f"{kind} ignored: weights as they are; {place}"
    centring = ", reads and writes centred" if kind == "LayerNorm" else ""
    return f"{kind} gains folded into the weights{centring}, W_U centred, scale and biases ignored; {place}"


def widened(weight: Tensor) -> Tensor:
    """Half precision is widened to float32; float32 and float64 stay."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def _checked(model: Model, layer: int, head: int) -> int:
    """The head, if the model has it in that layer."""
    if not 0 <= layer < model.shape.n_layers:
        raise VesaliusError(
            f"Layer {layer} was asked for; this model has layers 0 to {model.shape.n_layers - 1}."
        )
    if not 0 <= head < model.shape.n_heads:
        raise VesaliusError(
            f"Head {head} was asked for; this model has heads 0 to {model.shape.n_heads - 1}."
        )
    return head


def _read(model: Model, role: str, layer: int, norm: Norm) -> Float[Tensor, "head d_model d_head"]:
    """W_Q, W_K or W_V of every query head, as they read the residual stream."""
    weight = widened(model.weight(role, layer))
    if norm not in ("fold", "ignore"):
        raise VesaliusError(f"norm is {norm!r}; it can be 'fold' or 'ignore'.")
    if norm == "fold":
        if model.has("norm1") and model.architecture.residual != "post_norm":
            weight = widened(model.weight("norm1", layer))[:, None] * weight
        weight = _centred(model, weight, -2)
        own = {"W_Q": "norm_q", "W_K": "norm_k"}.get(role)
        if own and model.has(own):  # one gain for all heads, or one per head
            weight = weight * widened(model.weight(own, layer)).reshape(-1, 1, weight.shape[-1])
    return weight.repeat_interleave(model.shape.n_heads // len(weight), dim=0)


def _centred(model: Model, weight: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Without the mean over d_model, which LayerNorm removes; RMSNorm keeps it."""
    return weight - weight.mean(dim, keepdim=True) if model.architecture.norm == "layer" else weight
