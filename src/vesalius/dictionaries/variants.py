"""The kinds of sparse dictionary: each is an activation function and a loss, and what its authors keep fixed beside.

A variant is a function whose arguments are the method's own numbers, and its text, as in `topk(k=32)`, says the same:
`variant_of("topk(32)")`. In the losses, x is what is reconstructed, in rows of n units; f are the codes; d_i what
latent i writes. Unless it says otherwise, decoder vectors are kept at length 1 and activations are scaled so that
their mean length is √n.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vesalius.dictionaries.kernels import Support, decode, preactivations
from vesalius.dictionaries.resampling import Resampling
from vesalius.dictionaries.weights import Folded, Weights
from vesalius.errors import VesaliusError, nearest


@dataclass(eq=False)
class Pass:
    """One forward pass over a batch; what is a function of the weights can be differentiated."""

    weights: Weights
    target: Float[Tensor, "row target"]
    centred: Float[Tensor, "row source"]
    pre: Float[Tensor, "row latent"]
    """Activations before the threshold, of all latents; not differentiated."""
    support: Support
    before: Float[Tensor, " active"]
    """Activations before the threshold, where a latent may be active."""
    codes: Float[Tensor, " active"]
    made: Float[Tensor, "row target"]
    """The reconstruction."""
    progress: float
    """Share of the steps that is done."""
    variance: Float[Tensor, ""]
    """Mean squared distance of an entry of the target from its mean."""
    dead: Int[Tensor, " dead"]
    """Latents that have not been active for `dead_after` steps."""

    def at(self, support: Support) -> Float[Tensor, " active"]:
        """Activations before the threshold at other places."""
        w = self.weights
        return preactivations(support, support.of(self.pre), self.centred, w.encoder, w.b_enc, w.centre)

    @property
    def squared(self) -> Float[Tensor, ""]:
        """Mean over rows and units of the squared error."""
        return (self.target - self.made).square().mean()


Activation = Callable[[Float[Tensor, "row latent"], Weights], tuple[Support, Float[Tensor, " active"]]]
Passes = Callable[[], Iterable[Pass]]


def _rectified(before: Tensor, support: Support, weights: Weights) -> Tensor:
    return before.relu()


def _threshold_of_zero(weights: Weights, passes: Passes) -> Folded:
    return Folded(weights.encoder, weights.b_enc, torch.zeros_like(weights.b_enc))


@dataclass(frozen=True)
class Variant:
    """An activation function and a loss, and what belongs to them."""

    active: Activation
    """Which latents may be active, and their activations before the threshold."""
    loss: Callable[[Pass], Float[Tensor, ""]]
    code: Callable[[Float[Tensor, " active"], Support, Weights], Float[Tensor, " active"]] = _rectified
    folded: Callable[[Weights, Passes], Folded] = _threshold_of_zero
    own: Callable[[int, int], dict[str, Tensor]] = lambda latents, width: {}
    """What it learns besides, from the number of latents and the width that is read."""
    unit_norm: bool = True
    tied: bool = True
    """Whether the encoder starts as the decoder."""
    length: float = 1.0
    """Of decoder vectors at the start."""
    centred: bool = True
    """Whether the decoder's bias, at first the geometric median, is subtracted from what is read."""
    scale: Literal["none", "one", "width"] = "width"
    """The mean length that activations are scaled to: as they are, 1, or √n."""
    lr: float = 1e-3
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    decay: float = 0.0
    """Share of the steps, the last ones, in which it falls to 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    """The largest norm of the gradient."""
    dead_after: int = 250
    """Steps without activity after which a latent counts as dead."""
    resampling: Resampling | None = None
    text: str = ""

    def __str__(self) -> str:
        return self.text


VARIANTS: dict[str, Callable[..., Variant]] = {}


def variant(function: Callable[..., Variant]) -> Callable[..., Variant]:
    """Register a kind of dictionary; what it returns knows its own text."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def made(*args, **named) -> Variant:
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        given = ", ".join(f"{name}={value!r}" for name, value in bound.arguments.items())
        return replace(function(*args, **named), text=f"{function.__name__}({given})")

    VARIANTS[function.__name__] = made
    return made


def variant_of(given: str | Variant) -> Variant:
    """A variant by its text; raises VesaliusError with the nearest if there is none such.

    >>> str(variant_of("topk(8)"))
    'topk(k=8, aux=0.03125, aux_k=256, dead_after=250)'
    """
    if isinstance(given, Variant):
        return given
    name, _, rest = given.partition("(")
    if name not in VARIANTS:
        raise VesaliusError(
            f"'{given}' is no kind of dictionary; expected {', '.join(VARIANTS)}{nearest(name, list(VARIANTS))}"
        )
    made, usage = VARIANTS[name], f"{name}{inspect.signature(VARIANTS[name])}".partition(" ->")[0]
    try:
        call = ast.parse(f"_({rest or ')'}", mode="eval").body
        assert isinstance(call, ast.Call)
        args = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        inspect.signature(made).bind(*args, **named)
    except (SyntaxError, ValueError, TypeError) as error:
        raise VesaliusError(f"'{given}' does not read as {usage}: {error}") from error
    return made(*args, **named)


