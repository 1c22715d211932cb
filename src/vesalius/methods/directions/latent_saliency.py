"""Latent saliency: how much the prediction of a move rests on each square of the board inside the network.

Li et al. 2023 (Emergent World Representations, arXiv 2210.13382): turn one square in the stream, and see how far the
logit of a move falls. A network that plays by the rules lets it fall exactly where turning the stone would make the
move illegal, and rise where it would make one legal; the rules say of every square and move which it is. The edit is
that of Nanda et al. 2023 (arXiv 2309.00941), and beside it stands one of equal length in a random direction.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene
from vesalius.boards import Cases, board_directions, cases, layer_range, push, random_positions
from vesalius.boards.directions import Push
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.result import Headline, Result

KINDS = ("stays legal", "becomes illegal", "becomes legal")
SHOWN = 4


@dataclass(frozen=True)
class LatentSaliency(Result):
    """Changes of logits, less their mean over the moves, when a square is turned inside the network."""

    change: dict
    """By what the rules say of the move, the mean of each position; NaN where a position has none."""
    random: dict
    """The same along random directions."""
    board: Float[Tensor, " square"]
    """Of the position that is drawn: 0 empty, 1 mine, 2 theirs."""
    moves: list
    """Its likeliest moves."""
    saliency: Float[Tensor, "move square"]
    """How far their logits fall when a square is turned; 0 where there is no stone."""
    matters: Float[Tensor, "move square"]
    """1 where turning the square makes the move illegal."""
    size: int
    choices: dict

    def headlines(self) -> list[Headline]:
        fall, null = (_difference(values) for values in (self.change, self.random))
        interval = bootstrap(fall, seed=0, confidence=0.99)
        bar = bootstrap(null, seed=0, confidence=0.99)[1]
        return [
            Headline(
                "fall of a move's logit where turning the square makes it illegal, less where it stays legal",
                fall.mean().item(),
                null.mean().item(),
                interval,
                interval[0] > max(bar, 0.0) + self.choices["margin"],
                f"control: random directions; layers {self.choices['layers']}, {self.choices['scale']} gaps",
            ),
            Headline(
                "rise of a move's logit where turning the square makes it legal",
                _known(self.change["becomes legal"]).mean().item(),
                _known(self.random["becomes legal"]).mean().item(),
                note="control: random directions",
            ),
        ]

    def figure(self) -> Figure:
        side = self.size
        stones = {"dark": (self.board == 1).float().reshape(side, side)}
        stones["light"] = (self.board == 2).float().reshape(side, side)
        shown = []
        for number, move in enumerate(self.moves):
            places = self.matters[number].nonzero()[:, 0].tolist()
            shown.append(
                {
                    "label": f"{move}: what it rests on",
                    "values": self.saliency[number].reshape(side, side),
                    "marked": [f"{'ABCDEFGH'[place % side]}{place // side + 1}" for place in places],
                }
            )
        names = {name: [_known(values[name]) for values in (self.change, self.random)] for name in KINDS}
        return figures.group(
            [
                figures.board(
                    [{"label": "the board", **stones}, *shown],
                    title="Latent saliency of the likeliest moves",
                    stones=("mine", "theirs"),
                    value_label="fall of the move's logit when the square is turned",
                    diverging=True,
                    columns=len(shown) + 1,
                    caption="Framed: by the rules, turning this stone makes the move illegal.",
                ),
                figures.bars(
                    list(KINDS),
                    {
                        "turned": [pair[0].mean().item() for pair in names.values()],
                        "random direction": [pair[1].mean().item() for pair in names.values()],
                    },
                    intervals={"turned": [bootstrap(pair[0], seed=0) for pair in names.values()]},
                    title="What the rules say of the move, and what its logit does",
                    y_label="change of the logit",
                    caption=f"{len(self.change[KINDS[0]])} positions; every stone of each is turned, one at a time.",
                ),
            ],
            title="A move rests on the squares that make it legal",
        )


@method(needs=("othello",))
def latent_saliency(
    model: Model,
    *,
    positions: int = 40,
    first: int | None = None,
    last: int | None = None,
    scale: float = 2.0,
    games: int = 300,
    margin: float = 0.1,
    seed: int = 0,
) -> LatentSaliency:
    """How the logit of every move changes when each stone is turned inside the network, beside what the rules say.

    The stones of `positions` random games are turned by `scale` gaps after layers `first` to `last` (None: all but
    the outermost). There is evidence if logits fall by more than a random direction makes them, and `margin`.

    >>> from vesalius.testbed import board_tracker
    >>> found = latent_saliency(board_tracker(4), positions=4, games=60, scale=1)
    >>> bool((found.saliency > 5).eq(found.matters > 0).all())
    True
    """
    layers = layer_range(model, first, last)
    turned = _turned(model, positions, seed)
    which = torch.repeat_interleave(torch.arange(positions), torch.tensor([len(one) for one in turned]))
    together = _joined(turned)
    directions = board_directions(model, games=games, seed=seed)
    pushed = push(
        directions,
        layers,
        position=together.position,
        squares=together.squares,
        old=together.old,
        new=together.new,
        scale=scale,
    )
    plain = _logits(model, together, None)
    after = {
        "turned": _logits(model, together, pushed),
        "random": _logits(model, together, pushed.at_random(seed)),
    }
    change = {name: _centred(scores - plain) for name, scores in after.items()}
    kinds = {
        "stays legal": together.before & together.after,
        "becomes illegal": together.before & ~together.after,
        "becomes legal": ~together.before & together.after,
    }
    by = {
        name: {kind: _means(values, member, which, positions) for kind, member in kinds.items()}
        for name, values in change.items()
    }
    here = which == 0
    likely = (
        plain[here][0]
        .masked_fill(~together.before[here][0], -torch.inf)
        .topk(min(SHOWN, int(together.before[here][0].sum())))
    )
    saliency = torch.zeros(len(likely.indices), together.size**2)
    matters = torch.zeros_like(saliency)
    saliency[:, together.squares[here]] = -change["turned"][here][:, likely.indices].T
    matters[:, together.squares[here]] = kinds["becomes illegal"][here][:, likely.indices].T.float()
    return LatentSaliency(
        by["turned"],
        by["random"],
        together.boards[0].float(),
        [
            f"{'ABCDEFGH'[place % together.size]}{place // together.size + 1}"
            for place in likely.indices.tolist()
        ],
        saliency,
        matters,
        together.size,
        {"layers": f"{layers[0]}–{layers[-1]}", "scale": scale, "games": games, "margin": margin},
    )


def _turned(model: Model, count: int, seed: int) -> list[Cases]:
    """Of each game, one position of its first half, with each of its stones turned."""
    given = random_positions(model, count, seed=seed)
    plies = given.boards.shape[1]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(plies // 6, plies // 2, (count,), generator=generator).tolist()
    found = []
    for game, ply in enumerate(chosen):
        squares = given.boards[game, ply].nonzero()[:, 0]
        new = 3 - given.boards[game, ply, squares].long()
        found.append(cases(given, torch.full_like(squares, ply), squares, new, game=game))
    return found


def _joined(parts: list[Cases]) -> Cases:
    names = ("tokens", "position", "boards", "squares", "old", "new", "before", "after")
    return Cases(parts[0].size, *(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _logits(model: Model, found: Cases, pushed: Push | None) -> Float[Tensor, "case square"]:
    """Of the next move; -inf at squares that are never played."""
    with intervene(model, pushed.edits() if pushed else {}):
        return found.scores(model.logits(found.tokens))


def _centred(change: Float[Tensor, "case square"]) -> Float[Tensor, "case square"]:
    """Softmax does not see what all moves gain; 0 at squares that are never played."""
    playable = change.isfinite()
    known = change.where(playable, 0.0)
    return (known - known.sum(1, keepdim=True) / playable.sum(1, keepdim=True)).where(playable, 0.0)


def _means(
    change: Float[Tensor, "case square"], member: Bool[Tensor, "case square"], which: Tensor, positions: int
) -> Float[Tensor, " position"]:
    """The mean over a position's pairs of square and move."""
    sums, counts = torch.zeros(positions), torch.zeros(positions)
    sums.index_add_(0, which, (change * member).sum(1))
    counts.index_add_(0, which, member.sum(1).float())
    return sums / counts


def _difference(change: dict) -> Float[Tensor, " position"]:
    return _known(change["stays legal"] - change["becomes illegal"])


def _known(values: Float[Tensor, " position"]) -> Float[Tensor, " known"]:
    """Without the positions that have no such pair; a 0 if none has."""
    found = values[values.isfinite()]
    return found if len(found) else torch.zeros(1)
