"""Directions between boards: where, in the residual stream after each layer, a square goes from mine to theirs.

Nanda et al. 2023 (arXiv 2309.00941): a linear probe says of every square whether it is empty, mine or theirs; adding
the difference of two of its directions to the stream changes the board that the network plays by. How far is told
in gaps: one gap is the distance between the mean activations of both states along the direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import Edit
from vesalius.boards.positions import Positions, random_positions, streams
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.probes.labelled import Labelled
from vesalius.probes.linear import LinearProbes
from vesalius.probes.logistic_regression import logistic

OPENING = 1_000_000
"""Games that directions are fitted to are drawn from seeds this far from those they are tried on."""

TOLERANCE = 1e-4
"""Of the probes' loss: edits along them hang on more digits than what is read with them."""

TURN, FILL = 2.0, 1.0
"""Gaps that an edit adds after each of its layers."""


@dataclass(frozen=True, eq=False)
class BoardDirections:
    """Linear probes for the state of every square after every layer, and the mean activation of each state."""

    probes: LinearProbes
    means: Float[Tensor, "layer square state d_model"]

    def between(
        self, layer: int, squares: Int[Tensor, " case"], old: Int[Tensor, " case"], new: Int[Tensor, " case"]
    ) -> tuple[Float[Tensor, "case d_model"], Float[Tensor, " case"]]:
        """The unit direction that leads from one state of a square to another, and the gap along it.

        To or from empty, the other end is what mine and theirs have in common.
        """
        case = torch.arange(len(squares))
        weight, means = self.probes.weight[layer][squares].mT, self.means[layer][squares]
        filled = (weight[:, 1] + weight[:, 2]) / 2
        start = torch.where((new == 0)[:, None], filled, weight[case, old])
        end = torch.where((old == 0)[:, None], filled, weight[case, new])
        unit = torch.nn.functional.normalize(end - start, dim=1)
        gap = ((means[case, new] - means[case, old]) * unit).sum(1)
        return unit, gap.clamp(min=0)


def board_directions(model: Model, *, games: int, seed: int) -> BoardDirections:
    """Fit the probes to random games, far from those of the same seed that methods try them on."""
    return fit_directions(model, random_positions(model, games, seed=OPENING + seed))


def fit_directions(model: Model, given: Positions) -> BoardDirections:
    """Fit the probes to these positions."""
    acts = streams(model, given).flatten(1, 2)
    boards = given.boards.flatten(0, 1).long()
    member = torch.nn.functional.one_hot(boards, 3).float()  # [row, square, state]
    counts = member.sum(0).clamp(min=1)
    means = torch.stack([torch.einsum("rsk,rd->skd", member, layer) / counts[..., None] for layer in acts])
    return BoardDirections(logistic(Labelled.of(acts, boards, classes=3), tolerance=TOLERANCE), means)


@dataclass(frozen=True, eq=False)
class Push:
    """What is added to the stream of every case, at its own last position, after each of some layers."""

    position: Int[Tensor, " case"]
    vectors: dict[int, Float[Tensor, "case d_model"]]

    def edits(self) -> dict[str, Edit]:
        """For `vs.intervene`."""
        return {f"resid_post@{layer}": self._edit(vector) for layer, vector in self.vectors.items()}

    def at_random(self, seed: int) -> "Push":
        """The same lengths in directions drawn at random, one for every case, the same after every layer."""
        generator = torch.Generator().manual_seed(seed)
        shape = next(iter(self.vectors.values())).shape
        unit = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
        turned = {layer: vector.norm(dim=1, keepdim=True) * unit for layer, vector in self.vectors.items()}
        return Push(self.position, turned)

    def _edit(self, vector: Float[Tensor, "case d_model"]) -> Edit:
        def edit(value: Tensor) -> Tensor:
            pushed = value.clone()
            pushed[torch.arange(len(value)), self.position] += vector.to(value)
            return pushed

        return edit


def push(
    directions: BoardDirections,
    layers: Sequence[int],
    *,
    position: Int[Tensor, " case"],
    squares: Int[Tensor, " case"],
    old: Int[Tensor, " case"],
    new: Int[Tensor, " case"],
    scale: float | None = None,
) -> Push:
    """`scale` gaps along the direction of each case's change, after each of `layers`.

    If left out, `TURN` gaps between mine and theirs, and `FILL` to or from empty: these left the fewest errors on
    cases that no benchmark holds.
    """
    between = torch.where((old == 0) | (new == 0), FILL, TURN)
    vectors = {}
    for layer in layers:
        unit, gap = directions.between(layer, squares, old, new)
        vectors[layer] = (
            (between if scale is None else scale * torch.ones(len(gap)))[:, None] * gap[:, None] * unit
        )
    return Push(position, vectors)


def layer_range(model: Model, first: int | None, last: int | None) -> list[int]:
    """Layers from `first` to `last`; if left out, all but the first and the last of a network of three or more."""
    inner = model.n_layers > 2
    low = int(inner) if first is None else first
    high = model.n_layers - 1 - int(inner) if last is None else last
    if not 0 <= low <= high < model.n_layers:
        raise VesaliusError(
            f"layers {low} to {high} were asked for; {model.name} has layers 0 to {model.n_layers - 1}"
        )
    return list(range(low, high + 1))


def inner_layer(model: Model, layer: int | None) -> int:
    """`layer`, if there is such a one; the last but one if left out, where networks keep the board best."""
    chosen = max(model.n_layers - 2, 0) if layer is None else layer
    if not 0 <= chosen < model.n_layers:
        raise VesaliusError(
            f"layer {chosen} was asked for; {model.name} has layers 0 to {model.n_layers - 1}"
        )
    return chosen
