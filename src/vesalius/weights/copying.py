"""Eigenvalues that say whether a head copies tokens (OV) or matches them (QK), for all heads at once.

Elhage et al. 2021 (transformer-circuits.pub/2021/framework): a positive eigenvalue of W_E W_OV W_U is a set
of tokens that raise their own logits; a positive one of W_E W_QK (W_E W_OV')ᵀ is a set of tokens that attend
to where head h' has moved themselves. Both matrices are d_vocab x d_vocab of rank d_head, and the non-zero
eigenvalues of A B are those of B A, so d_head x d_head matrices do, once G = W_U W_E (or W_Eᵀ W_E), d_model x
d_model, is known.

The score Re(Σλ)/Σ|λ| is 1 if all eigenvalues are positive, -1 if all are negative, and about 0 for random
weights (sd .022 at d_model 768 and d_head 64). For a matrix that is not normal, positive eigenvalues do not
prove copying: print a direct statistic beside them.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights.circuits import Norm, all_ov, all_qk, final_gain, ov, qk, widened
from vesalius.weights.factored import Factored


def copying_eigenvalues(model: Model, *, norm: Norm = "fold") -> Complex[Tensor, "layer head d_head"]:
    """Eigenvalues of every head's full OV circuit W_E W_OV W_U, those that can differ from 0.

    >>> from vesalius.architectures.toy import ToyTransformer
    >>> model = Model(ToyTransformer(n_layers=2, d_model=8, n_heads=2, d_vocab=5, n_ctx=4))
    >>> copying_eigenvalues(model).shape
    torch.Size([2, 2, 4])
    """
    W_E, W_U = widened(model.weight("W_E")), widened(model.weight("W_U"))
    G = _unembed_embed(W_U, W_E)
    if norm == "fold":  # W_U without its mean over the vocabulary
        G = G - torch.outer(W_U.mean(1), W_E.sum(0))
    circuits = (all_ov(model, layer, norm=norm) for layer in range(model.shape.n_layers))
    small = [
        (final_gain(model, circuit.right) if norm == "fold" else circuit.right) @ (G @ circuit.left)
        for circuit in circuits
    ]
    return torch.linalg.eigvals(torch.stack(small))


def _unembed_embed(
    W_U: Float[Tensor, "d_model d_vocab"], W_E: Float[Tensor, "d_vocab d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """W_U W_E; where the two are tied it is symmetric, and little more than half of it has to be computed."""
    if W_U.data_ptr() != W_E.data_ptr() or W_U.stride() != W_E.mT.stride():
        return W_U @ W_E
    G = W_U.new_empty(len(W_U), len(W_U))
    for rows in torch.arange(len(W_U), device=W_U.device).split(-(-len(W_U) // 4)):
        first, end = int(rows[0]), int(rows[-1]) + 1
        G[first:end, first:] = W_U[first:end] @ W_E[:, first:]
        G[first:, first:end] = G[first:end, first:].mT
    return G


def matching_eigenvalues(
    model: Model, early: tuple[int, int], *, norm: Norm = "fold"
) -> Complex[Tensor, "layer head d_head"]:
    """Eigenvalues of `matching_circuit(model, early, late)` for every late head; NaN where it is not later.

    Induction heads, with `early` the head that attends to the previous token, have positive ones.
    """
    moved = ov(model, *early, norm=norm)
    W_E = widened(model.weight("W_E"))
    seen = (moved.left.T @ W_E.T) @ W_E  # what the early head reads of each direction of the embedding
    values = [
        torch.full((early[0] + 1, model.shape.n_heads, model.shape.d_head), torch.nan, device=seen.device)
    ]
    for layer in range(early[0] + 1, model.shape.n_layers):
        circuit = all_qk(model, layer, norm=norm)
        values.append(torch.linalg.eigvals((seen @ circuit.left) @ (circuit.right @ moved.right.T))[None])
    return torch.cat(values)


def matching_circuit(
    model: Model, early: tuple[int, int], late: tuple[int, int], *, norm: Norm = "fold"
) -> Factored:
    """Score of each query token (row) on positions where the early head has moved each token (column).

    This is the K-composition term of the late head's attention, W_E W_QK (W_E W_OV)ᵀ; its diagonal is large
    if the late head looks for the token it stands on in what the early head has moved.
    """
    if not early[0] < late[0]:
        raise VesaliusError(f"Head {late} was to read what head {early} writes; it must be in a later layer.")
    W_E = widened(model.weight("W_E"))
    moved = W_E @ ov(model, *early, norm=norm)
    return (W_E @ qk(model, *late, norm=norm)) @ moved.T


def copying_score(eigenvalues: Complex[Tensor, "*batch d_head"]) -> Float[Tensor, "*batch"]:
    """Re(Σλ)/Σ|λ|: 1 all positive, -1 all negative, 0 where they cancel or are all 0."""
    total = eigenvalues.abs().sum(-1)
    return eigenvalues.real.sum(-1) / total.clamp(min=torch.finfo(total.dtype).tiny)
