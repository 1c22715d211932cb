"""Which attention heads copy: the eigenvalues of their OV circuits, against chance, beside what they do to
tokens.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"
(transformer-circuits.pub/2021/framework): an OV circuit W_E W_V W_O W_U [source, output] that raises the
tokens it is given has eigenvalues with positive real parts. Each head is summarised by s = Σ Re λ / Σ |λ|: 1
copies, -1 suppresses what it sees, 0 neither.

1. The eigenvalues come from the d_head x d_head matrix W_O (W_U W_E) W_V, which shares them.
2. Chance is the same statistic of Gaussian heads of the same shape between the same embedding and
   unembedding. Only the singular values of W_U W_E matter to it, which makes draws cheap. A head's
   p-value is the larger of the normal tail and of its rank among the draws, two-sided, times the number of
   heads (Bonferroni).
3. Positive eigenvalues are not yet copying, since the circuit is not a normal matrix. So the direct statistic
   stands beside them: the share of tokens whose own logit the head raises most (top 1), or among the five
   most (top 5).
4. Heads can share the work: one head of a known model puts 31% of tokens on top, two together 96%. `sum_of`
   scores any set of heads as one circuit.

The path is embedding → head → unembedding alone: in a deep model, heads that read or write through others are
missed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.method import method, progress
from vesalius.metrics import wilson
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.circuits import Norm, norm_handling, ov, unembed, widened
from vesalius.weights.copying import copying_score
from vesalius.weights.factored import Factored

if TYPE_CHECKING:
    from vesalius.figures import Figure

LEVEL = 0.01
"""Chance of any false alarm among all heads of a random network."""


@dataclass(frozen=True)
class CopyingHeads(Result):
    """Per head: s in -1..1, its chance, the share of tokens it puts first; the random twin beside."""

    heads: list[str]
    """"layer.head"; a sum of heads is written "1.4 + 1.10" and comes last."""
    scores: Float[Tensor, " head"]
    p_values: Float[Tensor, " head"]
    """Chance that any of the heads scores so far from 0, if all were random."""
    z: Float[Tensor, " head"]
    imaginary: Float[Tensor, " head"]
    """Σ |Im λ| / Σ |λ|: near 1, tokens are turned into other tokens."""
    top_1: Float[Tensor, " head"]
    top_5: Float[Tensor, " head"]
    top_1_interval: Float[Tensor, "head 2"]
    eigenvalues: list[Complex[Tensor, " _"]]
    twin_scores: Float[Tensor, " head"]
    twin_p_values: Float[Tensor, " head"]
    twin_top_1: Float[Tensor, " head"]
    twin_eigenvalues: list[Complex[Tensor, " _"]]
    null: Float[Tensor, " draw"]
    """s of Gaussian heads."""
    quantile: float
    """|s| that 99.9% of them stay below, by the normal tail."""
    tokens: int
    """How many tokens the direct statistic was taken on."""
    d_vocab: int
    choices: dict[str, str]

    @property
    def copying(self) -> list[str]:
        """The heads with positive eigenvalues beyond chance."""
        return _named(self.heads, (self.p_values < LEVEL) & (self.scores > 0))

    def headlines(self) -> list[Headline]:
        single = [number for number, head in enumerate(self.heads) if "+" not in head]
        sums = [number for number in range(len(self.heads)) if number not in single]
        rows = []
        for claim, sign in (
            ("raise the tokens they see (positive eigenvalues)", 1),
            ("suppress them (negative eigenvalues)", -1),
        ):
            found, false = (
                [self.heads[i] for i in single if p[i] < LEVEL and s[i] * sign > 0]
                for s, p in ((self.scores, self.p_values), (self.twin_scores, self.twin_p_values))
            )
            note = f"beyond chance at {LEVEL:.0%} for all heads together: {', '.join(found) or 'none'}"
            rows.append(
                Headline(
                    f"heads that {claim}",
                    f"{len(found)} of {len(single)}",
                    f"{len(false)} of {len(single)}",
                    evidence=len(found) > len(false),
                    note=note,
                )
            )
        best = max(single, key=lambda i: self.scores[i].item())
        return rows + [self._direct(i) for i in [best, *sums]]

    def _direct(self, number: int) -> Headline:
        share, control = self.top_1[number].item(), self.twin_top_1.max().item()
        sampled = self.tokens < self.d_vocab
        low, high = self.top_1_interval[number].tolist()
        return Headline(
            f"share of tokens that head {self.heads[number]} raises above all others",
            share,
            control,
            interval=(low, high) if sampled else None,
            evidence=(low if sampled else share) > control and self.heads[number] in self.copying,
            note=f"s = {self.scores[number]:.2f}, top 5: {self.top_5[number]:.2f}, "
            f"{'a sample' if sampled else 'all'} of {self.tokens} tokens; control: the twin's best head",
        )

    def figure(self) -> "Figure":
        from vesalius.figures import group, histogram, polar, table

        order = sorted(range(len(self.heads)), key=lambda i: -abs(self.scores[i].item()))
        panels = {}
        for i in order[:3]:
            panels |= {
                self.heads[i]: self.eigenvalues[i],
                f"{self.heads[i]}, random": self.twin_eigenvalues[i],
            }
        chance = [("x", -self.quantile, ""), ("x", self.quantile, "99.9% of random heads")]
        rows = [
            [
                self.heads[i],
                *(
                    {"value": round(x[i].item(), 3), "text": f"{x[i]:.2f}"}
                    for x in (self.scores, self.top_1, self.top_5)
                ),
                f"{self.imaginary[i]:.2f}",
                f"{self.z[i]:.1f}",
                f"{self.p_values[i]:.2g}",
            ]
            for i in order
        ]
        columns = ["head", "s", "top 1", "top 5", "imaginary", "z", "p, all heads"]
        scores = {"heads": self.scores, "random twin": self.twin_scores, "Gaussian heads": self.null}
        return group(
            [
                polar(
                    panels,
                    title="Eigenvalues of the OV circuits furthest from 0",
                    caption="Right: copying; left: suppressing.",
                ),
                histogram(
                    scores,
                    title="Copying score of every head",
                    x_label="s = Σ Re λ / Σ |λ|",
                    references=chance,
                ),
                table(columns, rows, title="Heads by copying score"),
            ],
            title="Copying heads",
            caption="; ".join(f"{key}: {value}" for key, value in self.choices.items()),
        )


@method(needs=("attention", "tokens"))
def copying_heads(
    model: Model,
    *,
    heads: list[str] | None = None,
    sum_of: list[str] | None = None,
    norm: Norm = "fold",
    tokens: int = 512,
    draws: int = 500,
    seed: int = 0,
) -> CopyingHeads:
    """Score every head's OV circuit as a copier, by its eigenvalues and by what it does to tokens.

    `heads` ("1.4", all by default) are scored one by one, `sum_of` together as one circuit. The direct
    statistic takes the whole vocabulary, or `tokens` of it drawn by `seed` where it is larger than four times
    that. Raises if a head is not in the model.

    >>> from vesalius.testbed import handwritten_induction
    >>> copying_heads(handwritten_induction()).copying
    ['1.0']
    """
    names = heads or [f"{layer}.{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    circuits = [[_head(model, name)] for name in names] + (
        [[_head(model, name) for name in sum_of]] if sum_of else []
    )
    generator, chosen = torch.Generator().manual_seed(seed), torch.arange(model.d_vocab)
    if model.d_vocab > 4 * tokens:
        chosen = torch.randperm(model.d_vocab, generator=generator)[:tokens]
    twin_model, ranks = model.random_twin(seed), {len(circuit) for circuit in circuits}
    null = _null(model, norm, ranks, draws, generator)
    measured = _measure(model, circuits, norm, chosen, null)
    twin = _measure(twin_model, circuits, norm, chosen, _null(twin_model, norm, ranks, draws, generator))
    hits = (measured["top_1"] * len(chosen)).round().int().tolist()
    return CopyingHeads(
        heads=[" + ".join(f"{layer}.{head}" for layer, head in circuit) for circuit in circuits],
        **measured,
        top_1_interval=torch.tensor([wilson(hit, len(chosen)) for hit in hits]),
        **{f"twin_{key}": twin[key] for key in ("scores", "p_values", "top_1", "eigenvalues")},
        null=null[1],
        quantile=min(1.0, 3.29 * null[1].std().item()),
        tokens=len(chosen),
        d_vocab=model.d_vocab,
        choices={
            "path": "embedding → head → unembedding",
            "norm": norm_handling(model, norm),
            "chance": f"{draws} Gaussian heads",
        },
    )


def _measure(
    model: Model,
    circuits: list[list[tuple[int, int]]],
    norm: Norm,
    chosen: Int[Tensor, " token"],
    null: dict[int, Tensor],
) -> dict:
    """Eigenvalues, their summary and its chance, and the direct statistic, of each circuit."""
    through = _unembed_embed(model, norm)
    W_E = widened(model.weight("W_E"))
    eigenvalues, ranks = [], []
    for circuit in progress(circuits, "heads"):
        moved = Factored.sum([ov(model, *head, norm=norm) for head in circuit])
        eigenvalues.append(torch.linalg.eigvals((moved.right @ through @ moved.left).double()).cpu())
        ranks.append(_own_rank(unembed(model, moved, norm=norm), W_E, chosen.to(model.device)))
    scores = torch.stack([copying_score(values) for values in eigenvalues])
    nulls = torch.stack([null[len(circuit)] for circuit in circuits])  # [head, draw]
    z = scores / nulls.std(1)
    p = torch.maximum(torch.erfc(z.abs() / 2**0.5), (nulls.abs() >= scores[:, None].abs()).double().mean(1))
    return {
        "scores": scores,
        "imaginary": torch.stack([_imaginary(values) for values in eigenvalues]),
        "p_values": (p * len(circuits)).clamp(max=1),
        "z": z,
        "top_1": torch.stack([(rank < 1).double().mean() for rank in ranks]),
        "top_5": torch.stack([(rank < 5).double().mean() for rank in ranks]),
        "eigenvalues": eigenvalues,
    }


def _unembed_embed(model: Model, norm: Norm) -> Float[Tensor, "d_model d_model"]:
    """W_U W_E: what a head's write becomes when it is read out as tokens and these are embedded."""
    W_E = widened(model.weight("W_E"))
    unit = torch.eye(model.d_model).to(W_E)
    return unembed(model, Factored(unit, unit), norm=norm).right @ W_E


