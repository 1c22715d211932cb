"""What a latent does for the next tokens: it is taken away in a whole context, and the network runs again.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features): f(x)·d is subtracted
from the activations wherever the latent is active, with the rest of them as it is, what the dictionary does not explain
included. The change of each token's log probability is what the latent did for it: above 0 it helped, below 0 it hurt.

1. of each latent the contexts in which it is strongest, `shown` of them drawn token by token;
2. the mean over all predictions made where the latent is active, with an interval over contexts;
3. the same with random directions as long as the latent's own, taken away at the same places by the same values.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import Edit, intervene
from vesalius.dictionaries import Dictionary
from vesalius.figures import Figure
from vesalius.latents.inputs import (
    Inputs,
    activity_of,
    codes_of,
    inputs_of,
    moved,
    named_latents,
    random_directions,
    reads,
    written,
)
from vesalius.method import method, progress
from vesalius.metrics import family_wise, percentiles, resampled, token_losses
from vesalius.model import Model
from vesalius.result import Headline, Result

USUAL = 3
"""Latents that are looked at if none are named."""


@dataclass(frozen=True)
class FeatureAblation(Result):
    """Effects in nats that a token gains from the latent; the first axis is that of `latents`."""

    site: str
    latents: list
    effects: Float[Tensor, " latent"]
    """Means over the predictions that are made where the latent is active."""
    low: Float[Tensor, " latent"]
    high: Float[Tensor, " latent"]
    sizes: Float[Tensor, " latent"]
    """The same of the sizes of effects, whether they helped or hurt."""
    random: Float[Tensor, "direction latent"]
    """Effects of random directions instead."""
    random_sizes: Float[Tensor, "direction latent"]
    chance: float
    """What the best of as many latents exceeds once in a hundred times, if it is a random direction."""
    active: Int[Tensor, " latent"]
    """Predictions that were made where the latent is active."""
    contexts: list
    """Of each latent, those shown: `{"tokens", "values", "effects", "random"}`, one number a token."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows = []
        for number, latent in enumerate(self.latents):
            interval = (self.low[number].item(), self.high[number].item())
            size, other = self.sizes[number].item(), self.random_sizes[:, number].mean().item()
            rows.append(
                Headline(
                    f"nats that a token gains where latent {latent} predicts it",
                    self.effects[number].item(),
                    self.chance,
                    interval,
                    interval[0] > max(self.chance, 0),
                    f"control: random directions; {int(self.active[number])} predictions; size of effects {size:.3g}, "
                    f"of random directions {other:.3g}",
                )
            )
        return rows or [
            Headline("latents that are active in this text", 0.0, evidence=False, note="control: none")
        ]

    def figure(self) -> Figure:
        if not self.latents:
            return figures.table(["latent"], [], title="No latent is active in this text")
        names = [f"latent {latent}" for latent in self.latents]
        drawn = [
            figures.bars(
                names,
                {"latent": self.effects, "random directions, mean": self.random.mean(0)},
                intervals={
                    "latent": list(zip(self.low.tolist(), self.high.tolist())),
                    "random directions, mean": list(
                        zip(self.random.amin(0).tolist(), self.random.amax(0).tolist())
                    ),
                },
                title="What the predicted token gains where the latent is active",
                y_label="nats",
                caption="Whiskers: 95% over contexts; of random directions, the least and the largest.",
            )
        ]
        for name, shown in zip(names, self.contexts):
            drawn.append(
                figures.tokens(
                    [],
                    [
                        {
                            "label": f"context {row['context']}",
                            "tokens": row["tokens"],
                            "layers": {
                                "activation": row["values"],
                                "helped (+) or hurt (−), nats": row["effects"],
                                "random direction, nats": row["random"],
                            },
                        }
                        for row in shown
                    ],
                    title=f"{name[0].upper()}{name[1:]}",
                    caption="Ground: where it is active. Bars: what each token gains from it, and from a random "
                    "direction at the same places.",
                )
            )
        return figures.group(drawn, title="What latents do for the next token")


