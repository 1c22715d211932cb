"""Rectified codes and a penalty on their sum."""

import torch
from torch import Tensor

from vesalius.dictionaries.kernels import Support, decode
from vesalius.dictionaries.resampling import Resampling
from vesalius.dictionaries.variants.variant import Pass, Passes, Variant, positive, rectified, variant
from vesalius.dictionaries.weights import Folded, Weights


@variant
def relu_l1(
    l1: float = 0.004,
    *,
    resample_at: tuple[int, ...] = (25_000, 50_000, 75_000, 100_000),
    dead_after: int = 12_500,
    scored: int = 819_200,
) -> Variant:
    """Rectifier, L1 and resampling, exactly as Towards Monosemanticity.

    Bricken et al. 2023 (transformer-circuits.pub/2023/monosemantic-features). Loss: the mean over the units of the
    squared error, plus `l1` times the sum of the codes. Latents that were not active in the previous `dead_after`
    steps are set anew at the steps `resample_at` only, from `scored` inputs (see `resampling`). The rate is constant,
    both layers start as PyTorch's, activations are as they are.
    """

    def loss(p: Pass) -> Tensor:
        return (p.target - p.made).square().mean(1) + l1 * p.support.row_sums(p.codes)

    return Variant(
        active=rectified,
        loss=lambda p: loss(p).mean(),
        tied=False,
        scale="none",
        dead_after=dead_after,
        resampling=Resampling(at=resample_at, dead_after=dead_after, scored=scored, loss=loss),
    )


@variant
def april(l1: float = 5.0) -> Variant:
    """Rectifier and an L1 weighted by the length of the decoder vectors, which are free.

    Conerly et al. 2024 (transformer-circuits.pub/2024/april-update, as in Scaling Monosemanticity). Loss: the sum of
    the squared error over the units, plus `l1` times Σ f_i ‖d_i‖; `l1` rises over the first 5% of the steps, the rate
    falls to 0 over the last 20%, gradients are clipped at norm 1. No resampling, no bias before the encoder. Of
    several sites, ‖d_i‖ is the sum over the sites, as in crosscoders (Lindsey et al. 2024).
    """

    def loss(p: Pass) -> Tensor:
        penalty = p.support.sums(p.codes) @ p.weights.decoder_norms() / len(p.target)
        return p.squared * p.target.shape[1] + l1 * min(1.0, p.progress / 0.05) * penalty

    return Variant(
        active=rectified, loss=loss, unit_norm=False, length=0.1, centred=False, lr=1e-4, decay=0.2, clip=1.0
    )


@variant
def gated(l1: float = 1.0) -> Variant:
    """A gate decides which latents are active, and a copy of its weights, scaled, how strongly.

    Rajamanoharan et al. 2024 (arXiv 2404.16014). With π the gate's activations before its threshold: code = [π > 0] ·
    relu(exp(r) (π − b_gate) + b_mag). Loss, of rows of mean length 1: squared error + `l1` Σ relu(π) + the squared
    error of relu(π) decoded with the decoder held fixed.
    """

    def code(before: Tensor, support: Support, w: Weights) -> Tensor:
        at = support.latents
        return ((before - w.b_enc[at]) * w.own["r_mag"].exp()[at] + w.own["b_mag"][at]).relu()

    def loss(p: Pass) -> Tensor:
        gate, width = p.before.relu(), p.target.shape[1]
        by_gate = decode(p.support, gate, p.weights.decoder.detach()) + p.weights.b_dec.detach()
        auxiliary = (p.target - by_gate).square().mean()
        return width * (p.squared + auxiliary) + l1 * gate.sum() / len(p.target)

    def folded(w: Weights, passes: Passes) -> Folded:
        scale, shift = w.own["r_mag"].exp(), w.own["b_mag"]
        return Folded(w.encoder * scale[:, None], shift, (shift - scale * w.b_enc).clamp(min=0))

    return Variant(
        active=positive,
        loss=loss,
        code=code,
        folded=folded,
        own=lambda latents, width: {"r_mag": torch.zeros(latents), "b_mag": torch.zeros(latents)},
        scale="one",
        betas=(0.0, 0.999),
    )
