"""Induction heads: heads that look at what followed the last time.

Olsson et al. 2022 (In-context Learning and Induction Heads, arXiv 2209.11895) and Elhage et al. 2021
(transformer-circuits.pub/2021/framework). On rows [BOS, r, r] of random tokens r:

1. five scores per head, each a mean attention: from a repeated token to the one after its first occurrence
   (prefix matching) or to the first occurrence itself (duplicate), and from every token to the one before
   (previous), to itself (current) and to the first position (first);
2. the prefix score again where nothing should be found: on random-init twins, and at the same distance in
   rows whose second half is new, which catches a head that likes a distance rather than a token;
3. from weights alone, whether a head copies (eigenvalues of its OV circuit) and whether its keys, as written
   by the best previous-token head below, match its queries token by token (eigenvalues of the composed QK
   circuit). In a network without MLPs an induction head has 1 for both.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.data.repeated import repeated_random_tokens
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import (
    bootstrap,
    bootstrap_band,
    family_wise,
    offset_attention,
    require_finite,
    token_losses,
)
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.circuits import norm_handling, ov, qk
from vesalius.weights.factored import Factored

SCORES = ("prefix", "previous", "duplicate", "current", "first")


@dataclass(frozen=True)
class InductionHeads(Result):
    """Attention scores in 0..1 per head, `[layer, head]`; losses in nats; eigenvalue scores in -1..1."""

    scores: dict
    """Each of SCORES, the mean over rows; `low` and `high` bound the prefix score."""
    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]
    unrepeated: Float[Tensor, "layer head"]
    """Attention at the distance of the prefix score when the second half is not a repetition."""
    twins: Float[Tensor, "twin layer head"]
    """Prefix scores of random-init twins."""
    chance: float
    """What the best head of a random-init network passes once in a hundred times."""
    found: list
    """Induction heads `[layer, head]`, strongest first."""
    losses: dict
    """Mean loss on the first and on the second half, each `[mean, low, high]`."""
    copying: Float[Tensor, "layer head"] | None
    matching: Float[Tensor, "layer head"] | None
    choices: dict

    @property
    def top(self) -> tuple[int, int]:
        """The head with the largest prefix score, found or not."""
        prefix = self.scores["prefix"]
        return divmod(int(prefix.argmax()), prefix.shape[1])

    def headlines(self) -> list[Headline]:
        layer, head = self.top
        prefix, control = self.scores["prefix"][layer, head], self.unrepeated[layer, head]
        interval = (self.low[layer, head].item(), self.high[layer, head].item())
        found = ", ".join(f"{l}.{h}" for l, h in self.found) or "none"
        rows = [
            Headline(
                f"prefix matching of head {layer}.{head}, the strongest",
                prefix.item(),
                max(self.chance, control.item()),
                interval,
                bool(self.found),
                f"induction heads: {found}",
            ),
            Headline(
                "loss on the repetition, nats",
                self.losses["second"][0],
                self.losses["first"][0],
                tuple(self.losses["second"][1:]),
                self.losses["second"][2] < self.losses["first"][1],
                "control: first half",
            ),
        ]
        if self.matching is not None:
            note = f"copying {self.copying[layer, head]:.2f}; {self.choices['weights']}"
            rows.append(
                Headline(
                    f"key matching of {layer}.{head} by weights", self.matching[layer, head].item(), note=note
                )
            )
        return rows

    def figure(self) -> Figure:
        panels = torch.stack([self.scores[name] for name in SCORES])
        heads = [str(head) for head in range(panels.shape[2])]
        drawn = [
            figures.heatmap(
                panels,
                title="Attention on random tokens, repeated",
                panels=list(SCORES),
                x=heads,
                x_label="head",
                y_label="layer",
                value_label="mean attention",
                diverging=False,
                caption=f"Above {self.chance:.3f} one random-init network in a hundred has a head.",
            )
        ]
        if self.matching is not None:
            pairs = [(layer, head) for layer in range(panels.shape[1]) for head in range(panels.shape[2])]
            pairs.sort(key=lambda pair: list(pair) in self.found)  # the last are drawn on top
            drawn.append(
                figures.scatter(
                    [self.copying[pair].item() for pair in pairs],
                    [self.matching[pair].item() for pair in pairs],
                    title="Induction from weights alone",
                    labels=[f"{layer}.{head}" for layer, head in pairs],
                    x_label="copying (OV)",
                    y_label="matching (QK through a previous-token head)",
                    groups=["induction" if list(pair) in self.found else "other" for pair in pairs],
                    caption=self.choices["weights"],
                )
            )
        return figures.group(drawn, title=f"Induction heads: {len(self.found)} found")


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def induction_heads(
    model: Model,
    *,
    length: int | None = None,
    batch: int = 16,
    threshold: float = 0.1,
    twins: int = 3,
    seed: int = 0,
) -> InductionHeads:
    """Heads that attend to what followed the present token last time.

    `length` is that of r (None: 50, or half the context). A head is found if the whole interval of its prefix
    score lies above the family-wise 1% level of random-init twins, and it exceeds by `threshold` its
    attention at the same distance where nothing repeats. Raises VesaliusError if [BOS, r, r] does not fit the
    context.

    >>> from vesalius.testbed import handwritten_induction
    >>> induction_heads(handwritten_induction(), batch=2).found
    [[1, 0]]
    """
    length = length or min(50, (model.n_ctx - 1) // 2, model.d_vocab - 2)
    ids = repeated_random_tokens(model, length=length, batch=batch, seed=seed)
    if ids.shape[1] > model.n_ctx:
        raise VesaliusError(
            f"length {length} makes rows of {ids.shape[1]} tokens; {model.name} reads {model.n_ctx}"
        )
    scores, losses = _scored(model, ids, length)
    fresh = ids.clone()
    fresh[:, -length:] = repeated_random_tokens(model, length=length, batch=batch, seed=seed + 1)[:, -length:]
    unrepeated = _scored(model, fresh, length)[0]["prefix"].mean(0)
    nulls = [model.random_twin(seed + 1 + number) for number in range(twins)]
    null = torch.stack(
        [_scored(twin, ids, length)[0]["prefix"].mean(0) for twin in progress(nulls, "random-init twins")]
    )

    prefix, chance = scores["prefix"].mean(0), family_wise(null)
    low, high = bootstrap_band(scores["prefix"], seed=seed)
    passed = (low > chance) & (prefix - unrepeated > threshold)
    found = [list(divmod(int(flat), model.n_heads)) for flat in prefix.flatten().argsort(descending=True)]
    found = [pair for pair in found if passed[tuple(pair)]]
    first, second = losses[:, : ids.shape[1] - 1 - length].mean(1), losses[:, -length:].mean(1)
    halves = {
        name: [half.mean().item(), *bootstrap(half, seed=seed)]
        for name, half in (("first", first), ("second", second))
    }
    means = {name: value.mean(0) for name, value in scores.items()}

    readable = model.has("W_Q") and model.has("W_E")
    copying, matching = _from_weights(model, means["previous"]) if readable else (None, None)
    choices = {
        "length": length,
        "batch": batch,
        "threshold": threshold,
        "weights": norm_handling(model, "fold") if readable else f"{model.name} has no weight readers",
    }
    return InductionHeads(
        means, low, high, unrepeated, null, chance, found, halves, copying, matching, choices
    )


def _scored(
    model: Model, ids: Int[Tensor, "batch pos"], length: int
) -> tuple[dict[str, Float[Tensor, "batch layer head"]], Float[Tensor, "batch pos-1"]]:
    """All five scores of every row, and its losses; a few rows at a time, since patterns are large."""
    scores, losses = {name: [] for name in SCORES}, []
    second = ids.shape[1] - length
    for rows in ids.split(4):
        with record(model, "pattern@*") as acts:
            losses.append(token_losses(model.logits(rows).float(), rows.to(model.device)).cpu())
        patterns = [
            require_finite(acts[f"pattern@{layer}"], f"pattern@{layer}").float()
            for layer in range(model.n_layers)
        ]
        for name, offset, start in (
            ("prefix", length - 1, second),
            ("duplicate", length, second),
            ("previous", 1, 1),
            ("current", 0, 1),
        ):
            scores[name].append(
                torch.stack([offset_attention(p, offset, first=start) for p in patterns], 1).cpu()
            )
        scores["first"].append(torch.stack([p[:, :, 1:, 0].mean(-1) for p in patterns], 1).cpu())
    return {name: torch.cat(parts) for name, parts in scores.items()}, torch.cat(losses)


def _from_weights(
    model: Model, previous: Float[Tensor, "layer head"]
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """ΣRe λ / Σ|λ| of W_E W_OV W_U, and of W_E W_QK (W_OV of the best previous-token head below)ᵀ W_Eᵀ."""
    W_E, W_U = model.weight("W_E").float(), model.weight("W_U").float()
    through, gram = W_U @ W_E, W_E.T @ W_E  # eig(left right G) = eig(right G left): d_head × d_head
    copying, matching = torch.zeros_like(previous), torch.full_like(previous, torch.nan)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            moved = ov(model, layer, head)
            copying[layer, head] = _positive_share(moved @ through)
            if layer:
                best = divmod(int(previous[:layer].argmax()), model.n_heads)
                matching[layer, head] = _positive_share(qk(model, layer, head) @ ov(model, *best).T @ gram)
    return copying, matching


def _positive_share(circuit: Factored) -> Float[Tensor, ""]:
    values = circuit.eigenvalues()
    return values.real.sum() / values.abs().sum()
