"""How much each head reads what each earlier head wrote, into its queries, keys and values.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"
(transformer-circuits.pub/2021/framework):

    C = ‖W_OV^early W^late‖ / (‖W_OV^early‖ ‖W^late‖),   W^late = W_QK (Q), W_QKᵀ (K) or W_OV (V)

1. C² of two maps placed at random to one another, their singular values kept, has mean 1/d_model, and a
   variance known in closed form for a turn drawn uniformly from the orthogonal group. So every pair of heads
   has a null of its own, and a head of low rank, whose C scatters widely by chance, is held to a higher mark
   than a Gaussian head.
2. Its upper tail is about that of the gamma distribution of this mean and variance: on a million random pairs
   p-values of 2e-5 came 2.5 times too often at d_model 32, 2.1 at 64, 1.6 at 256. So p-values are tripled, and
   multiplied by the number of pairs in all three modes (Bonferroni).
3. Virtual heads: two heads in a row move W_OV^early W_OV^late. They are ranked by ‖W_E W_OV^early W_OV^late
   W_U‖, in logits, against the same null.

Weaknesses to know. The Frobenius ratio penalises high rank: two isometries of rank r on one subspace reach
only 1/√r, and a head with one loud direction can hide its others; `measure="projection_kernel"` compares the
subspaces alone, all directions alike: ‖UᵀV‖² / rank, 0 to 1 (arXiv 2601.10266). A trained residual stream has
directions that every head reads and writes, which count as composition here. Weights say what could be read,
not what is: test edges by ablation. The composition diagram first published with the paper was wrong (its
erratum): there is more Q- and K-composition than it shows.
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import Inapplicable
from vesalius.method import method
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.circuits import Norm, all_ov, all_qk, norm_handling, unembed, widened
from vesalius.weights.composition import Measure, composition_matrix
from vesalius.weights.factored import Factored

if TYPE_CHECKING:
    from vesalius.figures import Figure

LEVEL = 0.01
TAIL = 3
"""How much too light the gamma tail may be."""
"""Chance of any false alarm among all pairs and modes of a random network."""
MODES = ("Q", "K", "V")


@dataclass(frozen=True)
class Composition(Result):
    """Scores of pairs of heads [mode, early, late]; nan where early is not in an earlier layer."""

    heads: list[str]
    scores: Float[Tensor, "mode early late"]
    excess: Float[Tensor, "mode early late"]
    """Score minus that of a random placement."""
    z: Float[Tensor, "mode early late"]
    """How many standard deviations of its own null the squared score lies above the mean."""
    p_values: Float[Tensor, "mode early late"]
    """Chance of a score so high anywhere, if all heads were placed at random."""
    twin_z: Float[Tensor, "mode early late"]
    twin_p_values: Float[Tensor, "mode early late"]
    virtual: Float[Tensor, "early late"]
    """‖W_E W_OV W_OV W_U‖ per token: root mean square over tokens of the logits' norm."""
    virtual_chance: Float[Tensor, "early late"]
    """The same with the later head placed at random."""
    virtual_z: Float[Tensor, "early late"]
    baseline: float
    """Mean score of heads placed at random."""
    choices: dict[str, str]

    def edges(self, mode: str | None = None) -> list[dict]:
        """Pairs beyond chance, strongest first, of one mode or of all."""
        chosen = (self.p_values < LEVEL).nonzero().tolist()
        found = [
            {
                "mode": MODES[m],
                "early": self.heads[early],
                "late": self.heads[late],
                "score": self.scores[m, early, late].item(),
                "excess": self.excess[m, early, late].item(),
                "z": self.z[m, early, late].item(),
                "p": self.p_values[m, early, late].item(),
            }
            for m, early, late in chosen
            if mode in (None, MODES[m])
        ]
        return sorted(found, key=lambda edge: -edge["excess"])

    def headlines(self) -> list[Headline]:
        pairs = int(self.scores[0].isfinite().sum())
        rows = []
        for m, mode in enumerate(MODES):
            found, false = self.edges(mode), int((self.twin_p_values[m] < LEVEL).sum())
            best = (
                f"strongest {found[0]['early']} → {found[0]['late']}: {found[0]['score']:.3f}"
                if found
                else "none"
            )
            rows.append(
                Headline(
                    f"pairs of heads in {mode}-composition",
                    f"{len(found)} of {pairs}",
                    f"{false} of {pairs}",
                    evidence=len(found) > false,
                    note=f"{best}; chance {self.baseline:.3f}; {LEVEL:.0%} for all pairs and modes",
                )
            )
        early, late = divmod(int(self.virtual.nan_to_num(nan=-1.0).argmax()), len(self.heads))
        name = f"loudest virtual head, {self.heads[early]} then {self.heads[late]}: size in logits"
        size, chance, z = (x[early, late].item() for x in (self.virtual, self.virtual_chance, self.virtual_z))
        return [*rows, Headline(name, size, chance, note=f"control: placed at random; {z:.1f} sd")]

    def figure(self) -> "Figure":
        from vesalius.figures import graph, group, heatmap, table

        edges = self.edges()[:40]
        used = {edge[end] for edge in edges for end in ("early", "late")}
        nodes = [{"id": h, "label": h, "column": int(h.split(".")[0])} for h in self.heads if h in used]
        links = [
            {"source": e["early"], "target": e["late"], "weight": e["excess"], "kind": e["mode"]}
            for e in edges
        ]
        columns = ["mode", "early", "late", "score", "excess", "z", "p"]
        rows = [[edge[column] for column in columns] for edge in edges]
        loudest = (
            self.virtual.nan_to_num(nan=-1.0)
            .flatten()
            .topk(min(20, int(self.virtual.isfinite().sum())))
            .indices.tolist()
        )
        pairs = [divmod(number, len(self.heads)) for number in loudest]
        virtual = [
            [self.heads[a], self.heads[b], self.virtual[a, b].item(), self.virtual_z[a, b].item()]
            for a, b in pairs
        ]
        first, last = self.heads[0].split(".")[0], self.heads[-1].split(".")[0]
        early = [i for i, h in enumerate(self.heads) if h.split(".")[0] != last]
        late = [i for i, h in enumerate(self.heads) if h.split(".")[0] != first]
        shown = self.excess[:, early][:, :, late]
        return group(
            [
                heatmap(
                    shown,
                    x=[self.heads[i] for i in late],
                    y=[self.heads[i] for i in early],
                    panels=[f"{mode}-composition" for mode in MODES],
                    title="Composition above chance",
                    x_label="later head",
                    y_label="earlier head",
                    value_label="score − chance",
                ),
                graph(
                    nodes,
                    links,
                    title="Who reads whom",
                    caption=f"The {len(edges)} strongest pairs beyond chance.",
                ),
                table(columns, rows, title="Pairs beyond chance"),
                table(
                    ["early", "late", "logits", "z"], virtual, title="Virtual heads by ‖W_E W_OV W_OV W_U‖"
                ),
            ],
            title="Composition of heads",
            caption="; ".join(f"{key}: {value}" for key, value in self.choices.items()),
        )


