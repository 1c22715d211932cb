"""Numbers that many analyses share: losses, distances between distributions, intervals.

Everything here is a plain function of tensors. Losses and divergences are in nats.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError


def token_losses(
    logits: Float[Tensor, "batch pos d_vocab"], ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Cross-entropy of every next token in nats: 0 is certain and right, ln d_vocab is a uniform guess.

    >>> token_losses(torch.zeros(1, 3, 8), torch.tensor([[1, 2, 3]]))
    tensor([[2.0794, 2.0794]])
    """
    return F.cross_entropy(logits[:, :-1].mT, ids[:, 1:].long(), reduction="none")


def kl(
    p_logits: Float[Tensor, "*batch outcome"], q_logits: Float[Tensor, "*batch outcome"]
) -> Float[Tensor, "*batch"]:
    """Kullback-Leibler divergence of softmax(q) from softmax(p) in nats; 0 when they are the same."""
    p, q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def total_variation(
    p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]
) -> Float[Tensor, "*batch"]:
    """Half the summed absolute difference of two distributions: 0 the same, 1 nothing in common."""
    return (p - q).abs().sum(-1) / 2


def entropy(p: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy in nats: 0 for one certain outcome, ln n for n equal ones."""
    return torch.special.entr(p).sum(-1)


def bootstrap(
    values: Float[Tensor, " sample"], *, seed: int, confidence: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Percentile interval of the mean when the samples are drawn again with replacement (Efron 1979).

    >>> low, high = bootstrap(torch.ones(9), seed=0)
    >>> low == high == 1.0
    True
    """
    low, high = bootstrap_band(values[:, None], seed=seed, confidence=confidence, draws=draws)
    return low.item(), high.item()


def bootstrap_band(
    values: Float[Tensor, "sample *rest"], *, seed: int, confidence: float = 0.95, draws: int = 1000
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """As `bootstrap`, for every entry of `rest` at once; all entries share the same draws."""
    return percentiles(resampled(values, seed=seed, draws=draws), confidence=confidence)


def resampled(
    values: Float[Tensor, "sample *rest"], *, seed: int, draws: int = 1000
) -> Float[Tensor, "draw *rest"]:
    """Means of samples drawn again with replacement, for the interval of what is computed from several means.

    All entries of `rest` share the same draws, so that a ratio or a difference of two of them is of one sample.
    """
    n = values.shape[0]
    if n == 0:
        raise VesaliusError("bootstrap was given no samples, and an interval needs at least one.")
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(n, (draws, n), generator=generator)
    weight = torch.zeros(draws, n, dtype=torch.float64)
    weight.scatter_add_(1, picked, torch.ones_like(weight))
    means = weight @ values.detach().cpu().double().reshape(n, -1) / n
    return means.to(values.dtype).reshape(draws, *values.shape[1:])


def percentiles(
    draws: Float[Tensor, "draw *rest"], *, confidence: float = 0.95
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """The ends between which that share of the draws lies."""
    ordered, tail = draws.sort(0).values, (1 - confidence) / 2
    last = len(ordered) - 1
    return ordered[round(tail * last)], ordered[round((1 - tail) * last)]


def wilson(hits: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share of successes (Wilson 1927), sensible at 0 and at 1 and for few trials.

    >>> [round(end, 3) for end in wilson(0, 10)]
    [0.0, 0.278]
    """
    if not 0 <= hits <= trials or trials == 0:
        raise VesaliusError(f"wilson was given {hits} hits in {trials} trials; expected 0 <= hits <= trials.")
    z = math.sqrt(2) * torch.erfinv(torch.tensor(confidence, dtype=torch.float64)).item()
    share, shrink = hits / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def family_wise(nulls: Float[Tensor, "draw *family"], *, level: float = 0.01) -> float:
    """The value that the largest of a family of null statistics passes with probability at most `level`.

    The maxima, one for each draw of the null, are taken as Gumbel distributed and fitted by their moments, so
    that a handful of draws can speak about a small `level`; never less than the largest maximum seen.
    """
    maxima = nulls.detach().reshape(len(nulls), -1).amax(1).double()
    scale = maxima.std().item() * math.sqrt(6) / math.pi if len(maxima) > 1 else 0.0
    fitted = maxima.mean().item() - 0.5772156649 * scale - scale * math.log(-math.log1p(-level))
    return max(fitted, maxima.max().item())


def require_finite(values: Tensor, site: str) -> Tensor:
    """`values` as they are, or a VesaliusError that names the site where a number stopped being one."""
    if not values.isfinite().all():
        bad = (~values.isfinite()).sum().item()
        raise VesaliusError(
            f"{site} holds {bad} values of {values.numel()} that are NaN or infinite, so nothing computed "
            "from it would mean anything: check the weights and the dtype (float16 overflows above 65504)."
        )
    return values


def offset_attention(
    pattern: Float[Tensor, "batch head query key"], offset: int, *, first: int = 0
) -> Float[Tensor, "batch head"]:
    """Mean attention from every query at `first` or later to the key `offset` before it, in 0..1.

    >>> offset_attention(torch.eye(4)[None, None], 0).item()
    1.0
    """
    return pattern.diagonal(-offset, dim1=-2, dim2=-1)[..., max(first - offset, 0) :].mean(-1)
