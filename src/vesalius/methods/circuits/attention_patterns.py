"""Attention patterns on a text, head by head, with the numbers that say which heads are worth looking at.

For every head: the entropy of its attention as a share of what it would be if all tokens so far were attended
alike (0: always one token; 1: all alike), how far back it looks, and how much goes to the present, the
previous and the first token (Clark et al. 2019, arXiv 1906.04341). Controls: attention to all tokens alike,
and random-init twins on the same text.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.data.text import sample_rows
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap_band, entropy, family_wise, offset_attention, require_finite
from vesalius.model import Model
from vesalius.result import Headline, Result


@dataclass(frozen=True)
class AttentionPatterns(Result):
    """Patterns of one row, `[layer, head, query, key]`, and means over all rows, `[layer, head]`."""

    patterns: Float[Tensor, "shown head query key"]
    tokens: list
    layers: list
    """The layers that `patterns` shows; the statistics are of all."""
    spread: Float[Tensor, "layer head"]
    """Entropy as a share of that of attention to all tokens alike: 0 is one token, 1 all alike."""
    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]
    distance: Float[Tensor, "layer head"]
    """Mean number of tokens looked back."""
    uniform_distance: float
    shares: dict
    """Mean attention to the present, the previous and the first token."""
    twin_spread: Float[Tensor, "twin layer head"]
    sample: str

    def headlines(self) -> list[Headline]:
        chance = -family_wise(-self.twin_spread)
        layer, head = divmod(int(self.spread.argmin()), self.spread.shape[1])
        interval = (self.low[layer, head].item(), self.high[layer, head].item())
        value, sharp = self.spread[layer, head].item(), self.high < chance
        far, near = (
            divmod(int(at), self.spread.shape[1]) for at in (self.distance.argmax(), self.distance.argmin())
        )
        names = [f"{l}.{h}" for l, h in sharp.nonzero().tolist()]
        listed = ", ".join(names[:8]) + " …" * (len(names) > 8)
        note = f"{len(names)} of {sharp.numel()} heads: {listed}"
        return [
            Headline(
                f"spread of attention of head {layer}.{head}, the sharpest (1: all tokens alike)",
                value,
                chance,
                interval,
                interval[1] < chance,
                f"sharper than random-init twins: {note}",
            ),
            Headline(
                f"mean distance of head {far[0]}.{far[1]}, which looks back furthest, tokens",
                self.distance[far].item(),
                self.uniform_distance,
                note=f"{near[0]}.{near[1]}: {self.distance[near].item():.1f}; control: all tokens alike",
            ),
        ]

    def figure(self) -> Figure:
        heads = [f"{layer}.{head}" for layer in self.layers for head in range(self.patterns.shape[1])]
        values = torch.stack([self.spread, *self.shares.values()])
        return figures.group(
            [
                figures.attention(
                    self.patterns.flatten(0, 1),
                    self.tokens,
                    title="Attention",
                    heads=heads,
                    caption=self.sample,
                ),
                figures.heatmap(
                    values,
                    title="What each head attends to",
                    panels=["spread", *self.shares],
                    x_label="head",
                    y_label="layer",
                    value_label="share",
                    diverging=False,
                ),
            ],
            title="Attention patterns",
        )


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def attention_patterns(
    model: Model,
    *,
    text: str | None = None,
    layer: int | None = None,
    length: int = 48,
    batch: int = 8,
    twins: int = 3,
    seed: int = 0,
) -> AttentionPatterns:
    """The patterns of every head on a text (of one `layer`, or all), and statistics over rows of it.

    `text` None: the zoo's held-out sample, or random tokens repeated for a model without tokenizer. A `text`
    shorter than `length` is one row. Raises VesaliusError for a layer the model has not.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = attention_patterns(handwritten_induction(), batch=2)
    >>> round(result.shares["previous"][0, 0].item(), 2)
    1.0
    """
    if layer is not None and not 0 <= layer < model.n_layers:
        raise VesaliusError(f"layer {layer} was asked for; {model.name} has layers 0 to {model.n_layers - 1}")
    if text is not None:
        length = min(length, model.tokens(text).shape[1])
    rows, sample = sample_rows(model, text, length=min(length, model.n_ctx), limit=batch, seed=seed)
    found = [_statistics(model, part) for part in progress(rows.split(4), "rows")]
    spread, distance, *shares = (torch.cat(parts) for parts in zip(*found))
    low, high = bootstrap_band(spread, seed=seed)
    nulls = [
        _statistics(model.random_twin(seed + 1 + number), rows[:4])[0].mean(0) for number in range(twins)
    ]

    layers = range(model.n_layers) if layer is None else [layer]
    with record(model, [f"pattern@{layer}" for layer in layers]) as acts:
        model(rows[:1])
    shown = torch.stack([acts[f"pattern@{layer}"][0] for layer in layers]).float().cpu()
    means = dict(zip(("present", "previous", "first"), (share.mean(0) for share in shares)))
    return AttentionPatterns(
        shown,
        model.strings(rows[0]),
        list(layers),
        spread.mean(0),
        low,
        high,
        distance.mean(0),
        (rows.shape[1] - 1) / 4,
        means,
        torch.stack(nulls),
        sample,
    )


def _statistics(model: Model, rows: Int[Tensor, "row pos"]) -> tuple[Float[Tensor, "row layer head"], ...]:
    """Spread, distance, and attention to the present, previous and first token; queries from the second token
    on."""
    with record(model, "pattern@*") as acts:
        model(rows)
    found = []
    for layer in range(model.n_layers):
        pattern = require_finite(acts[f"pattern@{layer}"], f"pattern@{layer}").float()
        query = torch.arange(pattern.shape[-1], device=pattern.device)
        back = (query[:, None] - query).clamp(min=0)
        spread = (entropy(pattern)[..., 1:] / (query[1:] + 1).log()).mean(-1)
        distance = (pattern * back).sum(-1).mean(-1)
        present, previous = offset_attention(pattern, 0, first=1), offset_attention(pattern, 1)
        found.append([spread, distance, present, previous, pattern[..., 1:, 0].mean(-1)])
    return tuple(torch.stack(statistic, 1).cpu() for statistic in zip(*found))
