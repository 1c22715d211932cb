"""Principal components: the orthonormal directions of most variance (Pearson 1901; Hotelling 1933)."""

import torch

from vesalius.dictionaries.components import Components
from vesalius.dictionaries.rows import Rows
from vesalius.errors import VesaliusError


def fit_pca(rows: Rows, *, components: int | None = None, seed: int = 0) -> Components:
    """The leading `components` (None: all) of the rows of one site, from one pass; the largest entry is positive.

    `about["explained"]` holds each one's share of the variance. Raises VesaliusError for more components than units,
    or rows that are not finite.

    >>> from vesalius.dictionaries import TensorRows
    >>> line = torch.linspace(-1, 1, 21)[:, None] * torch.tensor([0.6, 0.8])
    >>> found = fit_pca(TensorRows(("neurons@0",), (line,)), components=1)
    >>> [round(entry, 4) for entry in found.write[0].tolist()], round(found.about["explained"][0], 4)
    ([0.6, 0.8], 1.0)
    """
    width = rows.widths[0]
    count = width if components is None else components
    if not 1 <= count <= width:
        raise VesaliusError(f"{count} components were asked for; '{rows.sites[0]}' has {width} units")
    size = min(len(rows), 8192)
    total, summed, products, offset = 0, torch.zeros(width).double(), torch.zeros(width, width).double(), None
    for step in range(len(rows) // size):
        found = rows.batch(step, size, seed=seed)[0].cpu().double()
        offset = found.mean(0) if offset is None else offset
        total, summed = total + len(found), summed + (found - offset).sum(0)
        products += (found - offset).T @ (found - offset)
    if not products.isfinite().all():
        raise VesaliusError(f"activations of '{rows.sites[0]}' hold NaN or infinite values; drop those rows")
    assert offset is not None
    centre = summed / total
    covariance = products / total - centre.outer(centre)
    values, vectors = torch.linalg.eigh(covariance)
    directions = vectors.flip(1).T[:count]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    directions = (directions * signs).float()
    explained = (values.flip(0).clamp(min=0) / values.clamp(min=0).sum().clamp(min=1e-300)).tolist()[:count]
    about = {**rows.about, "method": "pca", "rows": total, "explained": explained}
    mean = (offset + centre).float()
    return Components(rows.sites[0], directions.T.contiguous(), directions, mean, "pca", about)
