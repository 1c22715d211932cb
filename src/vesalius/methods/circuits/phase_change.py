"""The phase change: when in training induction heads appear, and what appears with them.

Olsson et al. 2022 (arXiv 2209.11895): within a narrow window of training, heads begin to match prefixes, the
in-context learning score falls, and the loss bends. One-layer networks show nothing of the kind. For every
checkpoint: the loss, the in-context learning score (loss late in a row minus loss early), the largest prefix
score of each layer on random tokens repeated. The change is where the largest prefix score crosses half of
its rise; how sudden it is is the share of the rise within a factor of 4 in steps, against what a steady rise
in log steps has.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.data.repeated import repeated_random_tokens
from vesalius.data.text import sample_rows
from vesalius.errors import Inapplicable
from vesalius.figures import Figure
from vesalius.formats import zoo
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, bootstrap_band, family_wise, offset_attention, token_losses
from vesalius.model import Model, load
from vesalius.result import Headline, Result

WINDOW = 4.0
"""A change is sudden if most of it happens while the number of steps grows by this factor."""


@dataclass(frozen=True)
class PhaseChange(Result):
    """One entry per checkpoint: losses and scores in nats, attention in 0..1."""

    steps: list
    loss: Float[Tensor, " checkpoint"]
    icl: Float[Tensor, " checkpoint"]
    icl_low: Float[Tensor, " checkpoint"]
    icl_high: Float[Tensor, " checkpoint"]
    icl_gain: list
    """Change of the score from `before` to the end, row by row: mean, low, high."""
    before: int
    """The last checkpoint with less than a tenth of the rise of the largest prefix score."""
    prefix: Float[Tensor, "checkpoint layer head"]
    prefix_low: Float[Tensor, " checkpoint"]
    """Interval of the head that scores most at the checkpoint."""
    prefix_high: Float[Tensor, " checkpoint"]
    chance: float
    """What the best head of a random-init network passes once in a hundred times."""
    change: float | None
    """The step at which the largest prefix score has risen half way; None if it never leaves chance."""
    sudden: float
    """Share of the rise within a factor of 4 in steps."""
    steady: float
    """The same for a rise that is steady in log steps."""
    choices: dict

    def headlines(self) -> list[Headline]:
        best = self.prefix.flatten(1).amax(1)
        peak = int(best.argmax())
        interval = (self.prefix_low[peak].item(), self.prefix_high[peak].item())
        rows = [
            Headline(
                f"largest prefix score in training, at step {self.steps[peak]}",
                best[peak].item(),
                self.chance,
                interval,
                self.change is not None,
            )
        ]
        if self.change is None:
            note = "the largest prefix score never leaves chance"
            claim = "step at which induction is half risen"
            return [*rows, Headline(claim, "none", evidence=False, note=note)]
        rows.append(Headline("step at which induction is half risen", self.change, note=self.choices["rows"]))
        rows.append(
            Headline(
                f"share of the rise within a factor of {WINDOW:g} in steps",
                self.sudden,
                self.steady,
                None,
                self.sudden > max(0.5, 1.5 * self.steady),
                "control: a rise steady in log steps",
            )
        )
        earlier = (self.icl[self.before] - self.icl[0]).item()
        claim = (
            f"change of the in-context learning score from step {self.steps[self.before]} to the end, nats"
        )
        note = "control: from the first step to that one"
        value, *interval = self.icl_gain
        return [
            *rows,
            Headline(claim, value, earlier, tuple(interval), None, note),
        ]

    def figure(self) -> Figure:
        x = [step + 1 for step in self.steps]
        marks = [] if self.change is None else [(self.change + 1, "half risen")]
        best = {f"layer {layer}": self.prefix[:, layer].amax(1) for layer in range(self.prefix.shape[1])}
        return figures.group(
            [
                figures.lines(
                    x,
                    series,
                    title=title,
                    x_label="step + 1",
                    y_label=unit,
                    marks=marks,
                    log_x=True,
                    bands=bands,
                )
                for title, series, unit, bands in (
                    ("Largest prefix score", best, "attention", None),
                    (
                        "In-context learning score",
                        {"icl": self.icl},
                        "nats",
                        {"icl": (self.icl_low, self.icl_high)},
                    ),
                    ("Loss", {"loss": self.loss}, "nats", None),
                )
            ],
            title="The phase change",
        )


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def phase_change(
    model: Model,
    *,
    checkpoints: list[str] | None = None,
    text: str | None = None,
    batch: int = 8,
    seed: int = 0,
) -> PhaseChange:
    """Loss, in-context learning and induction over a network's training, and the step of the change.

    `checkpoints` are names or folders that `load` opens, ending in step-NUMBER (None: those of a network of
    the zoo). `text` None: the zoo's held-out sample, or random tokens repeated for a model without
    tokenizer. Raises VesaliusError if there are fewer than three checkpoints.
    """
    names = checkpoints or (zoo.checkpoints(model.name) if model.name in zoo.names() else [])
    if len(names) < 3:
        raise Inapplicable(
            f"{model.name} has {len(names)} checkpoints; a change needs three, early, middle and late"
        )
    steps = [int(name.rpartition("step-")[2]) for name in names]
    return follow(model, steps, (load(name) for name in names), text=text, batch=batch, seed=seed)


def follow(
    model: Model, steps: list[int], checkpoints: Iterable[Model], *, text: str | None, batch: int, seed: int
) -> PhaseChange:
    """The same for checkpoints in hand, in the order of their `steps`; `model` is any network of their
    shape."""
    length = min(50, (model.n_ctx - 1) // 2, model.d_vocab - 2)
    repeated = repeated_random_tokens(model, length=length, batch=batch, seed=seed)
    rows, sample = sample_rows(model, text, length=model.n_ctx, limit=6 * batch, seed=seed)
    losses, scores, prefixes = [], [], []
    for checkpoint in progress(checkpoints, "checkpoints"):
        loss = torch.cat([_losses(checkpoint, part) for part in rows.split(4)])
        late, early = loss.shape[1], min(50, loss.shape[1] // 4)
        window = max(1, min(32, early - 1))
        losses.append(loss.mean())
        scores.append(loss[:, late - window :].mean(1) - loss[:, early - window : early].mean(1))
        prefixes.append(_prefix(checkpoint, repeated, length))
    prefix, icl = torch.stack(prefixes), torch.stack(scores)
    twins = torch.stack(
        [_prefix(model.random_twin(seed + 1 + k), repeated, length).mean(0) for k in range(3)]
    )
    chance = family_wise(twins)

    mean = prefix.mean(1)
    best = mean.flatten(1).argmax(1)
    rise = mean.flatten(1).amax(1)
    each = prefix.flatten(2)[torch.arange(len(best)), :, best]
    bounds = [bootstrap_band(each.T, seed=seed), bootstrap_band(icl.T, seed=seed)]
    left = bounds[0][0][int(rise.argmax())] > chance and rise.max() - rise[0] > 0.1
    change = _half_way(steps, rise) if left else None
    sudden, steady = _suddenness(steps, rise)
    before = int((rise - rise[0] < (rise.max() - rise[0]) / 10).nonzero()[-1]) if left else 0
    gain = icl[-1] - icl[before]
    late_token = rows.shape[1] - 1
    choices = {
        "rows": sample,
        "icl": f"loss at token {late_token} minus loss at token {min(50, late_token // 4)}",
    }
    return PhaseChange(
        list(steps),
        torch.stack(losses),
        icl.mean(1),
        *bounds[1],
        [gain.mean().item(), *bootstrap(gain, seed=seed)],
        before,
        mean,
        *bounds[0],
        chance,
        change,
        sudden,
        steady,
        choices,
    )


def _losses(model: Model, rows: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos-1"]:
    return token_losses(model.logits(rows).float(), rows.to(model.device)).cpu()


def _prefix(model: Model, rows: Int[Tensor, "row pos"], length: int) -> Float[Tensor, "row layer head"]:
    """Attention from each repeated token to the one after its first occurrence."""
    with record(model, "pattern@*", stop=True) as acts:
        model(rows)
    start = rows.shape[1] - length
    patterns = [acts[f"pattern@{layer}"] for layer in range(model.n_layers)]
    return torch.stack([offset_attention(p.float(), length - 1, first=start) for p in patterns], 1).cpu()


def _half_way(steps: list[int], rise: Float[Tensor, " checkpoint"]) -> float:
    """The step, interpolated in log steps, at which `rise` first crosses the middle between its start and its
    peak."""
    middle = (rise[0] + rise.max()) / 2
    after = int((rise >= middle).nonzero()[0])
    low, high = rise[after - 1].item(), rise[after].item()
    share = (middle.item() - low) / (high - low)
    begin, end = (math.log(step + 1) for step in steps[after - 1 : after + 1])
    return math.exp(begin + share * (end - begin)) - 1


def _suddenness(steps: list[int], rise: Float[Tensor, " checkpoint"]) -> tuple[float, float]:
    """Largest share of the rise to its peak within a factor of WINDOW in steps, and that of a steady rise."""
    at = torch.tensor(steps, dtype=torch.float64).add(1).log()
    climb = rise.cummax(0).values.double()
    inside = (at[None] >= at[:, None]) & (at[None] - at[:, None] <= math.log(WINDOW) + 1e-9)

    def share(curve: Float[Tensor, " checkpoint"]) -> float:
        total = (curve[-1] - curve[0]).clamp(min=1e-12)
        return ((curve[None] - curve[:, None]).masked_fill(~inside, 0).max() / total).item()

    return share(climb), share(at)
