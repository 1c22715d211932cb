"""One head on a text: the present token, where the head looks, and what it does to the next token.

The induction visual of Elhage et al. 2021 (transformer-circuits.pub/2021/framework): for some positions of a
text, the present token, the head's attention from there (weighted by the size of what it would move,
‖A·v·W_O‖, or plain), and the head's direct effect on the logit of the true next token, the final norm's scale
held. The control asks for the effect on the next tokens of other positions, for every head, since the head
shown is the best of all.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.data.text import sample_rows
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.metrics import bootstrap, family_wise, require_finite
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.readout import before_norm, logit_columns, norm_scale, readout_sites

SHUFFLES = 16
"""Times that the next tokens are exchanged between positions."""


@dataclass(frozen=True)
class HeadEffect(Result):
    """Direct effects on logits (of the true next token minus the mean of all), attention of one row."""

    head: list
    """Layer and head that are shown."""
    mean_effect: Float[Tensor, "layer head"]
    """Of every head, over all rows and positions."""
    interval: list
    """Of the head shown, over rows."""
    chance: float
    """What the best of all heads passes once in a hundred times when next tokens are exchanged."""
    tokens: list
    attention: Float[Tensor, "query key"]
    """Of the head shown, in one row."""
    effect: Float[Tensor, " next"]
    """Of the head shown, on the token after each query, in the same row."""
    choices: dict

    def headlines(self) -> list[Headline]:
        layer, head = self.head
        value, note = (
            self.mean_effect[layer, head].item(),
            f"{self.choices['rows']}; control: next tokens exchanged",
        )
        claim = f"mean direct effect of head {layer}.{head} on the true next token's logit"
        return [
            Headline(claim, value, self.chance, tuple(self.interval), self.interval[0] > self.chance, note)
        ]

    def figure(self) -> Figure:
        shown = sorted(self.effect.topk(min(6, len(self.effect))).indices.tolist())
        rows = []
        for query in shown:
            here, effect = torch.zeros(len(self.tokens)), torch.zeros(len(self.tokens))
            here[query], effect[query + 1] = 1.0, self.effect[query]
            layers = {"attention": self.attention[query], "present token": here, "logit effect": effect}
            rows.append(
                {
                    "label": f"{query} {self.tokens[query]}",
                    "layers": {k: v.tolist() for k, v in layers.items()},
                }
            )
        title = f"Head {self.head[0]}.{self.head[1]} where it does most for the next token"
        return figures.tokens(
            self.tokens, rows, title=title, caption=f"{self.choices['attention']}; {self.choices['rows']}"
        )


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def head_effect(
    model: Model,
    *,
    text: str | None = None,
    head: str | None = None,
    attention: Literal["value-weighted", "plain"] = "value-weighted",
    length: int = 64,
    batch: int = 16,
    seed: int = 0,
) -> HeadEffect:
    """Where a head looks and what it adds to the logit of the true next token, position by position.

    `text` None: the zoo's held-out sample, or random tokens repeated for a model without tokenizer. `head` is
    "LAYER.HEAD" (None: the one with the largest mean effect). Effects are direct ones, on the true next
    token's logit minus the mean over the vocabulary. Raises VesaliusError for a head the model has not, and
    where a norm stands between heads and the residual stream.

    >>> from vesalius.testbed import handwritten_induction
    >>> head_effect(handwritten_induction(), length=41, batch=4).head
    [1, 0]
    """
    if model.has("norm1_post"):
        raise VesaliusError(
            f"{model.name} has a norm after attention, so one head's effect is not its own alone"
        )
    rows, sample = sample_rows(model, text, length=min(length, model.n_ctx), limit=batch, seed=seed)
    last, read = readout_sites(model)
    with record(model, ["z@*", "v@*", "pattern@*", last, read]) as acts:
        model(rows)
    scale = norm_scale(model, acts[last].float(), acts[read].float())[:, :-1]
    following = logit_columns(model, rows[:, 1:])
    following = before_norm(model, following - model.weight("W_U").float().mean(1)) * scale[..., None]
    z = [
        require_finite(acts[f"z@{layer}"], f"z@{layer}").float()[:, :, :-1] for layer in range(model.n_layers)
    ]
    effects = _effects(model, z, following)  # [row, layer, head, query]
    mean = effects.mean((0, 3))
    nulls = torch.stack(
        [_effects(model, z, _exchanged(following, seed + k)).mean((0, 3)) for k in range(SHUFFLES)]
    )

    layer, number = _named(model, head) if head else divmod(int(mean.argmax()), model.n_heads)
    pattern = acts[f"pattern@{layer}"][0, number].float()
    if attention == "value-weighted":
        moved = acts[f"v@{layer}"][0, number].float() @ model.weight("W_O", layer)[number].float()
        pattern = pattern * moved.norm(dim=-1)
    return HeadEffect(
        [layer, number],
        mean.cpu(),
        list(bootstrap(effects[:, layer, number].mean(1), seed=seed)),
        family_wise(nulls),
        model.strings(rows[0]),
        pattern.cpu(),
        effects[0, layer, number].cpu(),
        {"rows": sample, "attention": f"{attention} attention", "norm": "the final norm's scale as it was"},
    )


def _effects(
    model: Model,
    z: list[Float[Tensor, "row head query d_head"]],
    directions: Float[Tensor, "row query d_model"],
) -> Float[Tensor, "row layer head query"]:
    """What every head's output adds along a direction of the final stream, position by position."""
    layers = []
    for layer, output in enumerate(z):
        towards = torch.einsum("bqm,hdm->bhqd", directions, model.weight("W_O", layer).to(directions))
        layers.append((output * towards).sum(-1))
    return torch.stack(layers, 1)


def _exchanged(
    directions: Float[Tensor, "row query d_model"], seed: int
) -> Float[Tensor, "row query d_model"]:
    """Every position gets the direction of another position of some row."""
    order = torch.randperm(
        directions.shape[0] * directions.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    return directions.flatten(0, 1)[order].reshape(directions.shape)


def _named(model: Model, head: str) -> tuple[int, int]:
    layer, _, number = head.partition(".")
    if not (
        layer.isdigit() and number.isdigit() and int(layer) < model.n_layers and int(number) < model.n_heads
    ):
        raise VesaliusError(
            f"head '{head}' is not LAYER.HEAD, of layers 0 to {model.n_layers - 1} and heads 0 to {model.n_heads - 1}"
        )
    return int(layer), int(number)
