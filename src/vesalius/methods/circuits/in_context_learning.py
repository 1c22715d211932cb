"""In-context learning: how much better a model predicts late in a text than early.

Olsson et al. 2022 (arXiv 2209.11895) take the loss at the 500th token minus the loss at the 50th. Late tokens
may also be easier for other reasons, so the same late tokens are predicted once more with their far context
exchanged for another row's, while the near context (as long as what an early token has) stays. Induction is
not all of in-context learning (Hapax, arXiv 2511.05743): the score says that context helps, not how.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.data.text import sample_rows
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, bootstrap_band, token_losses
from vesalius.model import Model
from vesalius.result import Headline, Result


@dataclass(frozen=True)
class InContextLearning(Result):
    """Losses in nats; a score below 0 means that more context helps."""

    early: int
    late: int
    window: int
    """Losses are means over the `window` tokens that end at `early` and at `late`."""
    curve: Float[Tensor, " position"]
    """Entry t is the mean loss of token t + 1."""
    low: Float[Tensor, " position"]
    high: Float[Tensor, " position"]
    score: list
    """Loss late minus loss early: mean, low, high."""
    far_exchanged: list
    """The same with the far context of another row."""
    far_context: list
    """Loss late minus loss late with the far context of another row, token by token: mean, low, high."""
    twin_score: float
    """The score of a random-init twin."""
    sample: str

    def headlines(self) -> list[Headline]:
        where = f"loss at token {self.late} minus loss at token {self.early}, nats"
        return [
            Headline(
                f"in-context learning score: {where}",
                self.score[0],
                self.far_exchanged[0],
                tuple(self.score[1:]),
                self.score[2] < 0 and self.far_context[2] < 0,
                f"control: far context of another row; random twin {self.twin_score:.3f}; {self.sample}",
            ),
            Headline(
                "change of the late loss by its own far context, nats",
                self.far_context[0],
                0.0,
                tuple(self.far_context[1:]),
                self.far_context[2] < 0,
            ),
        ]

    def figure(self) -> Figure:
        return figures.lines(
            list(range(1, len(self.curve) + 1)),
            {"loss": self.curve},
            title=f"In-context learning: {self.score[0]:+.2f} nats",
            x_label="token",
            y_label="loss, nats",
            bands={"loss": (self.low, self.high)},
            marks=[(self.early, "early"), (self.late, "late")],
            caption=self.sample,
        )


@method(needs=("tokens", "causal"))
@torch.no_grad()
def in_context_learning(
    model: Model,
    *,
    text: str | None = None,
    early: int = 50,
    late: int = 500,
    window: int = 32,
    batch: int = 48,
    seed: int = 0,
) -> InContextLearning:
    """Loss by position, and the loss late in a text minus the loss early in it.

    `late` is cut to the context, `early` to a quarter of that; `window` tokens are averaged at each. `text`
    None: the zoo's held-out sample, or random tokens repeated for a model without tokenizer. Intervals are
    over rows. Raises VesaliusError if the text gives fewer than two rows.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = in_context_learning(handwritten_induction(), batch=8)
    >>> result.score[0] < -2 and result.far_context[0] < -2
    True
    """
    late = min(late, model.n_ctx - 1)
    early = min(early, late // 4)
    window = max(1, min(window, early))
    rows, sample = sample_rows(model, text, length=late + 1, limit=batch, seed=seed)
    if len(rows) < 2:
        raise VesaliusError(f"the text gives {len(rows)} row of {late + 1} tokens; two or more are needed")
    late = rows.shape[1] - 1  # random rows have room for two whole copies only
    losses = _losses(model, rows)
    exchanged = rows.clone()
    far = slice(int(model.bos is not None), late - early - window)
    exchanged[:, far] = rows.roll(1, 0)[:, far]
    twin = _losses(model.random_twin(seed + 1), rows[:8])

    def ending(at: int, source: Float[Tensor, "row position"]) -> Float[Tensor, " row"]:
        return source[:, at - window : at].mean(1)

    own, other = ending(late, losses), ending(late, _losses(model, exchanged))
    low, high = bootstrap_band(losses, seed=seed)
    return InContextLearning(
        early,
        late,
        window,
        losses.mean(0),
        low,
        high,
        *(
            _estimate(values, seed)
            for values in (own - ending(early, losses), other - ending(early, losses), own - other)
        ),
        (ending(late, twin) - ending(early, twin)).mean().item(),
        sample,
    )


def _losses(model: Model, rows: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos-1"]:
    parts = progress(rows.to(model.device).split(4), "rows")
    return torch.cat([token_losses(model.logits(part).float(), part).cpu() for part in parts])


def _estimate(values: Float[Tensor, " row"], seed: int) -> list[float]:
    return [values.mean().item(), *bootstrap(values, seed=seed)]
