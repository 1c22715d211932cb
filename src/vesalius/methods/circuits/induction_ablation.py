"""What an induction head is built on: its prefix score without the earlier heads that compose into it.

An induction head finds its key by what an earlier head wrote there (Elhage et al. 2021,
transformer-circuits.pub/ 2021/framework; Olsson et al. 2022, arXiv 2209.11895). The earlier heads whose
output composes with its keys or its queries more than in random heads of the same sizes are ablated, all at
once and one by one, on rows [BOS, r, r] of random tokens; the control ablates as many other heads of the same
layers, drawn at random. The role of the previous-token head is often shared, so one ablation alone need not
break the circuit; ablating them all should.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene, record
from vesalius.data.repeated import repeated_random_tokens
from vesalius.edits import mean, zero
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, offset_attention, token_losses
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.composition import composition_matrix, random_composition

Head = tuple[int, int]


@dataclass(frozen=True)
class InductionAblation(Result):
    """Prefix score (attention, 0..1) of one head and loss of the repetition (nats), heads removed."""

    head: list
    """Layer and head under study."""
    composers: dict
    """For K and Q, rows [layer, head, composition score, standard deviations above random heads of the same
    sizes]."""
    rows: list
    """What was ablated: label, heads, prefix, loss, and the interval of each over rows."""
    gap: list | None
    """Prefix score without random others minus without all composers: mean, low, high."""
    choices: dict

    def headlines(self) -> list[Headline]:
        name = f"{self.head[0]}.{self.head[1]}"
        if self.gap is None:
            claim = f"heads that compose into {name} beyond random heads of the same sizes"
            return [Headline(claim, "none", evidence=False, note=self.choices["composer"])]
        by = {row["label"]: row for row in self.rows}
        everyone, others, whole = by["all composers"], by["random others"], by["nothing"]
        note = f"{whole['prefix']:.3f} with all heads; {self.choices['ablation']}"
        claim = f"of {name} without the {len(everyone['heads'])} heads that compose into it"
        stands = self.gap[1] > 0 and others["prefix"] > whole["prefix"] / 2
        return [
            Headline(
                f"prefix matching {claim}",
                everyone["prefix"],
                others["prefix"],
                tuple(everyone["prefix_interval"]),
                stands,
                note,
            ),
            Headline(
                f"loss on the repetition, nats, {claim}",
                everyone["loss"],
                others["loss"],
                tuple(everyone["loss_interval"]),
                None,
                f"{whole['loss']:.3f} with all heads",
            ),
        ]

    def figure(self) -> Figure:
        labels = [f"{row['label']} ({len(row['heads'])})" for row in self.rows]
        drawn = [
            figures.bars(
                labels,
                {what: [row[what] for row in self.rows]},
                title=title,
                y_label=unit,
                intervals={what: [tuple(row[f"{what}_interval"]) for row in self.rows]},
                caption=self.choices["ablation"],
            )
            for what, title, unit in (
                ("prefix", "Prefix score", "attention"),
                ("loss", "Loss on the repetition", "nats"),
            )
        ]
        return figures.group(drawn, title=f"What head {self.head[0]}.{self.head[1]} is built on")


@method(needs=("tokens", "attention", "causal"))
@torch.no_grad()
def induction_ablation(
    model: Model,
    *,
    head: str | None = None,
    length: int | None = None,
    batch: int = 16,
    ablation: Literal["zero", "mean"] = "zero",
    deviations: float = 3.0,
    singles: int = 8,
    seed: int = 0,
) -> InductionAblation:
    """Prefix score and repetition loss when the heads that compose into an induction head are ablated.

    `head` is "LAYER.HEAD" (None: the largest prefix score above the first layer). A composer's K- or
    Q-composition score lies `deviations` standard deviations above that of random heads of the same sizes.
    All are ablated together, and the `singles` strongest one by one.
    `length` is that of r (None: 50, or half the context). `mean` ablates to the mean over rows and positions.
    Raises VesaliusError if the model has one layer only, or the head is not above the first.
    """
    if model.n_layers < 2:
        raise Inapplicable(f"{model.name} has {model.n_layers} layers; composition needs two")
    length = length or min(50, (model.n_ctx - 1) // 2, model.d_vocab - 2)
    ids = repeated_random_tokens(model, length=length, batch=batch, seed=seed)
    target = _strongest(model, ids, length) if head is None else _named(model, head)
    composers = _composers(model, target, deviations, seed)
    chosen = sorted({(int(row[0]), int(row[1])) for rows in composers.values() for row in rows})
    choices = {
        "length": length,
        "batch": batch,
        "ablation": f"{ablation} ablation of z",
        "composer": f"more than {deviations:g} sd above random heads of the same sizes, by K or Q",
    }
    if not chosen:
        return InductionAblation(list(target), composers, [], None, choices)

    generator = torch.Generator().manual_seed(seed)
    kinds: list[tuple[str, list[list[Head]]]] = [
        ("nothing", [[]]),
        ("all composers", [chosen]),
        ("random others", [_others(model, chosen, generator) for _ in range(5)]),
        *[(f"{layer}.{number}", [[(layer, number)]]) for layer, number in _strongest_of(composers, singles)],
    ]
    rows, prefixes = [], {}
    for label, sets in progress(kinds, "ablations"):
        measured = [_ablated(model, ids, length, target, heads, ablation) for heads in sets]
        prefix, loss = (torch.stack(values).mean(0) for values in zip(*measured))
        prefixes[label] = prefix
        rows.append(
            {
                "label": label,
                "heads": [list(pair) for pair in sets[0]],
                "prefix": prefix.mean().item(),
                "prefix_interval": bootstrap(prefix, seed=seed),
                "loss": loss.mean().item(),
                "loss_interval": bootstrap(loss, seed=seed),
            }
        )
    gap = prefixes["random others"] - prefixes["all composers"]
    return InductionAblation(
        list(target), composers, rows, [gap.mean().item(), *bootstrap(gap, seed=seed)], choices
    )


def _named(model: Model, head: str) -> Head:
    layer, _, number = head.partition(".")
    known = (
        layer.isdigit()
        and number.isdigit()
        and 0 < int(layer) < model.n_layers
        and int(number) < model.n_heads
    )
    if not known:
        raise VesaliusError(
            f"head '{head}' is not LAYER.HEAD with a layer from 1 to {model.n_layers - 1} "
            f"and a head from 0 to {model.n_heads - 1}"
        )
    return int(layer), int(number)


def _strongest(model: Model, ids: Int[Tensor, "batch pos"], length: int) -> Head:
    with record(model, f"pattern@1-{model.n_layers - 1}", stop=True) as acts:
        model(ids[:4])
    patterns = acts.stack(f"pattern@1-{model.n_layers - 1}")
    prefix = torch.stack(
        [offset_attention(p, length - 1, first=ids.shape[1] - length).mean(0) for p in patterns]
    )
    layer, head = divmod(int(prefix.argmax()), model.n_heads)
    return layer + 1, head


def _composers(model: Model, target: Head, deviations: float, seed: int) -> dict[str, list[list[float]]]:
    """Earlier heads whose composition with the target stands out from that of random heads of the same
    sizes."""
    random = random_composition(model, seed=seed)
    found = {}
    for mode in ("K", "Q"):
        score = composition_matrix(model, mode)[:, :, target[0], target[1]]
        excess = (score - random.mean) / random.sd
        pairs = (excess.nan_to_num(-1.0) > deviations).nonzero().tolist()
        found[mode] = [[l, h, score[l, h].item(), excess[l, h].item()] for l, h in pairs]
    return found


def _strongest_of(composers: dict[str, list[list[float]]], singles: int) -> list[Head]:
    """The heads of largest excess by either mode, in the order of their layers."""
    excess: dict[Head, float] = {}
    for layer, head, _, over in (row for rows in composers.values() for row in rows):
        pair = (int(layer), int(head))
        excess[pair] = max(over, excess.get(pair, over))
    return sorted(sorted(excess, key=lambda pair: -excess[pair])[:singles])


def _others(model: Model, chosen: list[Head], generator: torch.Generator) -> list[Head]:
    """As many heads of the same layers that are not composers; all there are, where there are fewer."""
    drawn = []
    for layer, group in groupby(chosen, key=lambda pair: pair[0]):
        rest = [head for head in range(model.n_heads) if (layer, head) not in chosen]
        order = torch.randperm(len(rest), generator=generator).tolist()
        drawn += [(layer, rest[number]) for number in order[: len(list(group))]]
    return drawn


def _ablated(
    model: Model, ids: Int[Tensor, "batch pos"], length: int, target: Head, heads: list[Head], ablation: str
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """For each row: the target's prefix score and the loss of the second half, `heads` ablated."""
    layers = {layer: [head for at, head in heads if at == layer] for layer, _ in heads}
    sites = [f"z@{layer}[{','.join(map(str, numbers))}]" for layer, numbers in layers.items()]
    edit = zero() if ablation == "zero" else mean()
    pattern = f"pattern@{target[0]}[{target[1]}]"
    with intervene(model, dict.fromkeys(sites, edit)), record(model, pattern) as acts:
        logits = model.logits(ids)
    prefix = offset_attention(acts[pattern][:, None], length - 1, first=ids.shape[1] - length)[:, 0]
    return prefix.cpu(), token_losses(logits.float(), ids.to(logits.device))[:, -length:].mean(1).cpu()
