"""A number of latents: those of a row, or of a batch, with the largest activations."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries.kernels import Support, decode
from vesalius.dictionaries.variants.variant import Pass, Passes, Variant, threshold_of_zero, variant, where
from vesalius.dictionaries.weights import Folded, Weights

CLIP = 0.01
"""The largest norm of the gradient, far below that of the first steps, which Adam would else remember for long."""


@variant
def topk(k: int = 32, *, aux: float = 1 / 32, aux_k: int = 256, dead_after: int = 250) -> Variant:
    """The k largest latents of each row.

    Gao et al. 2024 (arXiv 2406.04093). Loss: squared error as a share of the variance, plus `aux` times AuxK, the
    share of the error that the `aux_k` largest dead latents fail to explain; its gradient reaches their encoder.
    """

    def active(pre: Tensor, w: Weights) -> tuple[Support, Tensor]:
        values, latents = pre.topk(_at_most(k, pre), sorted=False)
        return Support.of_latents(latents, pre.shape[1]), values.flatten()

    return Variant(
        active=active,
        loss=lambda p: p.squared / p.variance + aux * _auxiliary(p, aux_k),
        folded=lambda w, passes: replace(threshold_of_zero(w, passes), k=k),
        clip=CLIP,
        dead_after=dead_after,
    )


@variant
def batch_topk(k: int = 32, *, aux: float = 1 / 32, aux_k: int = 256, dead_after: int = 250) -> Variant:
    """The largest latents of a whole batch, k for each row on average; once trained, those above one threshold.

    Bussmann et al. 2024 (arXiv 2412.06410). The threshold is the mean, over batches, of the smallest code that is not
    0. Loss as `topk`.
    """
    return Variant(
        active=lambda pre, w: largest_of_batch(pre, k=k),
        loss=lambda p: p.squared / p.variance + aux * _auxiliary(p, aux_k),
        folded=_mean_least,
        whole=True,
        clip=CLIP,
        dead_after=dead_after,
    )


@variant
def matryoshka(
    k: int = 32,
    *,
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    aux: float = 1 / 32,
    aux_k: int = 256,
    dead_after: int = 250,
) -> Variant:
    """`batch_topk` whose first latents must reconstruct without the later ones.

    Bussmann et al. 2025 (arXiv 2503.17547). Loss: the mean over nested `prefixes`, in shares of the latents, of the
    squared error of their codes alone, as a share of the variance; AuxK as in `topk`.
    """

    def loss(p: Pass) -> Tensor:
        errors = [p.squared]
        for share in prefixes[:-1]:
            inside = p.support.latents < share * p.support.width
            missing = decode(p.support, p.codes * ~inside, p.weights.decoder)
            errors.append((p.target - (p.made - missing)).square().mean())
        return torch.stack(errors).mean() / p.variance + aux * _auxiliary(p, aux_k)

    return Variant(
        active=lambda pre, w: largest_of_batch(pre, k=k),
        loss=loss,
        folded=_mean_least,
        whole=True,
        clip=CLIP,
        dead_after=dead_after,
    )


def largest_of_batch(pre: Float[Tensor, "row latent"], *, k: int) -> tuple[Support, Float[Tensor, " active"]]:
    """The k · rows largest: exact, but a threshold guessed from a few rows leaves few to choose among."""
    wanted = _at_most(k, pre) * len(pre)
    sample = pre[:: max(1, len(pre) // 64)].flatten()
    guess = (
        sample.topk(min(len(sample), 3 * wanted * len(sample) // (2 * pre.numel()))).values[-1].clamp(min=0)
    )
    support, values = where(pre, pre > guess)
    if len(values) < wanted and guess > 0:
        support, values = where(pre, pre > 0)
    if len(values) <= wanted:
        return support, values
    kept = values.topk(wanted, sorted=False).indices.sort().values
    rows = support.rows[kept]
    starts = torch.searchsorted(rows, torch.arange(len(pre) + 1, device=rows.device))
    return Support(starts, rows, support.latents[kept], support.width), values[kept]


def _mean_least(weights: Weights, passes: Passes) -> Folded:
    least = torch.stack([p.codes[p.codes > 0].min() for p in passes()]).mean()
    return replace(threshold_of_zero(weights, passes), threshold=least.expand(len(weights.b_enc)).clone())


def _auxiliary(p: Pass, aux_k: int) -> Float[Tensor, ""]:
    """AuxK: the share of the error that the largest dead latents do not explain; 0 if none is dead."""
    if not len(p.dead) or not aux_k:
        return p.squared.new_zeros(())
    support, before = p.largest(p.dead, aux_k)
    error = (p.target - p.made).detach()
    explained = decode(support, before.relu(), p.weights.decoder)
    return (error - explained).square().mean() / error.square().mean().clamp(min=1e-12)


def _at_most(k: int, pre: Tensor) -> int:
    return min(k, pre.shape[1])
