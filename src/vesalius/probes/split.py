"""Rows for fitting, for choosing and for judging a probe, so that what belongs together stays together.

Rows of one document, game, prompt or picture resemble each other far more than rows of two. A probe that is judged on
the same ones it was fitted on may have learned them by heart.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from vesalius.errors import VesaliusError


@dataclass(frozen=True, eq=False)
class Splits:
    """Numbers of rows, ascending; no group is in two of them."""

    train: Int[Tensor, " fitted"]
    validation: Int[Tensor, " chosen"]
    test: Int[Tensor, " judged"]


def splits(
    groups: Int[Tensor, " row"] | Sequence[Hashable],
    *,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Splits:
    """Whole groups drawn at random until each part has about its share of the rows, and one group at least.

    Raises VesaliusError for fewer than three groups.

    >>> parts = splits(list("aabbccddee"))
    >>> [len(part) for part in (parts.train, parts.validation, parts.test)]
    [6, 2, 2]
    """
    names = groups.tolist() if isinstance(groups, Tensor) else groups
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    member = torch.tensor([numbers[name] for name in names])
    if len(numbers) < 3:
        raise VesaliusError(
            f"{len(names)} rows belong to {len(numbers)} groups; to fit, choose and judge takes three or more"
        )
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    sizes = member.bincount()[order]
    before = (sizes.cumsum(0) - sizes / 2) / sizes.sum()
    part = torch.bucketize(before, torch.tensor(shares).cumsum(0)[:2])
    for number, last in ((1, -2), (2, -1)):  # of few groups, the last two go to the small parts
        if not (part == number).any():
            part[last] = number
    if not (part == 0).any():
        part[0] = 0
    of_group = torch.empty_like(part)
    of_group[order] = part
    train, validation, test = ((of_group[member] == number).nonzero()[:, 0] for number in range(3))
    return Splits(train, validation, test)
