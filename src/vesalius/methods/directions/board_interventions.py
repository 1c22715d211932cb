"""Does the network play by the board that a probe reads? Change the board inside, and see which moves it then predicts.

The benchmark of Li et al. 2023 (arXiv 2210.13382): in a random position one stone is turned (or taken away) in the
stream after the last move, and the likeliest moves, as many as are legal on the edited board, are compared with the
legal ones. Two edits:

- `linear` (Nanda et al. 2023, arXiv 2309.00941) adds a multiple of the probe's direction, after each of some layers;
- `gradient` (Li et al.) descends the cross-entropy of a probe with a hidden layer to the edited board, which moves
  the stream itself, after each of some layers anew.

Errors are false positives plus false negatives. Beside them stand the null, which edits nothing, a random direction
of the linear edit's length, and the errors on the board as it was. Published on 8×8: null 2.68, gradient 0.12; linear
0.10.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import Edit, intervene
from vesalius.boards import Cases, Change, board_directions, errors, layer_range, push, random_cases
from vesalius.boards.directions import OPENING
from vesalius.boards.positions import random_positions, streams
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.probes.labelled import Labelled
from vesalius.probes.perceptron import MLPProbes, mlp
from vesalius.result import Headline, Result

EDITS = ("linear", "gradient")
WORKS = 0.9
"""Of the null's errors, what the whole interval of an edit has to be below."""
SHOWN = 2


@dataclass(frozen=True)
class BoardInterventions(Result):
    """Errors of every case: 0 is perfect, the null is what an edit that does nothing leaves."""

    errors: dict
    """`before` (the board as it was), `null`, `random direction`, `linear` and `gradient`, each `[case]`."""
    boards: Float[Tensor, "shown square"]
    """The first cases before the edit: 0 empty, 1 mine, 2 theirs."""
    squares: list
    legal: Float[Tensor, "shown when square"]
    """Of these, what is legal before and after."""
    played: Float[Tensor, "shown when square"]
    """Probability of the next move, before and after the linear edit."""
    size: int
    choices: dict

    def mean(self, name: str) -> float:
        return self.errors[name].mean().item()

    def headlines(self) -> list[Headline]:
        null = self.mean("null")
        bar = min(null, self.mean("random direction"))
        rows = []
        for name in EDITS:
            interval = bootstrap(self.errors[name], seed=0, confidence=0.99)
            part = f"{100 * self.mean(name) / null:.0f}% of the null" if null else "the null has no errors"
            rows.append(
                Headline(
                    f"errors in predicted moves after the {name} edit",
                    self.mean(name),
                    null,
                    interval,
                    interval[1] < WORKS * bar,
                    f"{part}; {self.choices['change']}, layers {self.choices['layers']}",
                )
            )
        rows.append(
            Headline(
                "errors after a random direction of equal length",
                self.mean("random direction"),
                null,
                bootstrap(self.errors["random direction"], seed=0),
                note=f"on the board as it was, without an edit: {self.mean('before'):.2f}",
            )
        )
        return rows

    def figure(self) -> Figure:
        side = self.size
        shown = []
        for board, marked, legal, played in zip(self.boards, self.squares, self.legal, self.played):
            stones = {"dark": (board == 1).float().reshape(side, side)}
            stones["light"] = (board == 2).float().reshape(side, side)
            for when, label in enumerate(("before", f"{self.choices['change']} {marked}")):
                shown.append(
                    {
                        "label": label,
                        **stones,
                        "values": played[when].reshape(side, side),
                        "legal": legal[when].reshape(side, side) > 0,
                        "marked": [marked],
                    }
                )
        intervals = {name: bootstrap(values, seed=0) for name, values in self.errors.items()}
        means = [self.mean(name) for name in self.errors]
        return figures.group(
            [
                figures.board(
                    shown,
                    title="Predicted moves, before and after the linear edit",
                    stones=("mine", "theirs"),
                    value_label="probability of the next move",
                    columns=4,
                    caption="Stones as they lie; the marked one is changed in the network alone. Rings: legal on the "
                    "board as the network is to see it.",
                ),
                figures.bars(
                    list(self.errors),
                    {"errors": means},
                    intervals={"errors": list(intervals.values())},
                    title="Errors against the edited board",
                    y_label="false positives + false negatives",
                    caption=f"{len(self.errors['null'])} cases; 'before' is counted against the board as it was.",
                ),
            ],
            title="The network plays by the board inside it: an edit changes its moves",
        )


