"""Contrast vectors: each prompt steered along its own direction, the difference that two instructions make to it.

Zou et al. 2023 (Representation Engineering, arXiv 2310.01405): at every layer chosen, what the network holds at the
last token of the prompt after one instruction less that after the opposite, h⁺ - h⁻, is added at every token of the
prompt itself. It costs about three forwards where a reading vector costs one, and follows the input.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius.access import Edit
from vesalius.concepts.dose_response import DoseResponse, Steer, dose_response
from vesalius.concepts.prompts import BATCH, answers_of, token_rows, values_at
from vesalius.data.pairs import open_pairs
from vesalius.data.text import sample_rows
from vesalius.errors import VesaliusError
from vesalius.method import method
from vesalius.model import Model

Vectors = dict[int, Float[Tensor, "row d_model"]]


@method(needs=("tokens", "tokenizer", "causal"))
def contrast_steering(
    model: Model,
    *,
    concept: str = "truthful",
    towards: str = "Pretend you are an honest person making statements about the world. {text}",
    away: str = "Pretend you are an untruthful person making statements about the world. {text}",
    layers: list[int] | None = None,
    strengths: list[float] | None = None,
    draws: int = 4,
    twins: int = 2,
    text: str | None = None,
    contexts: int = 4,
    seed: int = 0,
) -> DoseResponse:
    """How far adding the difference that two instructions make to each prompt moves the answers.

    `towards` and `away` are the instructions, with the prompt at `{text}`; `layers` are those steered (None: every
    second one); `strengths` None: -1 to 1 in steps of 0.5. The effect is measured on the questions of a `concept` or
    of a file of pairs; other `text` (None: the held-out sample) is steered by the mean of the prompts' vectors and
    must not change. Control: random vectors as long for every prompt, and the same instructions in random-init twins.

    Raises VesaliusError for an instruction without `{text}`, or a strength that makes logits NaN.
    """
    for template in (towards, away):
        if template.count("{text}") != 1:
            raise VesaliusError(
                f"the instruction '{template}' has no place for the prompt; expected one {{text}}"
            )
    chosen = list(range(0, model.n_layers, 2)) if layers is None else layers
    answers = answers_of(model, open_pairs(concept).questions)
    if len(answers.ids) > BATCH or contexts == len(answers.ids):
        raise VesaliusError(
            f"{len(answers.ids)} answers were asked for beside {contexts} contexts; expected at most {BATCH}, "
            "and another number of contexts"
        )
    rows, sample = sample_rows(model, text, length=min(48, model.n_ctx), limit=contexts, seed=seed)

    def contrast(network: Model) -> Vectors:
        sides = [
            values_at(
                network,
                token_rows(network, [template.replace("{text}", prompt) for prompt in answers.texts]),
                "resid_post",
                layers=chosen,
            )[:, 0].float()
            for template in (towards, away)
        ]
        each = (sides[0] - sides[1])[answers.prompts]
        return {layer: each[:, number] for number, layer in enumerate(chosen)}

    def steer(vectors: Vectors) -> Steer:
        return lambda strength: {f"resid_post@{n}": _added(rows, strength) for n, rows in vectors.items()}

    ours = contrast(model)
    generator = torch.Generator().manual_seed(7_919 + seed)
    random = [
        {
            layer: F.normalize(torch.randn(each.shape[1], generator=generator), dim=0)
            * each.norm(dim=-1, keepdim=True)
            for layer, each in ours.items()
        }
        for _ in range(draws)
    ]
    return dose_response(
        model,
        steer(ours),
        strengths=strengths or [-1, -0.5, 0, 0.5, 1],
        answers=answers,
        rows=rows,
        random=[steer(vectors) for vectors in random],
        twins=[(t, steer(contrast(t))) for t in (model.random_twin(seed + n) for n in range(1, 1 + twins))],
        reading={"norm": torch.stack([each.norm(dim=-1).mean() for each in ours.values()]).mean().item()},
        choices={
            "what": f"the contrast of two instructions ({concept})", "layers": chosen, "operator": "linear",
            "positions": "all, by the difference at the last token", "towards": towards, "away": away, "text": sample,
            "unit": "1 = the whole difference at each layer", "effect": f"questions of {concept}",
        },
        seed=seed,
    )  # fmt: skip


def _added(each: Float[Tensor, "row d_model"], strength: float) -> Edit:
    """Every row's own vector; rows that are not the questions get the mean."""

    def edit(h: Tensor) -> Tensor:
        vectors = each if len(each) == len(h) else each.mean(0, keepdim=True)
        return h + strength * vectors[:, None].to(h)

    return edit
