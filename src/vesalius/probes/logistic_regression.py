"""Multinomial logistic regression of many targets on many layers at once.

All targets of a layer read the same rows, so one iteration is two matrix products for all of them:

1. the Hessian of softmax cross-entropy is at most ½ (I − 11ᵀ/c) ⊗ XᵀX / n (Böhning 1992), whose inverse, one for each
   layer, makes the problem round;
2. each target then goes its own way by L-BFGS (Liu & Nocedal 1989) in the room that this inverse spans, with a
   step of its own, halved until its loss falls, and rests once it has converged;
3. weights of the classes sum to 0, which the penalty wants anyway, so that one class need not be computed;
4. the first iterations see a sample of the rows, until the next one would gain less than what a sample so small can
   tell (Daneshmand, Lucchi & Hofmann 2016, arXiv 1603.02839), the last ones all.

The loss is the mean cross-entropy in nats plus half the penalty times the squared weights; biases are free.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.probes.labelled import Labelled
from vesalius.probes.linear import PENALTY, LinearProbes
from vesalius.probes.moments import Moments, moments

MEMORY = 8
"""Steps that L-BFGS remembers."""
SHARES = (1 / 16, 1 / 4, 1.0)
"""Of the rows, those that the iterations see, one after another; none of fewer rows than `ENOUGH` per unit."""
ENOUGH = 32
TOLD = 0.3
"""A sample is left at so much of half a nat for each free weight and row, by which its own optimum is too low."""
SAMPLE = 16
"""Rows per unit that the covariance is taken of."""
HALVINGS = 12

Weights = Float[Tensor, "layer width_and_one class target"]
PerProbe = Float[Tensor, "layer target"]


def logistic(
    labelled: Labelled,
    *,
    penalty: float = PENALTY,
    iterations: int = 100,
    tolerance: float = 1e-3,
    start: LinearProbes | None = None,
) -> LinearProbes:
    """Every layer's and every target's multinomial logistic regression.

    `penalty` is in units of the mean variance of a layer's units, so that it means the same at every layer; with n
    rows, that of scikit-learn's C is 1 / (C n variance). A probe is done once the next step would gain less than
    `tolerance` of its loss. `start` is the solution of another penalty.

    >>> acts = torch.tensor([[-1.0, 0.3], [-2.0, 0.1], [1.0, 0.2], [2.0, 0.4]])
    >>> logistic(Labelled.of(acts, torch.tensor([0, 0, 1, 1]))).predictions(acts).flatten().tolist()
    [0, 0, 1, 1]
    """
    seen = moments(labelled.first(min(1.0, SAMPLE * labelled.width / labelled.rows)))
    inverse = seen.inverse(penalty, scale=0.5).float()

    def rounded(gradient: Weights) -> Weights:
        layers, _, classes, targets = gradient.shape
        flat = inverse @ gradient[:, :-1].reshape(layers, -1, classes * targets)
        return torch.cat([flat.reshape(layers, -1, classes, targets), 2 * gradient[:, -1:]], 1)

    return _fitted(labelled, seen, rounded, penalty, iterations, tolerance, start, "logistic")


def sparse(
    labelled: Labelled,
    *,
    units: int = 16,
    penalty: float = PENALTY,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> LinearProbes:
    """Logistic regression on the few units whose class means differ most, each target's own (Gurnee et al. 2023,
    arXiv 2305.01610).

    The difference is the variance that the classes account for, as a share of the unit's; all other weights are 0.
    """
    if not 1 <= units <= labelled.width:
        raise VesaliusError(f"a probe of {units} units was asked for; the site has {labelled.width}")
    seen = moments(labelled)
    variance = seen.covariance.diagonal(dim1=1, dim2=2)
    between = (seen.means.square() * seen.shares).sum(2)
    share = between / variance.clamp(min=1e-12 * seen.variance[:, None])[:, :, None]
    chosen = rearrange(share.topk(units, dim=1).indices, "l k t -> l t k")
    layer = torch.arange(labelled.layers, device=chosen.device)[:, None, None, None]
    ridge = seen.variance[:, None, None, None] * (penalty + 1e-6) * torch.eye(units).to(seen.covariance)
    inner = seen.covariance[layer, chosen[..., :, None], chosen[..., None, :]] / 2 + ridge
    inverse = torch.linalg.inv(inner).float()

    def rounded(gradient: Weights) -> Weights:
        index = rearrange(chosen, "l t k -> l k 1 t").expand(-1, -1, gradient.shape[2], -1)
        picked = gradient.gather(1, index)
        solved = einsum(inverse, picked, "l t k j, l j c t -> l k c t")
        return torch.cat(
            [torch.zeros_like(gradient[:, :-1]).scatter_(1, index, solved), 2 * gradient[:, -1:]], 1
        )

    return _fitted(labelled, seen, rounded, penalty, iterations, tolerance, None, "sparse")


def _fitted(
    labelled: Labelled,
    seen: Moments,
    rounded: Callable[[Weights], Weights],
    penalty: float,
    iterations: int,
    tolerance: float,
    start: LinearProbes | None,
    kind: str,
) -> LinearProbes:
    mean = seen.mean.float()
    weights = _begun(seen, mean, start)
    shares = [share for share in SHARES if share == 1 or share * labelled.rows >= ENOUGH * labelled.width]
    memory = _Memory([], [], rounded)
    for share in shares:
        rows = labelled if share == 1 else labelled.first(share)
        loss = _Loss(rows, mean, (seen.variance * penalty).float())
        least = 0.0 if share == 1 else TOLD * labelled.width * (labelled.classes - 1) / 2 / rows.rows
        weights = _descended(loss, weights, memory, iterations=iterations, tolerance=tolerance, least=least)
    weight, bias = weights[:, :-1], weights[:, -1]
    bias = bias - einsum(weight, mean, "l width c t, l width -> l c t")
    return LinearProbes(
        rearrange(weight, "l width c t -> l t width c").contiguous(),
        rearrange(bias, "l c t -> l t c").contiguous(),
        kind,
    )


def _begun(seen: Moments, mean: Float[Tensor, "layer width"], start: LinearProbes | None) -> Weights:
    """No weights and the log share of every class; or what was given."""
    layers, width, classes, targets = seen.means.shape
    if start is None:
        logs = seen.shares.clamp(min=0.5 / max(seen.rows, 1)).log().float()
        weights = torch.zeros(layers, width + 1, classes, targets).to(mean)
        weights[:, -1] = logs - logs.mean(0)
        return weights
    weight = rearrange(start.weight, "l t width c -> l width c t").to(mean)
    bias = rearrange(start.bias, "l t c -> l c t").to(mean)
    bias = bias + einsum(weight, mean, "l width c t, l width -> l c t")
    joined = torch.cat([weight, bias[:, None]], 1)
    return joined - joined.mean(2, keepdim=True)


@dataclass(frozen=True)
class _Loss:
    """Of some probes at some weights, with its gradient; a pass over the rows, in parts of the targets at work."""

    labelled: Labelled
    mean: Float[Tensor, "layer width"]
    penalty: Float[Tensor, " layer"]

    @cached_property
    def known(self) -> Float[Tensor, " target"]:
        """Rows that have a label, at least 1."""
        counts = torch.stack([(labels >= 0).sum(0) for _, labels in self.labelled.again()])
        return counts.sum(0).clamp(min=1).float()

    def __call__(self, weights: Weights, working: Bool[Tensor, "layer target"]) -> tuple[PerProbe, Weights]:
        """0 for probes that are not at work."""
        layers, _, classes, targets = weights.shape
        chosen = [layer.nonzero()[:, 0] for layer in working]
        parts = [weights[l][:, :-1, chosen[l]].flatten(1).contiguous() for l in range(layers)]
        biases = [part[-1] - mean @ part[:-1] for part, mean in zip(parts, self.mean)]
        slopes = [torch.zeros_like(part.T) for part in parts]
        loss = torch.zeros(layers, targets, dtype=torch.float64, device=weights.device)
        for acts, labels in self.labelled.again():
            for l in range(layers):
                if not len(chosen[l]):
                    continue
                x = acts[l].float()
                scores = torch.addmm(biases[l], x, parts[l][:-1])
                truth = labels if len(chosen[l]) == targets else labels[:, chosen[l]]
                nats, residual = _cross_entropy(scores, truth, classes)
                loss[l, chosen[l]] += nats
                slopes[l][:, :-1].addmm_(residual.T, x)
                slopes[l][:, -1] += residual.sum(0)
        gradient, known = torch.zeros_like(weights), self.known
        for l in range(layers):
            slopes[l][:, :-1] -= torch.outer(slopes[l][:, -1], self.mean[l])
            slope = rearrange(slopes[l], "(c t) w -> w c t", c=classes - 1)
            slope = torch.cat([slope, -slope.sum(1, keepdim=True)], 1)
            gradient[l][:, :, chosen[l]] = slope / known[chosen[l]]
        ridge = self.penalty[:, None, None, None] * weights[:, :-1] * working[:, None, None]
        gradient[:, :-1] += ridge
        if not loss.isfinite().all():
            layer = int((~loss.isfinite()).any(1).nonzero()[0])
            raise VesaliusError(f"activations of layer {layer} are NaN or infinite; expected finite numbers")
        half = einsum(ridge, weights[:, :-1], "l width c t, l width c t -> l t") / 2
        return (loss / known).to(weights) * working + half, gradient


def _cross_entropy(
    scores: Float[Tensor, "row score"], labels: Int[Tensor, "row target"], classes: int
) -> tuple[Float[Tensor, " target"], Float[Tensor, "row score"]]:
    """Summed nats, and how far the probabilities of all classes but the last are from the truth."""
    scores = rearrange(scores, "row (c t) -> row c t", c=classes - 1)
    logs = torch.cat([scores, -scores.sum(1, keepdim=True)], 1).log_softmax(1)
    true, known = labels.clamp(min=0)[:, None], labels >= 0
    nats = -logs.gather(1, true)[:, 0]
    residual = logs.exp_().scatter_add_(1, true, torch.full_like(nats, -1)[:, None])[:, :-1]
    if not known.all():
        nats, residual = nats * known, residual * known[:, None]
    return nats.sum(0), residual.flatten(1)


@dataclass(frozen=True)
class _Memory:
    """The last steps and how they changed the gradient: an estimate of the inverse Hessian (Nocedal 1980)."""

    steps: list[Weights]
    changes: list[Weights]
    rounded: Callable[[Weights], Weights]
    """The bound's inverse, from which the estimate starts."""

    def add(self, step: Weights, change: Weights) -> None:
        for kept, new in ((self.steps, step), (self.changes, change)):
            kept.append(new)
            del kept[:-MEMORY]

    def turned(self, gradient: Weights) -> Weights:
        """The gradient times the estimate, by two loops over what is remembered."""
        inner = [_dot(step, change) for step, change in zip(self.steps, self.changes)]
        factors = []
        for step, change, curvature in zip(self.steps[::-1], self.changes[::-1], inner[::-1]):
            factors.append(_over(_dot(step, gradient), curvature))
            gradient = gradient - _each(factors[-1]) * change
        turned = self.rounded(gradient)
        if self.steps:
            size = _dot(self.changes[-1], self.rounded(self.changes[-1]))
            scale = _over(inner[-1], size)
            turned = _each(torch.where(scale > 0, scale, 1.0)) * turned
        for step, change, curvature, factor in zip(self.steps, self.changes, inner, factors[::-1]):
            turned = turned + _each(factor - _over(_dot(change, turned), curvature)) * step
        return turned


