"""Which parts of a network write the answer: a logit difference as a sum over embedding, heads, MLPs and
biases.

With the final norm's scale held at the value it had, the logits are linear in all that was written to the
residual stream (Elhage et al. 2021, transformer-circuits.pub/2021/framework; Wang et al. 2022, arXiv
2211.00593). Every head and MLP then has a direct effect on answer minus foil, and the effects add up to the
difference the network computes; what is left over is printed. The control is the same components' effect on
random tokens in place of the answer.
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
from vesalius.method import method
from vesalius.metrics import bootstrap_band, family_wise, require_finite
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.readout import before_norm, logit_columns, norm_scale, readout_sites

DRAWS = 64
"""Random tokens the control puts in place of each answer."""


@dataclass(frozen=True)
class DirectLogitAttribution(Result):
    """Direct effects on the logit of answer minus foil, means over prompts."""

    components: list
    """Names in the order of `effects`: embed, 0.0, 0.1, …, biases."""
    effects: Float[Tensor, " component"]
    low: Float[Tensor, " component"] | None
    high: Float[Tensor, " component"] | None
    random: Float[Tensor, "draw component"]
    """The same effects on random tokens instead of the answer."""
    chance: float
    """What the largest of all effects on a random token passes once in a hundred times."""
    total: float
    """The logit difference the network computes."""
    remainder: float
    """The largest absolute difference, over prompts, of `total` and the sum of effects: 0 if exact."""
    heads: Float[Tensor, "layer head"]
    sample: str
    choices: dict

    def headlines(self) -> list[Headline]:
        note = f"{self.sample}; {self.choices['answer']} minus {self.choices['foil']}"
        rows = [Headline("logit difference, answer minus foil", self.total, note=note)]
        for index in self.effects.abs().argsort(descending=True)[:3].tolist():
            interval = None if self.low is None else (self.low[index].item(), self.high[index].item())
            nearest = (
                abs(self.effects[index].item()) if interval is None else min(abs(end) for end in interval)
            )
            crosses = interval is not None and interval[0] * interval[1] < 0
            claim = f"direct effect of {self.components[index]}"
            rows.append(
                Headline(
                    claim,
                    self.effects[index].item(),
                    self.chance,
                    interval,
                    nearest > self.chance and not crosses,
                )
            )
        rows.append(
            Headline("remainder of the sum of all effects", self.remainder, note=self.choices["norm"])
        )
        return rows

    def figure(self) -> Figure:
        others = [index for index, name in enumerate(self.components) if "." not in name]
        labels = [self.components[index] for index in others]
        intervals = None
        if self.low is not None:
            intervals = {"effect": [(self.low[index].item(), self.high[index].item()) for index in others]}
        return figures.group(
            [
                figures.heatmap(
                    self.heads,
                    title="Heads",
                    x_label="head",
                    y_label="layer",
                    value_label="logit difference",
                    x=[str(head) for head in range(self.heads.shape[1])],
                    y=[str(layer) for layer in range(self.heads.shape[0])],
                    caption=f"Effects on random tokens pass {self.chance:.2f} once in a hundred times.",
                ),
                figures.bars(
                    labels,
                    {"effect": self.effects[others]},
                    title="Everything else",
                    y_label="logit difference",
                    intervals=intervals,
                ),
            ],
            title=f"Direct effects on {self.choices['answer']} minus {self.choices['foil']}",
            caption=self.sample,
        )


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def direct_logit_attribution(
    model: Model,
    *,
    text: str | None = None,
    answer: str | None = None,
    foil: str | None = None,
    length: int = 64,
    batch: int = 32,
    seed: int = 0,
) -> DirectLogitAttribution:
    """A logit difference at the end of a text, decomposed into what every part of the network wrote.

    With a `text`, `answer` None is the model's own first choice; without one, many rows of the held-out
    sample (or random tokens repeated) are read, the answer is the true last token, and effects have intervals
    over rows. `foil` None is the mean over the vocabulary. Raises VesaliusError if the residual stream is not
    the sum of what is written to it (norms after each sum), or more than a norm stands before the
    unembedding.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = direct_logit_attribution(handwritten_induction(), batch=4, length=40)
    >>> result.components[result.effects.argmax()], round(result.remainder, 3)
    ('1.0', 0.0)
    """
    if text is None:
        rows, sample = sample_rows(model, None, length=min(length, model.n_ctx), limit=batch, seed=seed)
        rows, answers = rows[:, :-1], rows[:, -1]
    else:
        rows, sample = model.tokens(text), "the given text"
        answers = (
            torch.tensor([model.token(answer)]) if answer else model.logits(rows)[:, -1].argmax(-1).cpu()
        )
    generator = torch.Generator().manual_seed(seed)
    randoms = torch.randint(model.d_vocab, (len(rows), DRAWS), generator=generator)
    foil_id = None if foil is None else model.token(foil)

    names, effects, logits = _effects(model, rows, torch.cat([answers[:, None], randoms], 1), foil_id)
    actual = logits.gather(1, answers.to(logits.device)[:, None])[:, 0]
    actual = actual - (logits.mean(1) if foil_id is None else logits[:, foil_id])
    answered = effects[:, 0].cpu()
    low, high = bootstrap_band(answered, seed=seed) if len(rows) > 1 else (None, None)
    random = effects[:, 1:].mean(0).cpu()
    heads = answered.mean(0)[["." in name for name in names]].reshape(model.n_layers, model.n_heads)
    choices = {
        "answer": "the true next token" if text is None else model.strings(answers)[0],
        "foil": foil or "the mean over the vocabulary",
        "norm": "the final norm's scale as in the forward pass",
    }
    remainder = (effects[:, 0].sum(1) - actual).abs().max().item()
    return DirectLogitAttribution(
        names,
        answered.mean(0),
        low,
        high,
        random,
        family_wise(random.abs()),
        actual.mean().item(),
        remainder,
        heads,
        sample,
        choices,
    )


def _effects(
    model: Model, rows: Int[Tensor, "row pos"], targets: Int[Tensor, "row target"], foil: int | None
) -> tuple[list[str], Float[Tensor, "row target component"], Float[Tensor, "row d_vocab"]]:
    """At the last position, what each component adds to the logit of each target minus the foil's; the
    logits."""
    last, read = readout_sites(model)
    mlp = model.d_mlp > 0
    roles = ["z@*", "attn_out@*", *(["mlp_out@*"] if mlp else [])]
    with record(model, ["resid_pre@0", *roles, last, read, "logits"]) as acts:
        model(rows)

    def end(site: str) -> Float[Tensor, "row d_model"]:
        value = require_finite(acts[site], site).reshape(*rows.shape, -1)[
            :, -1
        ]  # OPT's MLP has no batch axis
        return value if value.dtype is torch.float64 else value.float()

    names, writes = ["embed"], [end("resid_pre@0")]
    for layer in range(model.n_layers):
        z, W_O = acts[f"z@{layer}"][:, :, -1].to(writes[0]), model.weight("W_O", layer).to(writes[0])
        heads, rest = _as_written(
            model, layer, torch.einsum("bhd,hdm->hbm", z, W_O), end(f"attn_out@{layer}")
        )
        names += [*[f"{layer}.{head}" for head in range(model.n_heads)], f"attention bias {layer}"]
        writes += [*heads, rest]
        if mlp:
            names.append(f"mlp {layer}")
            writes.append(end(f"mlp_out@{layer}"))
    stream = torch.stack(writes)
    left_out = ((stream.sum(0) - end(last)).norm() / end(last).norm()).item()
    if left_out > 1e-3:
        raise Inapplicable(
            f"the residual stream of {model.name} is not the sum of what its parts write "
            f"({left_out:.0%} is missing), as in families that normalise after adding"
        )
    columns, constant = _against(model, targets, foil)
    scale = norm_scale(model, end(last), end(read))
    effects = torch.einsum("cbm,btm,b->btc", stream, before_norm(model, columns).to(stream), scale)
    return [*names, "biases"], torch.cat([effects, constant[..., None].to(stream)], -1), end("logits")


def _as_written(
    model: Model, layer: int, heads: Float[Tensor, "head row d_model"], written: Float[Tensor, "row d_model"]
) -> tuple[Float[Tensor, "head row d_model"], Float[Tensor, "row d_model"]]:
    """What each head wrote, through a norm after attention if there is one, and what they leave of the
    whole."""
    if model.has("norm1_post"):
        heads = heads * model.weight("norm1_post", layer).to(heads)
        raw = heads.sum(0)
        heads = heads * ((written * raw).sum(-1) / raw.square().sum(-1))[:, None]
    return heads, written - heads.sum(0)


def _against(
    model: Model, targets: Int[Tensor, "row target"], foil: int | None
) -> tuple[Float[Tensor, "row target d_model"], Float[Tensor, "row target"]]:
    """Columns of W_U, target minus foil (or minus the mean of all), and what biases alone give each
    difference."""
    W_U = model.weight("W_U")
    columns = logit_columns(model, targets)
    columns = columns - (W_U.float().mean(1) if foil is None else W_U[:, foil].float())
    constant = torch.zeros_like(columns[..., 0])
    if model.has("norm_final_bias"):
        constant = constant + columns @ model.weight("norm_final_bias").to(columns)
    if model.has("b_U"):
        b_U = model.weight("b_U").to(columns)
        constant = constant + b_U[targets.to(b_U.device)] - (b_U.mean() if foil is None else b_U[foil])
    return columns, constant
