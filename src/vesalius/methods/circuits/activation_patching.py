"""Activation patching: where, in layers, positions and heads, does the difference between two prompts live?

Meng et al. 2022 (causal tracing, arXiv 2202.05262); Wang et al. 2022 (arXiv 2211.00593); Heimersheim & Nanda
2024 (arXiv 2404.15255). One value of the source prompt's run is put into the base prompt's, and the logit of
answer minus foil is read at the end, on a scale on which the base as it is is 0 and the source 1. Clean into
corrupted (denoise) asks what is enough to restore the answer, corrupted into clean (noise) what is needed for
it. Every cell is exact, though none has a forward pass of its own (see `vesalius.branches`). The control puts
noise into the same place, as far from the base as the source's value is.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.branches import Trunk, trunks
from vesalius.data.repeated import repeated_random_tokens
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise
from vesalius.model import Model
from vesalius.result import Headline, Result

DRAWS = 16
"""Noise vectors in the control of one cell."""
ROWS = 256
"""Rows of a batch at most, heads of several layers together."""
TOGETHER = 2
"""Positions that share a forward: fewer make it shorter, more make it fuller."""


@dataclass(frozen=True)
class ActivationPatching(Result):
    """Shares of the logit difference between the prompts: 0 is the base as it is, 1 the source; means over
    pairs."""

    residual: Float[Tensor, "layer pos"]
    """Residual stream before each layer, one position patched."""
    heads: Float[Tensor, "layer head"]
    """Output z of one head patched at all positions."""
    residual_cell: dict
    """The position with most effect at the middle layer: where, value, interval over pairs, chance (of
    noise)."""
    head_cell: dict
    """The head with most effect, likewise."""
    base_difference: float
    source_difference: float
    tokens: list
    """Of the first base prompt."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows = []
        for cell, name in ((self.residual_cell, "residual stream"), (self.head_cell, "head")):
            interval = tuple(cell["interval"]) if cell["interval"] else None
            low, high = interval or (cell["value"], cell["value"])
            beyond = max(low, -high) > cell["chance"]
            claim = f"share of the logit difference that moves with {name} {cell['where']}"
            note = f"{self.choices['direction']}; control: noise of the same size"
            rows.append(Headline(claim, cell["value"], cell["chance"], interval, beyond, note))
        claim = f"logit difference of the prompt that is patched, {self.choices['prompts']}"
        return [
            *rows,
            Headline(claim, self.base_difference, note=f"patched from: {self.source_difference:.3f}"),
        ]

    def figure(self) -> Figure:
        layers = [str(layer) for layer in range(len(self.heads))]
        positions = [f"{number} {token}" for number, token in enumerate(self.tokens)]
        heads = [str(head) for head in range(self.heads.shape[1])]
        common = {"y": layers, "y_label": "layer", "value_label": "0 as it is, 1 as the source"}
        drawn = [
            figures.heatmap(
                self.residual, title="Residual stream", x=positions, x_label="position", **common
            ),
            figures.heatmap(self.heads, title="Heads, all positions", x=heads, x_label="head", **common),
        ]
        return figures.group(drawn, title=f"Activation patching ({self.choices['direction']})")


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def activation_patching(
    model: Model,
    *,
    clean: list[str] | None = None,
    corrupted: list[str] | None = None,
    answer: list[str] | None = None,
    foil: list[str] | None = None,
    direction: Literal["denoise", "noise"] = "denoise",
    pairs: int = 6,
    seed: int = 0,
) -> ActivationPatching:
    """Residual stream by layer and position, and heads by layer, patched from one prompt into another.

    `denoise` patches clean values into the corrupted prompt, `noise` corrupted ones into the clean prompt.
    Prompts `clean` and `corrupted` are paired and of one length; a single `answer` or `foil`, each one token,
    serves all. Without prompts, `pairs` of random tokens are used: the clean one repeats a sequence that held
    the answer, the corrupted one the same sequence with the foil in its place. Raises VesaliusError for
    prompts that do not pair, are of different lengths, or give the same logit difference.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = activation_patching(handwritten_induction(), pairs=1)
    >>> result.head_cell["where"], round(result.head_cell["value"], 3)
    ('1.0', 1.0)
    """
    if clean is None:
        clean_ids, corrupted_ids, answers, foils = _induction_pairs(model, pairs, seed)
    else:
        clean_ids, corrupted_ids = model.tokens(clean), model.tokens(corrupted or [])
        answers, foils = ([model.token(one) for one in given or []] for given in (answer, foil))
        answers, foils = (given * len(clean_ids) if len(given) == 1 else given for given in (answers, foils))
    if clean_ids.shape != corrupted_ids.shape or not len(clean_ids) == len(answers) == len(foils):
        raise VesaliusError(
            f"{tuple(clean_ids.shape)} clean and {tuple(corrupted_ids.shape)} corrupted tokens, {len(answers)} "
            f"answers and {len(foils)} foils do not pair; expected prompts of one length, an answer and a foil each"
        )
    if (clean_ids == corrupted_ids).all(1).any():
        raise VesaliusError("a clean prompt and its corrupted one are the same; there is nothing to patch")
    base, source = (corrupted_ids, clean_ids) if direction == "denoise" else (clean_ids, corrupted_ids)
    prompts = zip(torch.stack([base, source], 1), answers, foils)
    runs = [Pair(*trunks(model, both), answer=a, foil=f) for both, a, f in prompts]
    unpatched = torch.stack([pair.difference(pair.base.end) for pair in runs]).mean()
    span = torch.stack([pair.difference(pair.source.end) for pair in runs]).mean() - unpatched
    if span.abs() < 1e-6:
        raise VesaliusError(
            "clean and corrupted prompts give the same logit difference; there is nothing to locate"
        )

    residual = (
        torch.stack([pair.residual() for pair in progress(runs, "residual stream")]) - unpatched
    ) / span
    heads = (torch.stack([pair.heads() for pair in progress(runs, "heads")]) - unpatched) / span
    middle = model.n_layers // 2
    position = int(residual.mean(0)[middle].abs().argmax())
    layer, head = divmod(int(heads.mean(0).abs().argmax()), model.n_heads)
    noise = torch.stack([pair.noise((middle, position), (layer, head), seed) for pair in runs])
    noise = (noise.mean(0) - unpatched) / span
    cells = [
        _cell(f"layer {middle}, position {position}", residual[:, middle, position], noise[0], seed),
        _cell(f"{layer}.{head}", heads[:, layer, head], noise[1], seed),
    ]
    ends = (unpatched.item(), (unpatched + span).item())
    choices = {
        "direction": direction,
        "prompts": f"{len(runs)} pairs of {base.shape[1]} tokens",
        "metric": "answer minus foil at the last position",
    }
    return ActivationPatching(residual.mean(0), heads.mean(0), *cells, *ends, model.strings(base[0]), choices)


