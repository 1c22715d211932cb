"""How much of the loss each order of path explains: direct, single heads, heads through heads.

Elhage et al. 2021 (transformer-circuits.pub/2021/framework, "term importance analysis"). With its attention
patterns held fixed an attention-only network is a sum over paths through 0, 1, 2, … heads. The exact ablation
of all paths of more than n heads takes n + 2 forward passes:

1. run the model and keep every attention pattern;
2. run again with the patterns frozen and zeros in place of what the heads write: the loss of the direct path.
   What the heads would have written is what they read straight from the embedding; keep it;
3. run again, writing what the previous pass kept: the loss with one head more, and so on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene, record
from vesalius.data.text import sample_rows
from vesalius.edits import freeze
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap_band, token_losses
from vesalius.model import Model
from vesalius.result import Headline, Result

Heads = dict[int, Float[Tensor, "batch head pos d_head"]]
"""What the heads of each layer write, before W_O."""


@dataclass(frozen=True)
class TermImportance(Result):
    """Losses and reductions of the loss in nats; entry n of `losses` is with all paths of at most n heads."""

    losses: Float[Tensor, " order"]
    reductions: Float[Tensor, " order"]
    """Loss of one order less minus this one; order 0 against a uniform guess, ln d_vocab."""
    low: Float[Tensor, " order"]
    high: Float[Tensor, " order"]
    twin_reductions: Float[Tensor, " order"]
    """The same for a random-init twin on the same tokens."""
    full_loss: float
    alone: Float[Tensor, " layer"]
    """Reduction by the single heads of one layer, given the direct path only."""
    given_others: Float[Tensor, " layer"]
    """Reduction by the single heads of one layer, given the direct path and all other layers' single
    heads."""
    layer_low: Float[Tensor, "2 layer"]
    layer_high: Float[Tensor, "2 layer"]
    sample: str

    def headlines(self) -> list[Headline]:
        names = [
            "the direct path",
            "single heads",
            *[f"paths through {n} heads" for n in range(2, len(self.losses))],
        ]
        rows = []
        for order, name in enumerate(names):
            value, control = self.reductions[order].item(), self.twin_reductions[order].item()
            interval = (self.low[order].item(), self.high[order].item())
            against = "a uniform guess" if order == 0 else f"order {order - 1}"
            claim = f"loss reduction by {name} against {against}, nats"
            rows.append(Headline(claim, value, control, interval, interval[0] > max(0.0, control)))
        for layer, (alone, given) in enumerate(zip(self.alone.tolist(), self.given_others.tolist())):
            interval = (self.layer_low[1, layer].item(), self.layer_high[1, layer].item())
            claim = f"loss reduction by layer {layer}'s single heads given all others, nats"
            rows.append(
                Headline(claim, given, None, interval, note=f"{alone:.2f} given the direct path alone")
            )
        return rows

    def figure(self) -> Figure:
        orders = [f"order {order}" for order in range(len(self.losses))]
        intervals = {"this model": list(zip(self.low.tolist(), self.high.tolist()))}
        intervals["random twin"] = [(value, value) for value in self.twin_reductions.tolist()]
        series = {"this model": self.reductions, "random twin": self.twin_reductions}
        layers = [f"layer {layer}" for layer in range(len(self.alone))]
        spans = [list(zip(low, high)) for low, high in zip(self.layer_low.tolist(), self.layer_high.tolist())]
        by_layer = {"given the direct path": self.alone, "given all other layers": self.given_others}
        title, unit = "How much each order of path explains", "loss reduction, nats"
        return figures.group(
            [
                figures.bars(
                    orders, series, title="By order", y_label=unit, intervals=intervals, caption=self.sample
                ),
                figures.bars(
                    layers,
                    by_layer,
                    title="Single heads, by layer",
                    y_label=unit,
                    intervals=dict(zip(by_layer, spans)),
                ),
            ],
            title=title,
        )


@method(needs=("tokens", "attention", "causal", "attention_only", "no_norm"))
@torch.no_grad()
def term_importance(
    model: Model,
    *,
    text: str | None = None,
    order: int = 2,
    length: int = 128,
    batch: int = 32,
    seed: int = 0,
) -> TermImportance:
    """Loss reductions by the direct path, by single heads and by virtual heads, exactly.

    `text` None: the zoo's held-out sample, or random tokens repeated for a model without tokenizer. `order`
    beyond the number of layers adds nothing and is cut. Intervals are over `batch` rows. Biases of the
    attention output, if any, belong to the direct path. Raises VesaliusError for a negative order.

    >>> from vesalius.testbed import random_attn
    >>> result = term_importance(random_attn(n_layers=2, seed=0), batch=2, length=16)
    >>> abs(result.losses[-1].item() - result.full_loss) < 1e-5
    True
    """
    if order < 0:
        raise VesaliusError(f"order is {order}; it counts heads on a path, so 0 or more")
    order = min(order, model.n_layers)
    rows, sample = sample_rows(model, text, length=min(length, model.n_ctx), limit=batch, seed=seed)
    losses, full, parts = (
        torch.cat(found)
        for found in zip(*[_by_order(model, r, order) for r in progress(rows.split(8), "rows")])
    )
    twin = torch.cat([_by_order(model.random_twin(seed + 1), r, order)[0] for r in rows[:8].split(8)])

    reductions = _reductions(model, losses)
    low, high = bootstrap_band(reductions, seed=seed)
    layers = torch.stack([losses[:, :1] - parts[:, 0], parts[:, 1] - losses[:, min(1, order), None]], 1)
    layer_low, layer_high = bootstrap_band(layers, seed=seed)
    return TermImportance(
        losses.mean(0),
        reductions.mean(0),
        low,
        high,
        _reductions(model, twin).mean(0),
        full.mean().item(),
        *layers.mean(0),
        layer_low,
        layer_high,
        sample,
    )


def _reductions(model: Model, losses: Float[Tensor, "row order"]) -> Float[Tensor, "row order"]:
    uniform = torch.full_like(losses[:, :1], model.d_vocab).log()
    return -torch.cat([uniform, losses], 1).diff(dim=1)


def _by_order(
    model: Model, rows: Int[Tensor, "row pos"], order: int
) -> tuple[Float[Tensor, "row order"], Float[Tensor, " row"], Float[Tensor, "row 2 layer"]]:
    """Each row's loss by order, with everything, and with the single heads of one layer only or of all
    others."""
    layers = range(model.n_layers)
    with record(model, "pattern@*") as acts:
        full = _row_losses(model, rows)
    frozen = {f"pattern@{layer}": freeze(acts[f"pattern@{layer}"]) for layer in layers}
    write = partial(_writing, model, rows, frozen)

    nothing: Heads = {}
    loss, single = write(nothing)
    losses, written = [loss], single
    for _ in range(order):
        loss, written = write(written)
        losses.append(loss)
    only = [write({layer: single[layer]})[0] for layer in layers]
    without = [write({other: single[other] for other in layers if other != layer})[0] for layer in layers]
    return torch.stack(losses, 1), full, torch.stack([torch.stack(only, 1), torch.stack(without, 1)], 1)


def _writing(
    model: Model, rows: Int[Tensor, "row pos"], frozen: dict[str, Callable], written: Heads
) -> tuple[Float[Tensor, " row"], Heads]:
    """Loss of each row when the heads write `written` (layers left out write zeros), and what they would
    write."""
    would: Heads = {}

    def exchange(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            would[layer] = z
            return written[layer] if layer in written else torch.zeros_like(z)

        return edit

    with (
        intervene(model, frozen),
        intervene(model, {f"z@{layer}": exchange(layer) for layer in range(model.n_layers)}),
    ):
        return _row_losses(model, rows), would


def _row_losses(model: Model, rows: Int[Tensor, "row pos"]) -> Float[Tensor, " row"]:
    return token_losses(model.logits(rows).float(), rows.to(model.device)).mean(1).cpu()