@method(needs=("othello",))
def board_interventions(
    model: Model,
    *,
    cases: int = 1000,
    change: Change = "flip",
    first: int | None = None,
    last: int | None = None,
    scale: float | None = None,
    games: int = 300,
    hidden: int = 128,
    steps: int = 200,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> BoardInterventions:
    """Errors of the moves that a network predicts after its board was edited, over many random positions.

    Both edits act after layers `first` to `last` (None: all but the outermost). `scale` is in gaps: 1 leads from the
    mean of the one state to the mean of the other (None: 2 to turn a stone, 1 to take it away). `games` are those
    that probes are fitted to; `hidden`, `steps` and `learning_rate` are the gradient edit's.

    >>> from vesalius.testbed import board_tracker
    >>> board_interventions(board_tracker(4), cases=20, games=60, scale=1, steps=10).mean("linear")
    0.0
    """
    layers = layer_range(model, first, last)
    found = random_cases(model, cases, change=change, seed=seed)
    pushed = push(
        board_directions(model, games=games, seed=seed),
        layers,
        position=found.position,
        squares=found.squares,
        old=found.old,
        new=found.new,
        scale=scale,
    )
    probes = _bent(model, games, hidden, seed)
    plain = _scores(model, found, {})
    linear = _scores(model, found, pushed.edits())
    after = {
        "null": plain,
        "random direction": _scores(model, found, pushed.at_random(seed).edits()),
        "linear": linear,
        "gradient": _scores(
            model,
            found,
            {
                f"resid_post@{layer}": _descent(
                    probes, layer, found, steps=steps, learning_rate=learning_rate
                )
                for layer in layers
            },
        ),
    }
    few = slice(0, SHOWN)
    return BoardInterventions(
        {"before": errors(plain, found.before)}
        | {name: errors(scores, found.after) for name, scores in after.items()},
        found.boards[few].float(),
        [found.name(number) for number in range(min(SHOWN, len(found)))],
        torch.stack([found.before[few], found.after[few]], 1).float(),
        torch.stack([plain[few].softmax(1), linear[few].softmax(1)], 1),
        found.size,
        {
            "change": change,
            "layers": f"{layers[0]}–{layers[-1]}",
            "scale": "2 to turn, 1 to take away" if scale is None else scale,
            "games": games,
            "hidden": hidden,
            "steps": steps,
            "learning_rate": learning_rate,
            "positions": "the last move's alone",
        },
    )


def _bent(model: Model, games: int, hidden: int, seed: int) -> MLPProbes:
    given = random_positions(model, games, seed=OPENING + seed)
    boards = given.boards.flatten(0, 1).long()
    return mlp(Labelled.of(streams(model, given).flatten(1, 2), boards, classes=3), hidden=hidden, seed=seed)


def _scores(model: Model, found: Cases, edits: dict[str, Edit]) -> Float[Tensor, "case square"]:
    with intervene(model, edits):
        return found.scores(model.logits(found.tokens))


def _descent(probes: MLPProbes, layer: int, found: Cases, *, steps: int, learning_rate: float) -> Edit:
    """Move the stream of every case, at its last position, to where the probe reads the edited board.

    Rates are in units of the sd of the stream over cases, so that they mean the same after every layer.
    """
    case = torch.arange(len(found))
    board = found.boards.long()
    board[case, found.squares] = found.new
    one = MLPProbes(
        probes.W_in[layer, None],
        probes.b_in[layer, None],
        probes.W_out[layer, None],
        probes.b_out[layer, None],
    )

    def edit(value: Tensor) -> Tensor:
        here = value[case, found.position].detach().float()
        moved = _descended(one, here, board, steps=steps, learning_rate=learning_rate * float(here.std()))
        edited = value.clone()
        edited[case, found.position] = moved.to(value)
        return edited

    return edit


def _descended(
    probe: MLPProbes,
    start: Float[Tensor, "case d_model"],
    board: Int[Tensor, "case square"],
    *,
    steps: int,
    learning_rate: float,
) -> Float[Tensor, "case d_model"]:
    with torch.enable_grad():
        x = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([x], lr=learning_rate)
        for _ in range(steps):
            loss = F.cross_entropy(probe.logits(x)[0].flatten(0, 1), board.flatten(), reduction="sum")
            (x.grad,) = torch.autograd.grad(loss, x)
            optimiser.step()
    return x.detach()
