"""A threshold for each latent, learned although the count of active latents has no gradient."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vesalius.dictionaries.kernels import Support
from vesalius.dictionaries.variants.variant import Pass, Variant, variant, where
from vesalius.dictionaries.weights import Folded, Weights


@variant
def jump_relu(l0: float = 0.001, *, threshold: float = 0.001, bandwidth: float = 0.001) -> Variant:
    """Each latent has a threshold, learned with the number of active latents itself as the penalty.

    Rajamanoharan et al. 2024 (arXiv 2407.14435). Loss, of rows of mean length 1: squared error + `l0` times the
    number of active latents; the gradient of the thresholds is estimated from the activations within half a
    `bandwidth` of them.
    """

    def active(pre: Tensor, w: Weights) -> tuple[Support, Tensor]:
        edge = (w.own["log_threshold"].exp() - bandwidth / 2).clamp(min=0)
        return where(pre, pre > edge)

    def code(before: Tensor, support: Support, w: Weights) -> Tensor:
        return _Jump.apply(before, w.own["log_threshold"].exp()[support.latents], bandwidth)

    def loss(p: Pass) -> Tensor:
        thresholds = p.weights.own["log_threshold"].exp()[p.support.latents]
        count = _Step.apply(p.before.detach(), thresholds, bandwidth).sum() / len(p.target)
        return p.squared * p.target.shape[1] + l0 * count

    return Variant(
        active=active,
        loss=loss,
        code=code,
        folded=lambda w, passes: Folded(w.encoder, w.b_enc, w.own["log_threshold"].exp()),
        own=lambda latents, width: {"log_threshold": torch.full((latents,), threshold).log()},
        scale="one",
        betas=(0.0, 0.999),
    )


class _Jump(Function):
    """`before` where it exceeds the threshold, else 0."""

    @staticmethod
    def forward(ctx, before, threshold, bandwidth):
        ctx.save_for_backward(before, threshold)
        ctx.bandwidth = bandwidth
        return before * (before > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        before, threshold = ctx.saved_tensors
        near = (before - threshold).abs() < ctx.bandwidth / 2
        return grad * (before > threshold), -grad * threshold * near / ctx.bandwidth, None


class _Step(Function):
    """1 where `before` exceeds the threshold, else 0."""

    @staticmethod
    def forward(ctx, before, threshold, bandwidth):
        ctx.save_for_backward(before, threshold)
        ctx.bandwidth = bandwidth
        return (before > threshold).to(before)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        before, threshold = ctx.saved_tensors
        near = (before - threshold).abs() < ctx.bandwidth / 2
        return None, -grad * near / ctx.bandwidth, None
