"""The activations at which a question is asked, with the answers: by running the network on its inputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import record
from vesalius.errors import VesaliusError, nearest
from vesalius.model import Model
from vesalius.questions.asked import Question

POSITIONS = ("auto", "all", "last", "mean", "each")


@dataclass(frozen=True, eq=False)
class Answered:
    """The activations of some sites where the question is asked, with the answers."""

    acts: dict[str, Float[Tensor, "row width"]]
    labels: Int[Tensor, " row"]
    inputs: Int[Tensor, " row"]
    """The number of the input that a row is of."""
    positions: Int[Tensor, " row"]
    """The place in the input; -1 of the last one, and of the mean."""
    groups: Int[Tensor, " row"]
    """Rows of one number belong together."""
    where: str | int
    """`all`, `last`, `mean`, `each` or the number of a position."""


def where_asked(position: str | int, *, name: str, of_tokens: bool, of_pictures: bool) -> str | int:
    """`all`, `last`, `mean`, `each` or the number of a position.

    What is asked of a whole input is read at its last token, from the mean over its places (pictures: the usual), or at
    others. Raises VesaliusError for another word, or if the position does not fit the question.
    """
    word = str(position)
    if word.isdecimal():
        return int(word)
    if word not in POSITIONS:
        raise VesaliusError(
            f"position '{word}' was asked for; expected {', '.join(POSITIONS)} or a number from 0 on"
            f"{nearest(word, POSITIONS)}"
        )
    usual = "all" if of_tokens else "mean" if of_pictures else "last"
    where = usual if word == "auto" else word
    if of_tokens and where in ("last", "mean"):
        raise VesaliusError(f"'{name}' is asked of every token; expected position 'all', not '{where}'")
    if of_pictures and where == "last":
        raise VesaliusError("a picture has no last position; expected position 'mean' or 'all'")
    return where


@torch.no_grad()
def answered(model: Model, asked: Question, sites: list[str], *, position: str | int = "auto") -> Answered:
    """Run the network on all inputs and take the rows that are asked about."""
    where = where_asked(
        position, name=asked.name, of_tokens=asked.of_tokens, of_pictures=asked.pictures is not None
    )
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for numbers, given, lengths in asked.batches(model):
        with record(model, sites, stop=True) as acts:
            model(given)
        answers = torch.nn.utils.rnn.pad_sequence(
            [asked.answers[number].reshape(-1) for number in numbers], batch_first=True, padding_value=-1
        )
        first, count = (int(model.bos is not None), len(found)) if lengths else (0, len(found))
        for site in sites:
            value = _by_position(acts[site].cpu(), site, lengths)
            rows, label, example, place = _taken(value, answers, where, lengths, first=first)
            if len(found) == count:
                found.append((label, torch.tensor(numbers)[example], place))
            elif len(label) != len(found[-1][0]):
                raise VesaliusError(
                    f"'{site}' has other positions than '{sites[0]}'; expected position 'mean' or one of them"
                )
            parts[site].append(rows.float())
    labels, inputs, positions = (torch.cat(column) for column in zip(*found))
    if not len(labels):
        raise VesaliusError(
            f"no input is asked '{asked.name}' at position {where}; expected one that is read"
        )
    of_group = {name: number for number, name in enumerate(dict.fromkeys(asked.groups))}
    groups = torch.tensor([of_group[name] for name in asked.groups])[inputs]
    return Answered(
        {site: torch.cat(rows) for site, rows in parts.items()}, labels, inputs, positions, groups, where
    )


def _by_position(value: Tensor, site: str, lengths: list[int]) -> Float[Tensor, "example position width"]:
    """Maps, tokens and plain vectors alike."""
    if value.dim() == 4 and not lengths:
        return value.flatten(2).mT
    if value.dim() == 2 and not lengths:
        return value[:, None]
    if value.dim() != 3:
        raise VesaliusError(
            f"'{site}' gives {value.dim()} axes, {list(value.shape)}; a probe reads one vector a position, as of "
            "'resid_post@0' or of one head, 'z@0[3]'"
        )
    return value


def _taken(
    value: Float[Tensor, "example position width"],
    answers: Int[Tensor, "example answer"],
    where: str | int,
    lengths: list[int],
    *,
    first: int,
) -> tuple[Float[Tensor, "row width"], Int[Tensor, " row"], Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Rows, their labels, and the example and the position of each."""
    examples, positions, _ = value.shape
    ends = torch.tensor(lengths or [positions] * examples)
    place, everyone = torch.arange(positions), torch.arange(examples)
    if where == "last":
        return value[everyone, ends - 1], answers[:, 0], everyone, torch.full_like(everyone, -1)
    counts = (place >= first) & (place < ends[:, None])
    if where == "mean":
        weight = counts.to(value)[..., None]
        mean = (value * weight).sum(1) / weight.sum(1).clamp(min=1)
        return mean, answers[:, 0], everyone, torch.full_like(everyone, -1)
    if isinstance(where, int):
        counts &= place == where
    truth = answers.expand(-1, positions).masked_fill(~counts, -1)
    example, position = (truth >= 0).nonzero(as_tuple=True)
    return value[truth >= 0], truth[truth >= 0], example, position
