"""How vectors share a space: the dimensionality of each, and what the others cost it.

Elhage et al. 2022 (Toy Models of Superposition, transformer-circuits.pub/2022/toy_model, arXiv 2209.10652).
"""

from jaxtyping import Float
from torch import Tensor


def dimensionality(vectors: Float[Tensor, "feature width"]) -> Float[Tensor, " feature"]:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i·W_j)²: the share of a dimension that is a vector's own, 0 to 1; 0 of the zero vector.

    1 for a vector orthogonal to all others, 1/2 for each of an antipodal pair, 2/n in a regular n-gon. Their sum is at
    most the width.

    >>> import torch
    >>> dimensionality(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    own = vectors.square().sum(1)
    return own.square() / (own.square() + own * interference(vectors)).clamp(min=1e-30)


def interference(vectors: Float[Tensor, "feature width"]) -> Float[Tensor, " feature"]:
    """Σ_{j≠i} (Ŵ_i·W_j)²: what activity of one on all other vectors adds along this one; 0 if all are orthogonal."""
    own = vectors.square().sum(1)
    all = ((vectors @ (vectors.T @ vectors)) * vectors).sum(1) / own.clamp(min=1e-30)
    return (all - own).clamp(min=0)