@method(needs=("attention",))
def composition(
    model: Model,
    *,
    measure: Measure = "frobenius",
    norm: Norm = "fold",
    seed: int = 0,
) -> Composition:
    """Score Q-, K- and V-composition of every pair of heads against random placement.

    `seed` draws the random twin. Raises if the model has fewer than two layers.

    >>> from vesalius.testbed import handwritten_induction
    >>> [(e["mode"], e["early"], e["late"]) for e in composition(handwritten_induction()).edges()]
    [('K', '0.0', '1.0')]
    """
    if model.n_layers < 2:
        raise Inapplicable(f"composition needs two layers of attention; {model.name} has {model.n_layers}")
    scores, mean, z, p = _against_random(model, measure, norm)
    _, _, twin_z, twin_p = _against_random(model.random_twin(seed), measure, norm)
    virtual, virtual_chance, virtual_z = _virtual_heads(model, norm)
    return Composition(
        heads=[f"{layer}.{head}" for layer, head in product(range(model.n_layers), range(model.n_heads))],
        scores=scores,
        excess=scores - mean,
        z=z,
        p_values=p,
        twin_z=twin_z,
        twin_p_values=twin_p,
        virtual=virtual,
        virtual_chance=virtual_chance,
        virtual_z=virtual_z,
        baseline=mean.nanmean().item(),
        choices={
            "measure": measure,
            "norm": norm_handling(model, norm),
            "chance": "random turns of the residual stream",
        },
    )


