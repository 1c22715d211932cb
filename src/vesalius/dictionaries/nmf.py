"""Non-negative matrix factors: parts that add up to activations and never cancel (Lee & Seung 1999).

Olah et al. 2018 (The Building Blocks of Interpretability, Distill) group neurons by them. Rows ≈ codes · parts, both
≥ 0, by turns one part at a time (HALS, Cichocki & Phan 2009).
"""

import torch

from vesalius.dictionaries.components import Parts, nonnegative_codes, sampled
from vesalius.dictionaries.rows import Rows
from vesalius.errors import VesaliusError


def fit_nmf(rows: Rows, *, components: int, sample: int = 20_000, steps: int = 100, seed: int = 0) -> Parts:
    """So many parts of norm 1, those that matter most first, from at most `sample` rows of one site.

    `about["explained"]` is the share of the squared activations. Raises VesaliusError for activations below 0, which
    are not a sum of parts: take a site after its rectifier.
    """
    found = sampled(rows, sample, seed=seed)
    if (found < 0).any():
        share = (found < 0).float().mean().item()
        raise VesaliusError(
            f"{share:.0%} of the activations of '{rows.sites[0]}' are below 0; NMF takes a site after its rectifier"
        )
    if components < 1:
        raise VesaliusError(f"{components} components were asked for; expected 1 or more")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(found), (components,), generator=generator)
    parts = found[chosen] + found.mean(0) * torch.rand(components, found.shape[1], generator=generator)
    codes = None
    for _ in range(steps):
        codes = nonnegative_codes(found, parts, sweeps=1, start=codes)
        parts = nonnegative_codes(found.T, codes.T, sweeps=1, start=parts.T).T
        norms = parts.norm(dim=1).clamp(min=1e-12)
        parts, codes = parts / norms[:, None], codes * norms
    codes = nonnegative_codes(found, parts, sweeps=20, start=codes)
    order = codes.square().sum(0).argsort(descending=True)
    missed = (found - codes @ parts).square().sum() / found.square().sum().clamp(min=1e-30)
    about = {**rows.about, "method": "nmf", "rows": len(found), "seed": seed, "explained": 1 - missed.item()}
    return Parts(rows.sites[0], parts[order].contiguous(), "nmf", about)