def _null(
    model: Model, norm: Norm, ranks: set[int], draws: int, generator: torch.Generator
) -> dict[int, Float[Tensor, " draw"]]:
    """s of Gaussian heads, and of sums of them.

    Turning W_V or W_O leaves it Gaussian, so W_U W_E enters by its singular values alone.
    """
    spread, null = torch.linalg.svdvals(_unembed_embed(model, norm).double()).float().cpu(), {}
    for rank in sorted(ranks):
        scores = []
        for start in range(0, draws, 100):
            shape = (min(100, draws - start), rank * model.d_head, model.d_model)
            write, read = (torch.randn(shape, generator=generator) for _ in range(2))
            values = torch.linalg.eigvals((write * spread) @ read.mT)
            scores.append(copying_score(values).double())
        null[rank] = torch.cat(scores)
    return null


def _own_rank(
    readout: Factored, W_E: Float[Tensor, "d_vocab d_model"], chosen: Int[Tensor, " token"]
) -> Int[Tensor, " token"]:
    """How many other tokens the circuit raises at least as much as the one it is given; 0 is a copy."""
    ranks = []
    for part in chosen.split(128):
        raised = W_E[part] @ readout.left @ readout.right
        ranks.append((raised >= raised.gather(1, part[:, None])).sum(1) - 1)
    return torch.cat(ranks).cpu()


def _imaginary(eigenvalues: Complex[Tensor, " _"]) -> Float[Tensor, ""]:
    """Σ |Im λ| / Σ |λ|; 0 for a head that does nothing."""
    total = eigenvalues.abs().sum()
    return eigenvalues.imag.abs().sum() / total.clamp(min=torch.finfo(total.dtype).tiny)


def _head(model: Model, name: str) -> tuple[int, int]:
    layer, _, head = name.partition(".")
    if not (layer.isdigit() and head.isdigit() and int(layer) < model.n_layers and int(head) < model.n_heads):
        raise VesaliusError(
            f"head '{name}' is not in this model; expected 'layer.head' "
            f"up to {model.n_layers - 1}.{model.n_heads - 1}"
        )
    return int(layer), int(head)


def _named(heads: list[str], flags: Tensor) -> list[str]:
    return [head for head, flag in zip(heads, flags.tolist()) if flag]
