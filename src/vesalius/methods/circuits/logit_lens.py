"""The logit lens: what the network would say if it stopped after each layer.

nostalgebraist 2020 (interpreting GPT: the logit lens). The residual stream after every layer goes through the
final norm, computed anew on that stream, and the unembedding. Three numbers per layer compare it with the
end: how often the first choice is already the final one, the divergence from the final distribution, and the
rank of the true next token. Controls: random-init twins, in which every layer resembles the last because none
changes much, and the same layer read at another position of the row, which knows the kind of text and not the
place.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.data.text import sample_rows
from vesalius.errors import Inapplicable
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap_band, family_wise, kl, require_finite
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.readout import unembedded


@dataclass(frozen=True)
class LogitLens(Result):
    """One row per layer, from the embedding (0) to the last: shares in 0..1, divergences in nats, ranks from
    0."""

    tokens: list
    """The tokens of the row that is shown."""
    top: list
    """First choice at every layer and position of that row."""
    probability: Float[Tensor, "layer pos"]
    """Of the first choice."""
    rank: Float[Tensor, "layer pos"]
    """Of the true next token (the last position has none: -1)."""
    agreement: Float[Tensor, " layer"]
    """Share of positions whose first choice is the final one; over all rows, as are the next three."""
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    divergence: Float[Tensor, " layer"]
    """Of the lens's distribution from the final one, in nats."""
    mean_rank: Float[Tensor, " layer"]
    elsewhere: Float[Tensor, "2 layer"]
    """Agreement and divergence of the same layer read at another position."""
    twins: Float[Tensor, "twin layer"]
    """Agreement in random-init twins."""
    sample: str

    def headlines(self) -> list[Headline]:
        last = len(self.agreement) - 1
        settled = next(layer for layer in range(last + 1) if self.agreement[layer:].min() >= 0.5)
        rows = [
            Headline("layers after which half of all first choices are final", float(settled), float(last))
        ]
        middle = last // 2
        for layer in sorted({middle, last - 1} - {last}):
            value = self.agreement[layer].item()
            control = max(self.elsewhere[0, layer].item(), family_wise(self.twins[:, layer]))
            interval = (self.low[layer].item(), self.high[layer].item())
            claim = f"share of first choices final after layer {layer} of {last}"
            note = f"{self.divergence[layer]:.2f} nats from the end, {self.elsewhere[1, layer]:.2f} elsewhere"
            rows.append(Headline(claim, value, control, interval, interval[0] > control, note))
        return rows

    def figure(self) -> Figure:
        layers = range(len(self.top) - 1, -1, -1)
        cells = [
            [
                str(layer),
                *({"text": t, "value": p} for t, p in zip(self.top[layer], self.probability[layer].tolist())),
            ]
            for layer in layers
        ]
        series = {"this position": self.agreement, "another position": self.elsewhere[0]}
        series["random-init twins"] = self.twins.mean(0)
        return figures.group(
            [
                figures.table(
                    ["layer", *self.tokens],
                    cells,
                    title="First choice after each layer",
                    caption="Coloured by its probability; the final norm is computed anew at every layer.",
                ),
                figures.lines(
                    list(range(len(self.agreement))),
                    series,
                    title="First choices that are final",
                    x_label="layer",
                    y_label="share of positions",
                    bands={"this position": (self.low, self.high)},
                    caption=self.sample,
                ),
            ],
            title="Logit lens",
        )


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def logit_lens(
    model: Model, *, text: str | None = None, length: int = 32, batch: int = 8, seed: int = 0
) -> LogitLens:
    """First choice, probability and rank of the next token, read from the residual stream after every layer.

    The final norm is computed anew on each stream. `text` is shown, and cut into rows of `length` for the
    statistics; None: the zoo's held-out sample, or random tokens repeated. Raises VesaliusError if the lens
    at the last layer does not give the model's own logits.

    >>> from vesalius.testbed import handwritten_induction
    >>> logit_lens(handwritten_induction()).agreement[-1].item()
    1.0
    """
    rows, sample = sample_rows(model, text, length=min(length, model.n_ctx), limit=batch, seed=seed)
    found = [_lens(model, row, number) for number, row in enumerate(progress(rows.split(1), "rows"))]
    statistics = torch.stack([statistic for _, _, _, statistic in found])  # [row, statistic, layer]
    low, high = bootstrap_band(statistics[:, 0], seed=seed)
    agreement, divergence, mean_rank, *elsewhere = statistics.mean(0)
    twins = [model.random_twin(seed + 1 + number) for number in range(3)]
    agreements = [
        torch.stack([_lens(twin, row, 0)[3][0] for row in rows[:4].split(1)]).mean(0) for twin in twins
    ]
    top, probability, rank, _ = found[0]
    return LogitLens(
        model.strings(rows[0]),
        [model.strings(choices) for choices in top],
        probability,
        rank,
        agreement,
        low,
        high,
        divergence,
        mean_rank,
        torch.stack(elsewhere),
        torch.stack(agreements),
        sample,
    )


def _lens(
    model: Model, row: Int[Tensor, "1 pos"], seed: int
) -> tuple[
    Int[Tensor, "layer pos"], Float[Tensor, "layer pos"], Float[Tensor, "layer pos"], Float[Tensor, "5 layer"]
]:
    """First choices, their probability, ranks of the next token; and the five statistics of every layer."""
    with record(model, ["resid_pre@0", "resid_post@*", "logits"]) as acts:
        model(row)
    streams = [acts["resid_pre@0"], *acts.stack("resid_post@*")]
    final = acts["logits"][0].float()
    moved = torch.randperm(row.shape[1], generator=torch.Generator().manual_seed(seed)).roll(1)
    tops, probabilities, ranks, statistics = [], [], [], []
    for layer, stream in enumerate(streams):
        logits = unembedded(
            model, require_finite(stream[0], f"the residual stream after layer {layer}")
        ).float()
        probability, top = logits.softmax(-1).max(-1)
        next_logit = logits[:-1].gather(1, row[0, 1:, None].to(logits.device))
        rank = torch.cat([(logits[:-1] > next_logit).sum(1), torch.tensor([-1], device=logits.device)])
        agrees, elsewhere = ((choice == final.argmax(-1)).float().mean() for choice in (top, top[moved]))
        apart, apart_elsewhere = (kl(final, other).mean() for other in (logits, logits[moved]))
        statistics.append(torch.stack([agrees, apart, rank[:-1].float().mean(), elsewhere, apart_elsewhere]))
        tops.append(top.cpu())
        probabilities.append(probability.cpu())
        ranks.append(rank.float().cpu())
    missed = (kl(final, logits).mean()).item()
    if missed > 1e-3:
        raise Inapplicable(
            f"the lens at the last layer of {model.name} is {missed:.2g} nats from its logits; it needs a "
            "final norm and an unembedding alone after the last layer"
        )
    return torch.stack(tops), torch.stack(probabilities), torch.stack(ranks), torch.stack(statistics, 1).cpu()
