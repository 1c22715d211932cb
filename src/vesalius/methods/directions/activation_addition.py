"""Activation addition: the difference of two prompts, added at the front of every other prompt.

Turner et al. 2023 (Steering Language Models With Activation Engineering, arXiv 2308.10248): run a prompt and its
opposite, padded on the right to one length, take the difference of the residual stream before one layer, and add it,
times a coefficient, to the first positions of whatever is read.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.access import Edit, record
from vesalius.concepts.dose_response import DoseResponse, Steer, dose_response
from vesalius.concepts.prompts import answers_of, padded
from vesalius.data.pairs import open_pairs
from vesalius.data.text import sample_rows
from vesalius.edits import add, at
from vesalius.errors import VesaliusError
from vesalius.method import method
from vesalius.model import Model


@method(needs=("tokens", "tokenizer", "causal"))
def activation_addition(
    model: Model,
    *,
    towards: str = " wonderful",
    away: str = " terrible",
    concept: str = "sentiment",
    layer: int | None = None,
    strengths: list[float] | None = None,
    draws: int = 4,
    twins: int = 2,
    text: str | None = None,
    contexts: int = 4,
    seed: int = 0,
) -> DoseResponse:
    """How far the difference of two prompts, added at the front of others, moves the network.

    The difference of `towards` and `away` before `layer` (None: at half depth) is added to as many first positions as
    they have tokens, the first of all left out; `strengths` None: -4 to 4 in steps of 2. The effect is measured on the
    questions of a `concept` or of a file of pairs; `text` (None: the held-out sample) is what must not change. Control:
    random vectors as long at every position, and the same two prompts in random-init twins.

    Raises VesaliusError for two prompts that are one, or a strength that makes logits NaN.
    """
    chosen = model.n_layers // 2 if layer is None else layer
    answers = answers_of(model, open_pairs(concept).questions)
    ours = _difference(model, towards, away, layer=chosen)
    rows, sample = sample_rows(model, text, length=min(48, model.n_ctx), limit=contexts, seed=seed)
    shortest = min(answers.ends)
    first = 0 if model.bos is None else 1
    if first + len(ours) > shortest:
        raise VesaliusError(
            f"the prompts differ over {len(ours)} tokens, more than the shortest question of {shortest}"
        )

    def steer(vector: Float[Tensor, "pos d_model"]) -> Steer:
        def edits(strength: float) -> dict[str, Edit]:
            return {f"resid_pre@{chosen}": at(slice(first, first + len(vector)), add(vector, strength))}

        return edits

    generator = torch.Generator().manual_seed(7_919 + seed)
    random = [torch.randn(ours.shape, generator=generator) for _ in range(draws)]
    networks = [model.random_twin(seed + number) for number in range(1, 1 + twins)]
    return dose_response(
        model,
        steer(ours),
        strengths=strengths or [-4, -2, 0, 2, 4],
        answers=answers,
        rows=rows,
        random=[steer(one * ours.norm(dim=-1, keepdim=True) / one.norm(dim=-1, keepdim=True)) for one in random],
        twins=[(twin, steer(_difference(twin, towards, away, layer=chosen))) for twin in networks],
        reading={"norm": ours.norm(dim=-1).mean().item()},
        choices={
            "what": f"'{towards}' - '{away}'", "layer": chosen, "positions": f"the first {len(ours)}",
            "operator": "linear", "text": sample, "unit": "1 = the difference once",
            "effect": f"questions of {concept}",
        },
        seed=seed,
    )  # fmt: skip


def _difference(model: Model, towards: str, away: str, *, layer: int) -> Float[Tensor, "pos d_model"]:
    """The residual stream before a layer on one prompt less that on the other, the begin token left out."""
    rows = [model.tokens(text)[0].tolist() for text in (towards, away)]
    if rows[0] == rows[1]:
        raise VesaliusError(f"'{towards}' and '{away}' are the same tokens; expected two prompts that differ")
    with record(model, f"resid_pre@{layer}", stop=True) as acts:
        model(padded(rows, fill=model.bos or 0).to(model.device))
    first, second = acts[f"resid_pre@{layer}"].cpu().float()
    return (first - second)[0 if model.bos is None else 1 :]
