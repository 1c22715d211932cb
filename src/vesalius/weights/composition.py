"""How much a later head reads what an earlier head writes, for all pairs of heads, from their weights.

Elhage et al. 2021 (transformer-circuits.pub/2021/framework): ‖W_A W_B‖ / (‖W_A‖ ‖W_B‖) in Frobenius norms,
where W_A = W_OV of the earlier head, and W_B is W_QK (Q-composition: what it moved becomes part of a query),
W_QKᵀ (K: part of a key) or W_OV (V: moved again) of the later one. The ratio penalises high rank and is not 0
for heads that have nothing to do with each other: random heads score 1/√d_model, so read it against
`random_composition`.

Everything is computed from factors. With a QR of the outer factors, ‖V O · X Y‖ = ‖(R_V O)(X R_Yᵀ)‖, so that
one matrix product per layer, of what all earlier heads write with what its heads read, holds all d_head x
d_head blocks whose norms are asked for.

The projection kernel compares subspaces instead (arXiv 2601.10266): ‖UᵀV‖²_F / min(rank) for orthonormal
bases U of what the earlier head writes and V of what the later head reads. 0 is orthogonal, 1 is one subspace
within the other; random subspaces of rank d_head score d_head / d_model.
"""

from typing import Literal, NamedTuple, get_args

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights.circuits import Norm, all_ov, all_qk
from vesalius.weights.factored import Factored

Mode = Literal["Q", "K", "V"]
Measure = Literal["frobenius", "projection_kernel"]


class Baseline(NamedTuple):
    """What pairs of random heads score."""

    mean: float
    sd: float


def composition_matrix(
    model: Model, mode: Mode = "K", *, measure: Measure = "frobenius", norm: Norm = "fold"
) -> Float[Tensor, "early_layer early_head late_layer late_head"]:
    """Composition of every pair of heads; NaN where the first is not in an earlier layer than the second.

    A head that writes or reads nothing scores 0. Raises VesaliusError for an unknown mode or measure.

    >>> from vesalius.architectures.toy import ToyTransformer
    >>> model = Model(ToyTransformer(n_layers=2, d_model=8, n_heads=2, d_vocab=5, n_ctx=4))
    >>> composition_matrix(model, "K")[0, :, 1].shape
    torch.Size([2, 2])
    """
    for name, given, known in (("mode", mode, Mode), ("measure", measure, Measure)):
        if given not in get_args(known):
            raise VesaliusError(f"{name} is {given!r}; it can be {' or '.join(map(repr, get_args(known)))}.")
    layers, heads = model.shape.n_layers, model.shape.n_heads
    scores = torch.full((layers, heads, layers, heads), torch.nan, device=model.device)
    early = [_written(all_ov(model, layer, norm=norm), measure) for layer in range(layers - 1)]
    for late in range(1, layers):
        read = _written(_reader(model, late, mode, norm).T, measure)
        scores[:late, :, late] = torch.stack([_overlap(written, read, measure) for written in early[:late]])
    return scores


def random_composition(
    model: Model, *, measure: Measure = "frobenius", pairs: int = 256, seed: int = 0
) -> Baseline:
    """Mean and sd of the score over pairs of heads of this model's sizes, their weights drawn from N(0, 1).

    The Frobenius mean is 1/√d_model, the projection kernel's d_head / d_model, whatever the weights' scale.
    """
    heads, d_model, d_head = int(pairs**0.5), model.shape.d_model, model.shape.d_head
    draw = torch.Generator().manual_seed(seed)
    early, late = (
        Factored(
            torch.randn(heads, d_model, d_head, generator=draw),
            torch.randn(heads, d_head, d_model, generator=draw),
        )
        for _ in range(2)
    )
    scores = _overlap(_written(early, measure), _written(late.T, measure), measure)
    return Baseline(scores.mean().item(), scores.std().item())


def _reader(model: Model, layer: int, mode: Mode, norm: Norm) -> Factored:
    """What a layer's heads do with the residual stream, its rows being the side that is composed with."""
    if mode == "V":
        return all_ov(model, layer, norm=norm)
    circuit = all_qk(model, layer, norm=norm)
    return circuit if mode == "Q" else circuit.T


def _written(circuit: Factored, measure: Measure) -> Float[Tensor, "head r d_model"]:
    """What each head writes, in r rows: its matrix turned and scaled to norm 1, or a basis of its row space.

    The basis is orthonormal; where the rank is less than r, the rows left over are 0.
    """
    if measure == "frobenius":
        rows = torch.linalg.qr(circuit.left, mode="r").R @ circuit.right
        return rows / torch.linalg.matrix_norm(rows, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    _, S, Vh = circuit.svd()
    floor = S.amax(-1, keepdim=True) * max(circuit.shape[-2:]) * torch.finfo(S.dtype).eps
    return Vh * (floor < S)[..., None]


def _overlap(
    written: Float[Tensor, "early r d_model"], read: Float[Tensor, "late s d_model"], measure: Measure
) -> Float[Tensor, "early late"]:
    """The score of every pair, from one matrix product: a block of it for each pair."""
    blocks = rearrange(written, "early r d_model -> (early r) d_model") @ rearrange(
        read, "late s d_model -> d_model (late s)"
    )
    squares = reduce(
        blocks.square_(), "(early r) (late s) -> early late", "sum", early=len(written), late=len(read)
    )
    if measure == "frobenius":
        return squares.sqrt()
    rank_written, rank_read = (reduce(basis.square(), "head r d -> head", "sum") for basis in (written, read))
    return squares / torch.minimum(rank_written[:, None], rank_read).clamp(min=1)
