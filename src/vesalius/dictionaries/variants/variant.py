"""What a kind of sparse dictionary consists of, and how it is named.

A variant is a function whose arguments are the method's own numbers, and its text, as in `topk(k=32)`, says the same.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.dictionaries.kernels import CROWDED, Everywhere, Support, preactivations
from vesalius.dictionaries.resampling import Resampling
from vesalius.dictionaries.weights import Folded, Weights
from vesalius.errors import VesaliusError, nearest


@dataclass(eq=False)
class Pass:
    """One forward pass over a batch; what is a function of the weights can be differentiated."""

    weights: Weights
    target: Float[Tensor, "row target"]
    centred: Float[Tensor, "row source"]
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

    def largest(self, among: Int[Tensor, " some"], k: int) -> tuple[Support, Float[Tensor, " active"]]:
        """The k largest of some latents in each row, and their activations before the threshold."""
        w = self.weights
        with torch.no_grad():
            pre = torch.addmm(w.b_enc[among], self.centred, w.encoder[among].T)
            values, latents = pre.topk(min(k, len(among)), sorted=False)
        support = Support.of_latents(among[latents], self.support.width)
        return support, preactivations(support, values.flatten(), self.centred, w.encoder, w.b_enc, w.centre)

    @cached_property
    def squared(self) -> Float[Tensor, ""]:
        """Mean over rows and units of the squared error."""
        return (self.target - self.made).square().mean()


Activation = Callable[[Float[Tensor, "row latent"], Weights], tuple[Support, Float[Tensor, " active"]]]
Passes = Callable[[], Iterable[Pass]]


def _rectified(before: Tensor, support: Support, weights: Weights) -> Tensor:
    return before.relu()


def threshold_of_zero(weights: Weights, passes: Passes) -> Folded:
    return Folded(weights.encoder, weights.b_enc, torch.zeros_like(weights.b_enc))


@dataclass(frozen=True)
class Variant:
    """An activation function and a loss, and what belongs to them."""

    active: Activation
    """Which latents may be active, and their activations before the threshold."""
    loss: Callable[[Pass], Float[Tensor, ""]]
    code: Callable[[Float[Tensor, " active"], Support, Weights], Float[Tensor, " active"]] = _rectified
    folded: Callable[[Weights, Passes], Folded] = threshold_of_zero
    own: Callable[[int, int], dict[str, Tensor]] = lambda latents, width: {}
    """What it learns besides, from the number of latents and the width that is read."""
    whole: bool = False
    """Whether the activation function must see a whole batch at once."""
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


def positive(pre: Float[Tensor, "row latent"], weights: Weights) -> tuple[Support, Float[Tensor, " active"]]:
    return where(pre, pre > 0)


def rectified(pre: Float[Tensor, "row latent"], weights: Weights) -> tuple[Support, Float[Tensor, " active"]]:
    """As `positive`, or all places where many are and whole matrices faster; for codes that are `before`, rectified."""
    mask = pre > 0
    if mask.sum() > CROWDED * mask.numel():
        return Everywhere(*pre.shape, pre.device), pre.flatten().clone()  # what is in `pre` is written over
    return where(pre, mask)


def where(pre: Tensor, mask: Tensor) -> tuple[Support, Tensor]:
    support = Support.of_mask(mask)
    return support, support.of(pre)
