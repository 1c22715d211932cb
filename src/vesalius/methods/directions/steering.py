"""Steering: add a concept's direction to what the network computes, and see whether the network follows.

Zou et al. 2023 (Representation Engineering, arXiv 2310.01405) control by reading vectors; Rimsky et al. 2023
(Steering Llama 2 via Contrastive Activation Addition, arXiv 2312.06681) add the difference of means at every token and
sweep a multiplier. Here the direction comes from contrast pairs, or from a control vector on disk, and each strength
is measured for what it should move, and for what it should not.
"""

from pathlib import Path
from typing import Literal

from vesalius.access import Edit
from vesalius.concepts.concept_vectors import concept_activations, concept_vector
from vesalius.concepts.dose_response import DoseResponse, Steer, dose_response
from vesalius.concepts.prompts import answers_of
from vesalius.concepts.steered import Operator, steering_edits
from vesalius.data.pairs import open_pairs
from vesalius.data.text import sample_rows
from vesalius.dictionaries.control_vector import ControlVector
from vesalius.edits import at
from vesalius.errors import VesaliusError
from vesalius.formats.control_vectors import read_control_vector
from vesalius.method import method, progress
from vesalius.model import Model


@method(needs=("tokens", "tokenizer", "causal"))
def steering(
    model: Model,
    *,
    pairs: str | Path = "sentiment",
    vector: str | Path = "",
    template: str = "",
    reader: Literal[
        "difference_of_means", "pca", "logistic", "cluster_means", "mass_mean"
    ] = "difference_of_means",
    layers: list[int] | None = None,
    operator: Operator = "linear",
    strengths: list[float] | None = None,
    positions: list[int] | None = None,
    keep_norm: bool = False,
    prompts: list[str] | None = None,
    towards: str = "",
    away: str = "",
    n_pairs: int = 48,
    draws: int = 4,
    twins: int = 2,
    text: str | None = None,
    contexts: int = 4,
    seed: int = 0,
) -> DoseResponse:
    """How far adding a concept's direction moves the network towards the concept, at every strength.

    Strength 1 adds the whole difference of the two classes' means (of another reader, as long a vector). `layers` are
    those steered (None: one, at half depth), `positions` the tokens, counted from 0 (None: all); `strengths` None: -2
    to 2 in steps of 1. The direction is fitted to `pairs`, or read from the file `vector`. The effect is measured on
    the concept's own questions, or on `prompts` answered by `towards` rather than `away` (None: the concept's). `text`
    (None: the held-out sample) is what must not change. Control: `draws` random directions of equal norm, half as many
    directions fitted to shuffled labels, and `twins` random-init networks with directions of their own.

    Raises VesaliusError for pairs without questions, a strength that makes logits NaN, another network's vector.
    """
    chosen = [model.n_layers // 2] if layers is None else layers
    found = open_pairs(pairs).take(n_pairs, seed=seed)
    asked = [(prompt, towards, away) for prompt in prompts] if prompts else list(found.questions)
    answers = answers_of(model, asked)
    rows, sample = sample_rows(model, text, length=min(48, model.n_ctx), limit=contexts, seed=seed)
    shortest = min(min(answers.ends), rows.shape[1])
    if positions and not all(0 <= position < shortest for position in positions):
        raise VesaliusError(
            f"positions {positions} are not all within texts of {shortest} tokens; expected 0 to {shortest - 1}"
        )

    def steer(vector: ControlVector, network: Model = model) -> Steer:
        def edits(strength: float) -> dict[str, Edit]:
            made = steering_edits(network, vector, strength=strength, operator=operator, keep=keep_norm)
            return {site: at(positions, edit) if positions else edit for site, edit in made.items()}

        return edits

    if vector:
        ours, shuffled, others, reading = read_control_vector(vector).check(model), [], [], {}
    else:
        acts = concept_activations(model, found, template=template, layers=chosen)
        ours = concept_vector(model, acts, reader=reader, seed=seed)
        shuffled = [
            concept_vector(model, acts.shuffled(seed + number), reader=reader, seed=seed).normed_like(ours)
            for number in range(1, 1 + draws // 2)
        ]
        reading = acts.described(reader, seed=seed)
        others = []
        for number in progress(range(1, 1 + twins), "random-init twins"):
            twin = model.random_twin(seed + number)
            theirs = concept_activations(twin, found, template=template, layers=chosen)
            others.append((twin, steer(concept_vector(twin, theirs, reader=reader, seed=seed), twin)))
    return dose_response(
        model,
        steer(ours),
        strengths=strengths or [-2, -1, 0, 1, 2],
        answers=answers,
        rows=rows,
        random=[steer(ours.random_like(seed + number)) for number in range(draws)],
        shuffled=[steer(one) for one in shuffled],
        twins=others,
        reading=reading,
        choices={
            "what": ours.label or found.name, "layers": ours.layers, "operator": operator, "reader": reader,
            "positions": positions or "all", "norm": "kept" if keep_norm else "free", "template": template or "plain",
            "pairs": f"{len(found)} of {found.name}", "text": sample, "unit": "1 = the difference of means",
            "effect": f"{len(asked)} answers to {len(answers.texts)} prompts",
        },
        seed=seed,
    )  # fmt: skip
