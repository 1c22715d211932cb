"""How well probes read rows that they were not fitted on, and whether their probabilities mean what they say."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.metrics import percentiles, resampled
from vesalius.probes.linear import LinearProbes
from vesalius.probes.perceptron import MLPProbes

BINS = 10
"""Of confidence, for calibration."""
PART = 4096
"""Rows that are read at a time."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Of probes on rows with labels; accuracies are shares of labels, 0 to 1."""

    accuracy: Float[Tensor, "layer target"]
    overall: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    """The 95% interval of `overall` when groups are drawn again with replacement."""
    nats: Float[Tensor, " layer"]
    """Mean cross-entropy."""
    confidence: Float[Tensor, "layer bin"]
    """Mean probability of the likeliest class, by bins of it; NaN where a bin is empty."""
    right: Float[Tensor, "layer bin"]
    """How often it is the true one."""
    calibration_error: Float[Tensor, " layer"]
    """The mean difference of the two (Guo et al. 2017, arXiv 1706.04599): 0 where probabilities mean what they say."""


@torch.no_grad()
def scored(
    probes: LinearProbes | MLPProbes,
    acts: Float[Tensor, "*layer row width"],
    labels: Int[Tensor, "row *target"],
    *,
    groups: Int[Tensor, " row"] | Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Scores:
    """Accuracy with an interval over `groups` of rows (None: over rows), cross-entropy and calibration.

    Labels of -1 do not count.
    """
    acts = acts if acts.dim() == 3 else acts[None]
    labels = (labels if labels.dim() == 2 else labels[:, None]).to(acts.device)
    known = labels >= 0
    hits, sure, nats = [], [], []
    for first in range(0, len(labels), PART):
        logs = probes.probabilities(acts[:, first : first + PART].float()).clamp(min=1e-12).log()
        truth = labels[first : first + PART].clamp(min=0).expand(len(acts), -1, -1)
        top, likeliest = logs.max(-1)
        hits.append(likeliest == truth)
        sure.append(top.exp())
        nats.append(-logs.gather(-1, truth[..., None].long())[..., 0])
    hit, confident, lost = (torch.cat(parts, 1) for parts in (hits, sure, nats))
    counted = known.to(confident)
    low, high = _interval(hit, known, groups, seed)
    confidence, right, error = _calibration(confident, hit, known)
    return Scores(
        accuracy=((hit * counted).sum(1) / counted.sum(0).clamp(min=1)).cpu(),
        overall=((hit * counted).sum((1, 2)) / counted.sum()).cpu(),
        low=low,
        high=high,
        nats=((lost * counted).sum((1, 2)) / counted.sum()).cpu(),
        confidence=confidence,
        right=right,
        calibration_error=error,
    )


def _interval(
    hit: Bool[Tensor, "layer row target"],
    known: Bool[Tensor, "row target"],
    groups: Int[Tensor, " row"] | Sequence[Hashable] | None,
    seed: int,
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Of the share of labels that are right: a ratio of two sums over groups."""
    names = range(len(known)) if groups is None else groups.tolist() if isinstance(groups, Tensor) else groups
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    member = torch.tensor([numbers[name] for name in names])
    rows = torch.cat([known.sum(1)[None], (hit & known).sum(2)]).T.double().cpu()  # [row, 1 + layer]
    sums = torch.zeros(len(numbers), rows.shape[1], dtype=torch.float64).index_add_(0, member, rows)
    drawn = resampled(sums, seed=seed)
    low, high = percentiles(drawn[:, 1:] / drawn[:, :1].clamp(min=1e-9))
    return low.float(), high.float()


def _calibration(
    confident: Float[Tensor, "layer row target"],
    hit: Bool[Tensor, "layer row target"],
    known: Bool[Tensor, "row target"],
) -> tuple[Float[Tensor, "layer bin"], Float[Tensor, "layer bin"], Float[Tensor, " layer"]]:
    layers = len(hit)
    place = (confident * BINS).long().clamp(max=BINS - 1).flatten(1)
    weight = known.to(confident).flatten().expand(layers, -1)
    counts, sure, right = (
        torch.zeros(layers, BINS).to(confident).scatter_add_(1, place, weight * part)
        for part in (torch.ones_like(weight), confident.flatten(1), hit.flatten(1).float())
    )
    error = (sure - right).abs().sum(1) / counts.sum(1)
    return (sure / counts).cpu(), (right / counts).cpu(), error.cpu()
