"""Steering by heads: the few attention heads that read a concept best, each moved along its own direction.

Inference-Time Intervention of Li et al. 2023 (Inference-Time Intervention: Eliciting Truthful Answers from a Language
Model, arXiv 2306.03341): heads are ranked by how well a direction in their output tells held-out pairs apart, and the
output of the best is moved by α σ θ, θ the unit vector between the classes' means and σ the sd along it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.access import Edit
from vesalius.concepts.dose_response import DoseResponse, Steer, dose_response
from vesalius.concepts.prompts import answers_of, token_rows, values_at
from vesalius.concepts.readers import (
    exchanged,
    flipped_groups,
    held_out_margins,
    read_directions,
    right_share,
)
from vesalius.data.pairs import Pairs, open_pairs
from vesalius.data.text import sample_rows
from vesalius.errors import VesaliusError
from vesalius.method import method, progress
from vesalius.model import Model

Sides = tuple[Float[Tensor, "pair place d_head"], Float[Tensor, "pair place d_head"]]
Shifts = dict[int, Float[Tensor, "head d_head"]]


@method(needs=("tokens", "tokenizer", "causal", "attention"))
def head_steering(
    model: Model,
    *,
    pairs: str | Path = "sentiment",
    template: str = "",
    heads: int | None = None,
    strengths: list[float] | None = None,
    n_pairs: int = 48,
    draws: int = 4,
    twins: int = 2,
    text: str | None = None,
    contexts: int = 4,
    seed: int = 0,
) -> DoseResponse:
    """How far moving the heads that read a concept best, each along its own direction, moves the network.

    `heads` are moved (None: a tenth of all, at least 2), at every token; `strengths` (None: -10 to 10 in steps of 5)
    count standard deviations. `text` (None: the held-out sample) is what must not change. Control: random directions
    in the same heads, heads and directions chosen by shuffled labels, and random-init twins with heads of their own.

    Raises VesaliusError for more heads than there are, or a strength that makes logits NaN.
    """
    total = model.n_layers * model.n_heads
    count = heads if heads is not None else max(2, total // 10)
    if not 0 < count <= total:
        raise VesaliusError(f"{count} heads were asked for; {model.name} has {total}")
    found = open_pairs(pairs).take(n_pairs, seed=seed)
    answers = answers_of(model, found.questions)
    rows, sample = sample_rows(model, text, length=min(48, model.n_ctx), limit=contexts, seed=seed)

    sides = _outputs(model, found, template)
    accuracy, ours = _shifts(model, sides, found.groups, count, seed)
    shuffled = []
    for number in range(1, 1 + draws // 2):
        turned = exchanged(*sides, flipped_groups(found.groups, seed=seed + number))
        shuffled.append(_shifts(model, turned, found.groups, count, seed)[1])
    others = []
    for number in progress(range(1, 1 + twins), "random-init twins"):
        twin = model.random_twin(seed + number)
        others.append(
            (twin, _steer(_shifts(twin, _outputs(twin, found, template), found.groups, count, seed)[1]))
        )
    best = accuracy.flatten().topk(count)
    names = [f"{int(n) // model.n_heads}.{int(n) % model.n_heads}" for n in best.indices]
    return dose_response(
        model,
        _steer(ours),
        strengths=strengths or [-10, -5, 0, 5, 10],
        answers=answers,
        rows=rows,
        random=[_steer(_random_like(ours, seed + number)) for number in range(draws)],
        shuffled=[_steer(shifts) for shifts in shuffled],
        twins=others,
        reading={"accuracy": best.values.mean().item(), "heads": names, "by_head": accuracy},
        choices={
            "what": f"{found.name} in {count} heads", "heads": names, "operator": "linear", "positions": "all",
            "template": template or "plain", "text": sample, "unit": "1 = one sd of each head along its direction",
            "effect": f"{len(found.questions)} answers to {len(answers.texts)} prompts",
        },
        seed=seed,
    )  # fmt: skip


def _outputs(model: Model, pairs: Pairs, template: str) -> Sides:
    """What every head gives at the last token of either side, `place` running over layers and heads."""
    positive, negative = pairs.filled(template)
    rows = token_rows(model, positive + negative, template=template)
    z = rearrange(
        values_at(model, rows, "z")[:, 0], "text layer head d_head -> text (layer head) d_head"
    ).float()
    return z[: len(pairs)], z[len(pairs) :]


def _shifts(
    model: Model, sides: Sides, groups: tuple[str, ...], count: int, seed: int
) -> tuple[Float[Tensor, "layer head"], Shifts]:
    """The held-out accuracy of every head, and σθ of the best, zero in the others."""
    right = right_share(held_out_margins(*sides, groups, reader="difference_of_means", seed=seed)).mean(0)
    theta = read_directions(*sides, reader="difference_of_means", seed=seed)
    sd = torch.einsum("npd,pd->np", torch.cat(sides), theta).std(0)
    chosen = torch.zeros_like(right)
    chosen[right.topk(count).indices] = 1
    shift = rearrange((chosen * sd)[:, None] * theta, "(layer head) d -> layer head d", head=model.n_heads)
    moved = {layer: shift[layer] for layer in range(model.n_layers) if shift[layer].any()}
    return right.reshape(model.n_layers, model.n_heads), moved


def _random_like(shifts: Shifts, seed: int) -> Shifts:
    generator = torch.Generator().manual_seed(7_919 + 104_729 * seed)
    return {
        layer: F.normalize(torch.randn(shift.shape, generator=generator), dim=-1)
        * shift.norm(dim=-1, keepdim=True)
        for layer, shift in shifts.items()
    }


def _steer(shifts: Shifts) -> Steer:
    def moved(shift: Tensor, strength: float) -> Edit:
        return lambda z: z + strength * shift[:, None].to(z)

    return lambda strength: {f"z@{layer}": moved(shift, strength) for layer, shift in shifts.items()}