def _against_random(model: Model, measure: Measure, norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, their mean, z and p-value under random placement, each [mode, early, late]."""
    ov, qk = (
        torch.cat([circuits(model, l, norm=norm).singular_values().double() for l in range(model.n_layers)])
        for circuits in (all_ov, all_qk)
    )
    if measure == "projection_kernel":
        ov, qk = ((1e-6 * S.amax(-1, keepdim=True) < S).double() for S in (ov, qk))
    raw, mean, z, p = [], [], [], []
    for mode in MODES:
        score = composition_matrix(model, mode, measure=measure, norm=norm)
        score = rearrange(score, "early eh late lh -> (early eh) (late lh)").double().cpu()
        late = ov if mode == "V" else qk
        if measure == "projection_kernel":
            largest = torch.maximum(ov.sum(-1)[:, None], late.sum(-1))
            chance, deviation, tail = _random_placement(score / largest, ov, late, _room(model, norm))
            chance = chance * largest
        else:
            chance, deviation, tail = _random_placement(score.square(), ov, late, _room(model, norm))
            chance = chance.sqrt()
        for kept, found in zip((raw, mean, z, p), (score, chance, deviation, tail)):
            kept.append(found)
    p = torch.stack(p)
    return torch.stack(raw), torch.stack(mean), torch.stack(z), (TAIL * p * p.isfinite().sum()).clamp(max=1)


def _random_placement(
    ratio: Float[Tensor, "early late"],
    early: Float[Tensor, "early d_head"],
    late: Float[Tensor, "late d_head"],
    room: int,
) -> tuple[Float[Tensor, "early late"], Float[Tensor, "early late"], Float[Tensor, "early late"]]:
    """Mean, z and upper-tail p-value of ‖LM‖² / (‖L‖²‖M‖²) if M is turned at random, from singular values.

    ‖LM‖² is the inner product of LᵀL and MMᵀ. A turn leaves the part that is a multiple of the identity,
    which gives the mean, and sends the rest to a random direction in the space of symmetric matrices of
    trace 0, which has (room - 1)(room + 2)/2 dimensions.
    """

    def uneven(S: Float[Tensor, "head d_head"]) -> Float[Tensor, " head"]:
        return S.pow(4).sum(-1) / S.square().sum(-1).square() - 1 / room

    mean = torch.full_like(ratio, 1 / room).where(ratio.isfinite(), torch.nan)
    variance = uneven(early)[:, None] * uneven(late) / ((room - 1) * (room + 2) / 2)
    variance = variance.clamp(min=1e-12 / room**2)
    tail = torch.special.gammaincc(mean.square() / variance, ratio.clamp(min=0) * mean / variance)
    return mean, (ratio - mean) / variance.sqrt(), tail.where(ratio.isfinite(), torch.nan)


def _room(model: Model, norm: Norm) -> int:
    """Dimensions of the residual stream a head can read or write: a folded LayerNorm takes one."""
    return model.d_model - (norm == "fold" and model.architecture.norm == "layer")


def _virtual_heads(
    model: Model, norm: Norm
) -> tuple[Float[Tensor, "early late"], Float[Tensor, "early late"], Float[Tensor, "early late"]]:
    """Size in logits of every pair of heads in a row, and its mean and z under random placement."""
    W_E = widened(model.weight("W_E"))
    unit = torch.eye(model.d_model).to(W_E)
    W_U = unembed(model, Factored(unit, unit), norm=norm).right
    embedded, unembedded = W_E.T @ W_E / len(W_E), W_U @ W_U.T
    reads, writes = [], []
    for layer in range(model.n_layers):
        ov = all_ov(model, layer, norm=norm)
        writes.append(_root(ov.left.mT @ embedded @ ov.left) @ ov.right)  # [head, d_head, d_model]
        reads.append(ov.left @ _root(ov.right @ unembedded @ ov.right.mT))  # [head, d_model, d_head]
    writes, reads = torch.cat(writes), torch.cat(reads)
    sizes = torch.stack([(writes @ read).flatten(1).norm(dim=1) for read in reads], 1).double().cpu()
    layer = torch.arange(len(writes)) // model.n_heads
    sizes = sizes.where(layer[:, None] < layer, torch.nan)
    S_early, S_late = (torch.linalg.svdvals(side).double().cpu() for side in (writes, reads))
    largest = S_early.norm(dim=1)[:, None] * S_late.norm(dim=1)
    mean, z, _ = _random_placement((sizes / largest).square(), S_early, S_late, _room(model, norm))
    return sizes, mean.sqrt() * largest, z


def _root(gram: Float[Tensor, "head d_head d_head"]) -> Float[Tensor, "head d_head d_head"]:
    """Symmetric square root of positive semi-definite matrices."""
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp(min=0).sqrt()[:, None] @ vectors.mT).to(gram)
