"""One board edited inside the network: what it predicts before and after a square is turned, taken or filled.

The linear edit of Nanda et al. 2023 (arXiv 2309.00941) on a game of one's own: the probe's direction is added to the
stream after the last move. The moves that are then predicted are compared with those that are legal on the edited
board, beside an edit of the same length in random directions (Li et al. 2023, arXiv 2210.13382).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene, record
from vesalius.boards import (
    BoardDirections,
    Cases,
    Positions,
    board_directions,
    cases,
    demand_moves,
    errors,
    layer_range,
    positions,
    push,
    random_positions,
    size_of,
)
from vesalius.boards.directions import Push
from vesalius.data.othello_records import read_record, replay, square_names, square_number
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.model import Model
from vesalius.result import Headline, Result

DRAWS = 20
"""Random directions that the edit is compared with."""
STATE = {"empty": 0, "mine": 1, "theirs": 2}


@dataclass(frozen=True)
class BoardEdit(Result):
    """Probabilities of the next move and the board as the probe reads it, before and after; errors against the edit."""

    board: Float[Tensor, " square"]
    """0 empty, 1 mine, 2 theirs, where I am to move."""
    square: str
    legal: Float[Tensor, "when square"]
    played: Float[Tensor, "when square"]
    read: Float[Tensor, "when square state"]
    """By the linear probe, after the last edited layer."""
    error: float
    null: float
    random: Float[Tensor, " draw"]
    size: int
    choices: dict

    def headlines(self) -> list[Headline]:
        chance = self.random.mean().item()
        return [
            Headline(
                f"errors in predicted moves after {self.choices['what']}",
                self.error,
                min(self.null, chance),
                note=f"null {self.null:.0f}, random directions {chance:.2f}; one position is no evidence, "
                "board_interventions is",
            ),
            Headline(
                f"probability that the probe gives the new state of {self.square}",
                self._state(1),
                self._state(0),
                note="control: before the edit",
            ),
        ]

    def figure(self) -> Figure:
        stones = {"dark": self._laid(self.board == 1), "light": self._laid(self.board == 2)}
        shown = [
            {"label": "the board", **stones, "legal": self._laid(self.legal[0]) > 0, "marked": [self.square]}
        ]
        for when, label in enumerate(("predicted before", "predicted after")):
            values, legal = self._laid(self.played[when]), self._laid(self.legal[when]) > 0
            shown.append({"label": label, **stones, "values": values, "legal": legal})
        read = [
            {
                "label": label,
                "dark": self._laid(self.read[when, :, 1]),
                "light": self._laid(self.read[when, :, 2]),
                "marked": [self.square],
            }
            for when, label in enumerate(("as read before", "as read after the edit"))
        ]
        states = figures.board(
            [
                {"label": f"{state}, {label}", "values": self._laid(self.read[when, :, number])}
                for when, label in enumerate(("before", "after"))
                for state, number in STATE.items()
            ],
            title="How likely each state is, as the probe reads it",
            value_label="probability",
            columns=6,
        )
        return figures.group(
            [
                figures.board(
                    [shown[0], *read, *shown[1:]],
                    title="The board, as it is read, and the next move",
                    stones=("mine", "theirs"),
                    value_label="probability of the next move",
                    columns=5,
                    caption="The stones of the moves are those that lie on the board; rings are legal, on the right "
                    "by the edited board.",
                ),
                states,
            ],
            title=f"{self.choices['what'].capitalize()} inside the network: {self.error:.0f} errors of {self.null:.0f}",
        )

    def _state(self, when: int) -> float:
        square = square_names(self.size).index(self.square)
        return self.read[when, square, STATE[self.choices["new"]]].item()

    def _laid(self, values: Tensor) -> Tensor:
        return values.float().reshape(self.size, self.size)


@method(needs=("othello",))
def board_edit(
    model: Model,
    *,
    moves: str = "",
    ply: int | None = None,
    square: str = "",
    to: Literal["flip", "empty", "mine", "theirs"] = "flip",
    first: int | None = None,
    last: int | None = None,
    scale: float | None = None,
    games: int = 300,
    seed: int = 0,
) -> BoardEdit:
    """What a network predicts after one square of its board was edited, in a game you give it.

    `moves` is a record as 'D3 C5 …' (empty: a random game), read up to `ply` moves (None: all that were given, or a
    third of a random game); `square` is the one that changes (empty: one whose change changes what is legal). The
    edit acts after layers `first` to `last` (None: all but the outermost), by `scale` gaps between states
    (None: 2 from mine to theirs, 1 to or from empty). Raises
    VesaliusError for a move that the rules forbid, for a position past the end of the record, and for an edit after
    which nothing is legal.

    >>> from vesalius.testbed import board_tracker
    >>> board_edit(board_tracker(4), moves="B1 A1", square="B2", games=60, scale=1).error
    0.0
    """
    given = _game(model, moves, seed)
    read = given.boards.shape[1]
    wanted = (read if moves else read // 3) if ply is None else ply
    if not 1 <= wanted <= read:
        raise VesaliusError(
            f"the position after {wanted} moves was asked for; the record reaches 1 to {read}"
        )
    layers = layer_range(model, first, last)
    case = _case(given, wanted - 1, square, to)
    new = {number: name for name, number in STATE.items()}[int(case.new)]
    what = f"{case.name(0)} is {'turned' if to == 'flip' else new}"
    demand_moves(case, what)
    directions = board_directions(model, games=games, seed=seed)
    pushed = push(
        directions,
        layers,
        position=case.position,
        squares=case.squares,
        old=case.old,
        new=case.new,
        scale=scale,
    )
    before, after = (
        _seen(model, case, None, directions, layers[-1]),
        _seen(model, case, pushed, directions, layers[-1]),
    )
    random = [
        errors(_seen(model, case, pushed.at_random(seed + draw), directions, layers[-1])[0], case.after)
        for draw in range(DRAWS)
    ]
    return BoardEdit(
        case.boards[0].float(),
        case.name(0),
        torch.cat([case.before, case.after]).float(),
        torch.cat([before[0], after[0]]).softmax(1),
        torch.stack([before[1], after[1]]),
        errors(after[0], case.after).item(),
        errors(before[0], case.after).item(),
        torch.cat(random),
        case.size,
        {"what": what, "new": new, "ply": wanted, "layers": layers, "scale": scale, "games": games},
    )


def _game(model: Model, moves: str, seed: int) -> Positions:
    if not moves:
        return random_positions(model, 1, seed=seed)
    size = size_of(model)
    return positions(model, replay(read_record(moves, size), size))


def _case(given: Positions, ply: int, square: str, to: str) -> Cases:
    """The one that was asked for; without a square, the first whose change changes what is legal."""
    board, size = given.boards[0, ply], given.size
    names = [square] if square else square_names(size)
    where = torch.tensor([square_number(name, size) for name in names])
    old = board[where].long()
    new = (3 - old) % 3 if to == "flip" else torch.full_like(old, STATE[to])
    if square and int(new) == int(old):
        state = list(STATE)[int(old)]
        problem = "is empty, so it cannot be turned" if to == "flip" else f"is {state} already"
        raise VesaliusError(f"square {square.upper()} {problem}; choose another square or state")
    every = cases(given, torch.full_like(where, ply), where, new, game=0)
    change = (every.after != every.before).sum(1) * every.after.any(1) * (new != old)
    return every.chosen(change.argmax()[None]) if not square else every


def _seen(
    model: Model, case: Cases, pushed: Push | None, directions: BoardDirections, layer: int
) -> tuple[Float[Tensor, "1 square"], Float[Tensor, "square state"]]:
    """The logits of the next move, and the board as the probe reads it."""
    site = f"resid_post@{layer}"
    with intervene(model, pushed.edits() if pushed else {}), record(model, site) as acts:
        scores = case.scores(model.logits(case.tokens))
    stream = acts[site][:, case.position].float().cpu()
    every = directions.probes.weight[layer], directions.probes.bias[layer]
    read = torch.einsum("w,swk->sk", stream[0, 0], every[0]) + every[1]
    return scores, read.softmax(1)