# ------------------------------------------------------------------------------------------------- an L1 penalty


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
        penalty = p.before.new_zeros(len(p.target)).index_add(0, p.support.rows, p.codes)
        return (p.target - p.made).square().mean(1) + l1 * penalty

    return Variant(
        active=_positive,
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
        penalty = (p.codes * p.weights.decoder_norms()[p.support.latents]).sum() / len(p.target)
        return p.squared * p.target.shape[1] + l1 * min(1.0, p.progress / 0.05) * penalty

    return Variant(
        active=_positive, loss=loss, unit_norm=False, length=0.1, centred=False, lr=1e-4, decay=0.2, clip=1.0
    )


@variant
def gated(l1: float = 0.01) -> Variant:
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
        active=_positive,
        loss=loss,
        code=code,
        folded=folded,
        own=lambda latents, width: {"r_mag": torch.zeros(latents), "b_mag": torch.zeros(latents)},
        scale="one",
        betas=(0.0, 0.999),
    )


# ---------------------------------------------------------------------------------------------- a number of latents


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
        folded=lambda w, passes: replace(_threshold_of_zero(w, passes), k=k),
        dead_after=dead_after,
    )


@variant
def batch_topk(k: int = 32, *, aux: float = 1 / 32, aux_k: int = 256, dead_after: int = 250) -> Variant:
    """The largest latents of a whole batch, k for each row on average; once trained, those above one threshold.

    Bussmann et al. 2024 (arXiv 2412.06410). The threshold is the mean, over batches, of the smallest code that is not
    0. Loss as `topk`.
    """
    return Variant(
        active=functools.partial(_largest_of_batch, k=k),
        loss=lambda p: p.squared / p.variance + aux * _auxiliary(p, aux_k),
        folded=_mean_least,
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
        active=functools.partial(_largest_of_batch, k=k), loss=loss, folded=_mean_least, dead_after=dead_after
    )


# ----------------------------------------------------------------------------------------------- a learned threshold


@variant
def jump_relu(l0: float = 0.001, *, threshold: float = 0.001, bandwidth: float = 0.001) -> Variant:
    """Each latent has a threshold, learned with the number of active latents itself as the penalty.

    Rajamanoharan et al. 2024 (arXiv 2407.14435). Loss, of rows of mean length 1: squared error + `l0` times the
    number of active latents; the gradient of the thresholds is estimated from the activations within half a
    `bandwidth` of them.
    """

    def active(pre: Tensor, w: Weights) -> tuple[Support, Tensor]:
        edge = (w.own["log_threshold"].exp() - bandwidth / 2).clamp(min=0)
        return _where(pre, pre > edge)

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


# ------------------------------------------------------------------------------------------------- what they share


def _positive(pre: Float[Tensor, "row latent"], weights: Weights) -> tuple[Support, Float[Tensor, " active"]]:
    return _where(pre, pre > 0)


def _where(pre: Tensor, mask: Tensor) -> tuple[Support, Tensor]:
    support = Support.of_mask(mask)
    return support, support.of(pre)


def _largest_of_batch(
    pre: Float[Tensor, "row latent"], weights: Weights, *, k: int
) -> tuple[Support, Float[Tensor, " active"]]:
    """The k · rows largest: exact, but a threshold guessed from a few rows leaves few to choose among."""
    wanted = _at_most(k, pre) * len(pre)
    sample = pre[:: max(1, len(pre) // 64)].flatten()
    guess = (
        sample.topk(min(len(sample), 3 * wanted * len(sample) // (2 * pre.numel()))).values[-1].clamp(min=0)
    )
    support, values = _where(pre, pre > guess)
    if len(values) < wanted and guess > 0:
        support, values = _where(pre, pre > 0)
    if len(values) <= wanted:
        return support, values
    kept = values.topk(wanted, sorted=False).indices.sort().values
    rows = support.rows[kept]
    starts = torch.searchsorted(rows, torch.arange(len(pre) + 1, device=rows.device))
    return Support(starts, rows, support.latents[kept], support.width), values[kept]


def _mean_least(weights: Weights, passes: Passes) -> Folded:
    least = torch.stack([p.codes[p.codes > 0].min() for p in passes()]).mean()
    return replace(_threshold_of_zero(weights, passes), threshold=least.expand(len(weights.b_enc)).clone())


def _auxiliary(p: Pass, aux_k: int) -> Float[Tensor, ""]:
    """AuxK: the share of the error that the largest dead latents do not explain; 0 if none is dead."""
    if not len(p.dead) or not aux_k:
        return p.squared.new_zeros(())
    among = p.pre.index_select(1, p.dead)
    latents = p.dead[among.topk(_at_most(aux_k, among), sorted=False).indices]
    support = Support.of_latents(latents, p.support.width)
    error = (p.target - p.made).detach()
    explained = decode(support, p.at(support).relu(), p.weights.decoder)
    return (error - explained).square().mean() / error.square().mean().clamp(min=1e-12)


def _at_most(k: int, pre: Tensor) -> int:
    return min(k, pre.shape[1])