@method(needs=("tokens", "causal"))
def feature_ablation(
    model: Model,
    dictionary: Dictionary,
    *,
    latents: list[int] | None = None,
    text: str | None = None,
    contexts: int = 32,
    length: int = 64,
    examples: int = 8,
    shown: int = 3,
    directions: int = 4,
    seed: int = 0,
) -> FeatureAblation:
    """What each of some latents does for the prediction of the next token, where it is active.

    `latents` are numbers (None: those of the largest values in the text), `text` is what is read (None: the held-out
    sample), and of its contexts the `examples` in which a latent is strongest are used. A latent helps if the interval
    of its mean effect lies above what one in a hundred families of random directions exceeds.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    assert inputs.ids is not None and inputs.counts is not None
    activity = activity_of(model, dictionary, inputs)
    chosen = named_latents(latents, activity, usual=USUAL)
    chosen = [latent for latent in chosen if activity.maxima[latent] > 0]
    peaks = _peaks(model, dictionary, inputs, chosen)

    rows, nulls, null_sizes = [], [], []
    for number, latent in enumerate(progress(chosen, "latents")):
        strongest = peaks[:, number].topk(min(examples, len(inputs)))
        kept = strongest.indices[strongest.values > 0]
        ids, counts = inputs.ids[kept], inputs.counts[kept]
        along = written(dictionary, latent)
        values = dictionary[latent].value(model.value_at(reads(dictionary), ids)).float().cpu() * counts
        before = token_losses(model.logits(ids).float(), ids.to(model.device))
        own = _effects(model, ids, moved(dictionary, latent, torch.zeros_like, counts=counts), before)
        others = random_directions(along, directions, seed=seed + 1 + latent)
        edits = [moved(dictionary, latent, torch.zeros_like, counts=counts, direction=one) for one in others]
        random = [_effects(model, ids, edit, before) for edit in edits]
        rows.append(_Ablated(latent, kept, ids, values, own, random[0]))
        nulls.append([_mean_where(values, effects).mean().item() for effects in random])
        null_sizes.append([_mean_where(values, effects.abs()).mean().item() for effects in random])
    null = torch.tensor(nulls).T
    means = [_mean_where(row.values, row.effects) for row in rows]
    bounds = [percentiles(resampled(mean, seed=seed)) for mean in means]
    return FeatureAblation(
        site=dictionary.site,
        latents=chosen,
        effects=torch.tensor([mean.mean().item() for mean in means]),
        low=torch.tensor([low.item() for low, _ in bounds]),
        high=torch.tensor([high.item() for _, high in bounds]),
        sizes=torch.tensor([_mean_where(row.values, row.effects.abs()).mean().item() for row in rows]),
        random=null,
        random_sizes=torch.tensor(null_sizes).T,
        chance=family_wise(null) if chosen else 0.0,
        active=torch.tensor([int((row.values[:, :-1] > 0).sum()) for row in rows], dtype=torch.long),
        contexts=[[_drawn(model, row, place) for place in range(min(shown, len(row.ids)))] for row in rows],
        choices={
            "data": inputs.described,
            "data_hash": inputs.hash,
            "ablation": "f(x)·d is subtracted, the error of the reconstruction stays",
            "contexts of a latent": examples,
        },
    )


class _Ablated(NamedTuple):
    """One latent in its strongest contexts."""

    latent: int
    contexts: Int[Tensor, " context"]
    ids: Int[Tensor, "context pos"]
    values: Float[Tensor, "context pos"]
    effects: Float[Tensor, "context pos-1"]
    """On each token after the first."""
    random: Float[Tensor, "context pos-1"]


def _peaks(
    model: Model, dictionary: Dictionary, inputs: Inputs, latents: list[int]
) -> Float[Tensor, "context chosen"]:
    """The largest value of some latents in each context."""
    found = torch.zeros(len(inputs), len(latents))
    for examples, _, codes in codes_of(model, dictionary, inputs):
        for number, latent in enumerate(latents):
            active = (codes.latents == latent).cpu()
            rows, values = codes.rows.cpu()[active], codes.values.float().cpu()[active]
            found[:, number].scatter_reduce_(0, examples[rows], values, "amax")
    return found


def _effects(
    model: Model,
    ids: Int[Tensor, "context pos"],
    edits: dict[str, Edit],
    before: Float[Tensor, "context pos-1"],
) -> Float[Tensor, "context pos-1"]:
    """By how much each token's log probability falls under the edits."""
    with intervene(model, edits):
        after = token_losses(model.logits(ids).float(), ids.to(model.device))
    return (after - before).cpu()


def _mean_where(
    values: Float[Tensor, "context pos"], effects: Float[Tensor, "context pos-1"]
) -> Float[Tensor, " context"]:
    """The mean effect on the tokens that are predicted where the latent is active, of each context."""
    active = (values[:, :-1] > 0).float()
    return (effects * active).sum(1) / active.sum(1).clamp(min=1)


def _drawn(model: Model, row: _Ablated, place: int) -> dict:
    """One context; the effect on a token stands at that token."""
    return {
        "context": int(row.contexts[place]),
        "tokens": model.strings(row.ids[place]),
        "values": row.values[place],
        "effects": torch.nn.functional.pad(row.effects[place], (1, 0)),
        "random": torch.nn.functional.pad(row.random[place], (1, 0)),
    }
