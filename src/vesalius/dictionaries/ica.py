"""Independent components: directions along which activations are as far from normal as can be.

FastICA with tanh and all components at once (Hyvärinen 1999, doi 10.1109/72.761722): activations are whitened by
their principal components, and an orthogonal map is iterated until it stays.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries.components import Components, sampled
from vesalius.dictionaries.pca import fit_pca
from vesalius.dictionaries.rows import Rows, TensorRows


def fit_ica(
    rows: Rows,
    *,
    components: int,
    sample: int = 50_000,
    steps: int = 200,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Components:
    """So many independent components of at most `sample` rows; codes have variance 1 and a positive skew.

    `about` says after how many steps it stayed, None if it had not. Raises VesaliusError for more components than
    units, or rows that are not finite.
    """
    found = sampled(rows, sample, seed=seed)
    pca = fit_pca(TensorRows(rows.sites[:1], (found,)), components=components)
    spread = pca.encode(found).std(0).clamp(min=1e-12)
    white = pca.encode(found) / spread
    turn, after = _turned(white, steps, tolerance, torch.Generator().manual_seed(seed))
    codes = white @ turn.T
    turn = turn * (codes**3).mean(0).sign()[:, None]
    read, write = pca.read / spread @ turn.T, turn @ (spread[:, None] * pca.write)
    about = {**rows.about, "method": "ica", "rows": len(found), "seed": seed, "steps": after}
    return Components(pca.site, read.contiguous(), write.contiguous(), pca.mean, "ica", about)


def _turned(
    white: Float[Tensor, "row component"], steps: int, tolerance: float, generator: torch.Generator
) -> tuple[Float[Tensor, "component component"], int | None]:
    """The orthogonal map to independent components, and after how many steps it stayed."""
    count = white.shape[1]
    turn = _orthogonal(torch.randn(count, count, generator=generator))
    for step in range(steps):
        bent = (white @ turn.T).tanh()
        slopes = (1 - bent.square()).mean(0)
        fresh = _orthogonal(bent.T @ white / len(white) - slopes[:, None] * turn)
        moved = ((fresh * turn).sum(1).abs() - 1).abs().max().item()
        turn = fresh
        if moved < tolerance:
            return turn, step + 1
    return turn, None


def _orthogonal(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The nearest orthogonal matrix."""
    U, _, Vh = torch.linalg.svd(matrix)
    return U @ Vh