def _cell(where: str, values: Float[Tensor, " pair"], noise: Float[Tensor, " draw"], seed: int) -> dict:
    interval = bootstrap(values, seed=seed) if len(values) > 1 else None
    return {
        "where": where,
        "value": values.mean().item(),
        "interval": interval,
        "chance": family_wise(noise.abs()[:, None]),
    }


def _induction_pairs(
    model: Model, pairs: int, seed: int
) -> tuple[Int[Tensor, "pair pos"], Int[Tensor, "pair pos"], list[int], list[int]]:
    """Prompts [BOS, r, start of r]; r holds the answer after the token they end with, or the foil in its
    place."""
    length = min(12, (model.n_ctx - 2) * 2 // 3, model.d_vocab - 4)
    half = length // 2
    rows = repeated_random_tokens(model, length=length + 1, batch=pairs, repeats=1, seed=seed)
    begin = rows.shape[1] - length - 1
    r, foils = rows[:, begin:-1], rows[:, -1]
    clean = torch.cat([rows[:, :begin], r, r[:, :half]], 1)
    corrupted = clean.clone()
    corrupted[:, begin + half] = foils
    return clean, corrupted, r[:, half].tolist(), foils.tolist()


@dataclass(frozen=True)
class Pair:
    """Two prompts, run; the base gets what the source has."""

    base: Trunk
    source: Trunk
    answer: int
    foil: int

    @property
    def first(self) -> int:
        """The first position at which they differ: nothing before it can be patched to any effect."""
        return int((self.base.ids != self.source.ids)[0].nonzero()[0])

    def difference(self, end: Float[Tensor, "*branch d_model"]) -> Float[Tensor, "*branch"]:
        """Logit of the answer minus that of the foil."""
        logits = self.base.logits(end, [self.answer, self.foil]).float().cpu()
        return logits[..., 0] - logits[..., 1]

    def residual(self) -> Float[Tensor, "layer pos"]:
        """Logit difference with each position of each layer's input patched."""
        layers, length = self.base.residual.shape[:2]
        found = self.difference(self.base.end).repeat(layers, length)
        for positions in torch.arange(self.first, length).split(TOGETHER):
            start, each = self.base.start(int(positions[0])), torch.arange(len(positions))
            rows = self.base.residual[:, None, start:].repeat(1, len(positions), 1, 1)
            rows[:, each, positions - start] = self.source.residual[:, positions]
            ends = self.base.branch(start, dict(enumerate(rows)))
            found[:, positions] = self.difference(ends).reshape(layers, -1)
        return found

    def heads(self) -> Float[Tensor, "layer head"]:
        """Logit difference with each head's output patched, at all positions."""
        layers, heads = self.base.z.shape[:2]
        start, found, together = self.base.start(self.first), [], max(1, ROWS // heads)
        for part in torch.arange(layers).split(together):
            rows = {l: self.base.residual[l, None, start:].expand(heads, -1, -1) for l in part.tolist()}
            put = {f"z@{l}": partial(_put_heads, heads=self.source.z[l, :, start:]) for l in part.tolist()}
            found.append(self.difference(self.base.branch(start, rows, put)))
        return torch.cat(found).reshape(layers, heads)

    def noise(self, cell: tuple[int, int], head: tuple[int, int], seed: int) -> Float[Tensor, "2 draw"]:
        """The same for one cell of each sweep, patched with noise as far from the base as the source is."""
        generator = torch.Generator().manual_seed(seed)
        (layer, position), (at, number) = cell, head
        rows = self.base.residual[layer].repeat(DRAWS, 1, 1)
        rows[:, position] = _around(rows[0, position], self.source.residual[layer, position], generator)
        residual = self.base.branch(0, {layer: rows})
        noisy = _around(self.base.z[at, number], self.source.z[at, number], generator)
        put = {f"z@{at}": partial(_put_draws, head=number, draws=noisy)}
        heads = self.base.branch(0, {at: self.base.residual[at].expand(DRAWS, -1, -1)}, put)
        return self.difference(torch.stack([residual, heads]))


def _put_heads(
    z: Float[Tensor, "batch head pos d_head"], heads: Float[Tensor, "head pos d_head"]
) -> Float[Tensor, "batch head pos d_head"]:
    """The last rows of the batch, one for each head, get that head from elsewhere."""
    z, each = z.clone(), torch.arange(len(heads))
    z[each - len(heads), each] = heads
    return z


def _put_draws(
    z: Float[Tensor, "batch head pos d_head"], head: int, draws: Float[Tensor, "draw pos d_head"]
) -> Float[Tensor, "batch head pos d_head"]:
    """The last rows of the batch, one for each draw, get it in one head."""
    z = z.clone()
    z[-len(draws) :, head] = draws
    return z


def _around(
    here: Float[Tensor, "*pos d"], there: Float[Tensor, "*pos d"], generator: torch.Generator
) -> Float[Tensor, "draw *pos d"]:
    drawn = torch.randn(DRAWS, *here.shape, generator=generator).to(here)
    return here + drawn * ((there - here).norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
