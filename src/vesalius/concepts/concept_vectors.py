"""A concept's direction in one network: what the network holds for contrast pairs, and the control vector in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from vesalius.concepts.prompts import token_rows, values_at
from vesalius.concepts.readers import (
    FLAGGED,
    agreement,
    difference_of_means,
    exchanged,
    flipped_groups,
    held_out_margins,
    read_directions,
    right_share,
)
from vesalius.data.pairs import Pairs, open_pairs
from vesalius.dictionaries.control_vector import ControlVector
from vesalius.model import Model


@dataclass(frozen=True, eq=False)
class ConceptActivations:
    """What each layer holds at one position of texts with a concept and of texts without, pair by pair."""

    name: str
    positive: Float[Tensor, "pair layer d_model"]
    negative: Float[Tensor, "pair layer d_model"]
    groups: tuple[str, ...]
    layers: list[int]

    def shuffled(self, seed: int) -> "ConceptActivations":
        """The same with the labels of half the groups exchanged: a concept that is none."""
        flip = flipped_groups(self.groups, seed=seed)
        return replace(
            self,
            **dict(zip(("positive", "negative"), exchanged(self.positive, self.negative, flip), strict=True)),
        )

    def right(self, reader: str, *, folds: int = 5, seed: int = 0) -> Float[Tensor, "pair layer"]:
        """Whether each pair is told the right way round by a direction fitted on the other groups."""
        return right_share(
            held_out_margins(self.positive, self.negative, self.groups, reader=reader, folds=folds, seed=seed)
        )

    def agreement(self, reader: str, *, seed: int = 0) -> Float[Tensor, " layer"]:
        """The cosine of a reader's direction with the difference of means."""
        found = read_directions(self.positive, self.negative, reader=reader, seed=seed)
        return agreement(found, difference_of_means(self.positive, self.negative).float())

    def described(self, reader: str, *, seed: int = 0) -> dict:
        """Held-out accuracy at the last layer, and a warning where PCA finds something else than the concept."""
        known = {"accuracy": self.right(reader, seed=seed)[:, -1].mean().item()}
        flagged = warning(
            self.agreement(reader if reader.startswith("pca") else "pca", seed=seed), self.layers
        )
        return known | ({"warning": flagged} if flagged else {})


def warning(cosines: Float[Tensor, " layer"], layers: Sequence[int], *, reader: str = "PCA") -> str:
    """One sentence if a reader's directions are not those of the difference of means, else nothing."""
    apart = [layer for layer, cosine in zip(layers, cosines.tolist(), strict=True) if abs(cosine) < FLAGGED]
    if not apart:
        return ""
    which = (
        "every layer" if len(apart) == len(layers) > 1 else f"layer{'s' * (len(apart) > 1)} {_ranges(apart)}"
    )
    return (
        f"WARNING: at {which} {reader} and the difference of means disagree (|cos| < {FLAGGED}): "
        "the largest variance is not the concept"
    )


def concept_activations(
    model: Model,
    pairs: Pairs,
    *,
    template: str = "",
    layers: Sequence[int] | None = None,
    position: int = -1,
    batch: int = 32,
) -> ConceptActivations:
    """The residual stream after every layer (or some), at one position of each text, in one pass over the pairs.

    Raises VesaliusError for a template that tokenises differently, or a position past the end.
    """
    positive, negative = pairs.filled(template)
    rows = token_rows(model, positive + negative, template=template)
    values = values_at(model, rows, "resid_post", layers=layers, positions=[position], batch=batch)[:, 0]
    return ConceptActivations(
        pairs.name,
        values[: len(pairs)],
        values[len(pairs) :],
        pairs.groups,
        list(range(model.n_layers)) if layers is None else list(layers),
    )


def concept_vector(
    model: Model, acts: ConceptActivations, *, reader: str = "difference_of_means", seed: int = 0
) -> ControlVector:
    """The control vector of a concept: at each layer a reader's direction, as long as the difference of means."""
    found = read_directions(acts.positive, acts.negative, reader=reader, seed=seed)
    length = difference_of_means(acts.positive, acts.negative).norm(dim=-1, keepdim=True).float()
    return ControlVector(
        dict(zip(acts.layers, found * length, strict=True)),
        model=model.name,
        model_hash=model.hash,
        family=model.architecture.name if model.architecture else "",
        label=acts.name,
    )


def control_vector(
    model: Model,
    pairs: str | Path,
    *,
    template: str = "",
    reader: str = "difference_of_means",
    layers: Sequence[int] | None = None,
    position: int = -1,
    seed: int = 0,
) -> ControlVector:
    """The control vector of a built-in concept or of a file of pairs, ready to steer with, to add, or to export."""
    acts = concept_activations(model, open_pairs(pairs), template=template, layers=layers, position=position)
    return concept_vector(model, acts, reader=reader, seed=seed)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