def _descended(
    loss: _Loss,
    weights: Weights,
    memory: _Memory,
    *,
    iterations: int,
    tolerance: float,
    least: float,
) -> Weights:
    """L-BFGS for every probe, until a step gains less than `least` nats or `tolerance` of the loss."""
    layers, _, _, targets = weights.shape
    working = torch.ones(layers, targets, dtype=torch.bool, device=weights.device)
    value, gradient = loss(weights, working)
    for _ in range(iterations):
        direction = -memory.turned(gradient)
        slope = _dot(gradient, direction)
        working = working & (-slope / 2 > (tolerance * value).clamp(min=least))
        if not working.any():
            break
        length, trying = working.to(weights), working
        tried_value, tried_gradient = value, gradient
        for _ in range(HALVINGS):
            new_value, new_gradient = loss(weights + _each(length) * direction, trying)
            tried_value = torch.where(trying, new_value, tried_value)
            tried_gradient = torch.where(_each(trying), new_gradient, tried_gradient)
            trying = trying & (tried_value > value + 1e-4 * length * slope + 1e-7 * value)
            if not trying.any():
                break
            length = torch.where(trying, length / 2, length)
        working = working & ~trying  # what no step makes better rests
        step = _each(length * working) * direction
        memory.add(step, torch.where(_each(working), tried_gradient - gradient, 0.0))
        weights = weights + step
        value = torch.where(working, tried_value, value)
        gradient = torch.where(_each(working), tried_gradient, gradient)
    return weights


def _over(top: PerProbe, bottom: PerProbe) -> PerProbe:
    """A quotient, 0 where nothing was learned."""
    return torch.where(bottom > 1e-20, top / bottom.clamp(min=1e-20), 0.0)


def _dot(a: Weights, b: Weights) -> PerProbe:
    return einsum(a, b, "l width c t, l width c t -> l t")


def _each(values: Float[Tensor, "layer target"] | Bool[Tensor, "layer target"]) -> Tensor:
    return values[:, None, None]
