"""The board, read from the residual stream of a network that was shown moves and nothing else.

Li et al. 2023 (Emergent World Representations, arXiv 2210.13382) read black, white and empty off Othello-GPT, which
takes probes with a hidden layer; Nanda et al. 2023 (arXiv 2309.00941) read mine, theirs and empty, which a linear one
does almost without error. Here both, of both kinds, after every layer:

1. probes are fitted to random games that the network has not seen, and judged on other games;
2. beside them stand random-init twins, labels that were shuffled, and the likeliest state of each square alone;
3. the published accuracies on 8×8 stand in the same table. They are those of the original runs (the raw logs of the
   probes of Li et al., on championship games) and of a replication of Nanda et al. by D. Hazineh.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.boards import STATES, Positions, random_positions, size_of, streams
from vesalius.boards.directions import OPENING, TOLERANCE
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap_band, family_wise
from vesalius.model import Model
from vesalius.probes.labelled import Labelled
from vesalius.probes.linear import LinearProbes
from vesalius.probes.logistic_regression import logistic
from vesalius.probes.perceptron import mlp
from vesalius.result import Headline, Result

RELATIVE, ABSOLUTE = STATES
MARGIN = 0.25
"""Of what random-init twins read wrong, the part that has to be read right for the board to be evident."""
PUBLISHED = {  # accuracies in %, from the embedding (or the first layer) to the last
    "8×8, linear, black/white (Li)": (66.8, 75.9, 76.3, 76.4, 76.4, 76.4, 76.3, 76.2, 75.8),
    "8×8, hidden layer of 512, black/white (Li)": (69.3, 88.7, 92.5, 95.1, 96.6, 97.5, 98.2, 98.23, 95.5),
    "8×8, random-init, linear (Li)": (61.6, 73.3, 72.8, 72.4, 72.1, 71.8, 71.5, 71.3, 71.2),
    "8×8, linear, mine/theirs (Hazineh)": (None, 90.8, 94.8, 97.1, 98.3, 99.1, 99.5, 99.5, 99.5),
    "8×8, linear, black/white (Hazineh)": (None, 75.7, 75.8, 75.7, 75.7, 75.6, 75.4, 74.9, 74.9),
}


@dataclass(frozen=True)
class BoardProbes(Result):
    """Shares of squares that are read right on held-out games, 0..1; layer 0 is the embedding, n after n layers."""

    linear: dict
    """For each way of telling the board, `[layer, square]`."""
    hidden: dict
    """The same with a hidden layer."""
    low: dict
    high: dict
    """Bounds of the linear accuracy over all squares `[layer]`, drawn again by games."""
    advantage: dict
    """Mine/theirs less black/white, linear: `difference`, `low` and `high`, each `[layer]`."""
    twins: dict
    """Linear accuracy of random-init twins, `[twin, layer]`."""
    shuffled: Float[Tensor, " layer"]
    """Mine/theirs from probes fitted to boards of other positions."""
    prior: dict
    """The likeliest state of each square, whatever is read: a number."""
    example: dict
    """One held-out position: `board` and probabilities `read` `[layer, square, state]`."""
    size: int
    choices: dict

    @property
    def best(self) -> int:
        """The layer from which mine and theirs are read best."""
        return int(self.linear[RELATIVE].mean(1).argmax())

    def headlines(self) -> list[Headline]:
        best, relative = self.best, self.linear[RELATIVE].mean(1)
        chance = max(family_wise(self.twins[RELATIVE]), self.prior[RELATIVE])
        interval = self.low[RELATIVE][best].item(), self.high[RELATIVE][best].item()
        gap = {name: values[best].item() for name, values in self.advantage.items()}
        null = family_wise(self.twins[RELATIVE] - self.twins[ABSOLUTE])
        bend = self.hidden[ABSOLUTE].mean(1)
        return [
            Headline(
                f"squares read linearly as mine, theirs or empty after layer {best}",
                relative[best].item(),
                chance,
                interval,
                interval[0] > chance + MARGIN * (1 - chance),
                f"control: random-init twins; shuffled {self.shuffled[best]:.3f}, "
                f"likeliest state {self.prior[RELATIVE]:.3f}",
            ),
            Headline(
                f"mine/theirs read better than black/white after layer {best}",
                gap["difference"],
                null,
                (gap["low"], gap["high"]),
                gap["low"] > null,
                "linear probes; control: the same on random-init twins",
            ),
            Headline(
                "black/white with a hidden layer, at its best layer",
                bend.max().item(),
                self.linear[ABSOLUTE].mean(1).max().item(),
                note=f"control: linear; {self.choices['hidden']} units, after layer {int(bend.argmax())}",
            ),
        ]

    def figure(self) -> Figure:
        layers = range(len(self.shuffled))
        series = {f"linear, {view}": self.linear[view].mean(1) for view in STATES}
        bands = {f"linear, {view}": (self.low[view], self.high[view]) for view in STATES}
        series |= {f"hidden layer, {view}": self.hidden[view].mean(1) for view in STATES}
        series["random-init twins, mine/theirs"] = self.twins[RELATIVE].mean(0)
        series["shuffled labels"] = self.shuffled
        percent = {name: [100 * value for value in values.tolist()] for name, values in series.items()}
        columns = ["probe, accuracy in %", *map(str, range(9))]
        rows = [[name, *_nine(values)] for name, values in percent.items()]
        rows += [[name, *_nine(values)] for name, values in PUBLISHED.items()]
        side, best = self.size, self.best
        board, read = self.example["board"], self.example["read"]
        shown = sorted({0, best // 2, best})
        drawn = [
            {"label": "the board", "dark": _laid(board == 1, side), "light": _laid(board == 2, side)},
            *(
                {
                    "label": f"as read after layer {layer}" if layer else "as read from the embedding",
                    "dark": _laid(read[layer, :, 1], side),
                    "light": _laid(read[layer, :, 2], side),
                }
                for layer in shown
            ),
        ]
        return figures.group(
            [
                figures.board(
                    drawn,
                    title="A position of a game it has not seen",
                    stones=("mine", "theirs"),
                    caption="Stones are drawn as far as the linear probe is sure of them.",
                ),
                figures.lines(
                    list(layers),
                    series,
                    bands=bands,
                    title="Squares read right",
                    x_label="after layer",
                    y_label="share of squares",
                    caption=f"Held-out games; always the likeliest state: {self.prior[RELATIVE]:.3f}.",
                ),
                figures.heatmap(
                    _laid(self.linear[RELATIVE][best], side),
                    title=f"Squares read right after layer {best}, mine/theirs",
                    x=list("ABCDEFGH"[:side]),
                    y=range(1, side + 1),
                    value_label="accuracy",
                    diverging=False,
                ),
                figures.table(columns, rows, title="Beside the published accuracies"),
            ],
            title=f"The board is read from the stream: {100 * self.linear[RELATIVE].mean(1)[best]:.1f}% of squares",
        )


@method(needs=("othello",))
def board_probes(
    model: Model,
    *,
    games: int = 300,
    held_out: int = 100,
    hidden: int = 128,
    steps: int = 600,
    twins: int = 2,
    seed: int = 0,
) -> BoardProbes:
    """The state of every square read after every layer, linearly and not, beside twins and shuffled labels.

    Probes are fitted to `games` random games and judged on `held_out` others; `hidden` units and `steps` of training
    are those of the probe that is not linear. The interval draws held-out games again.

    >>> from vesalius.testbed import board_tracker
    >>> board_probes(board_tracker(4), games=60, held_out=20, steps=10).linear["mine/theirs"].min().item()
    1.0
    """
    fitting = random_positions(model, games, seed=OPENING + seed)
    judging = random_positions(model, held_out, seed=seed)
    acts = _acts(model, fitting), _acts(model, judging)
    linear, bent, low, high, prior, hits = {}, {}, {}, {}, {}, {}
    for view in STATES:
        labels, truth = _labels(fitting, view), _labels(judging, view)
        labelled = Labelled.of(acts[0], labels, classes=3)
        probes = logistic(labelled, tolerance=TOLERANCE)
        hits[view] = probes.predictions(acts[1]) == truth
        linear[view] = hits[view].float().mean(1)
        low[view], high[view] = _bands(hits[view].float().mean(2), held_out, seed)
        bent[view] = (
            (mlp(labelled, hidden=hidden, steps=steps, seed=seed).predictions(acts[1]) == truth)
            .float()
            .mean(1)
        )
        prior[view] = (labels.mode(0).values == truth).float().mean().item()
        if view == RELATIVE:
            shuffled = _shuffled(acts, labels, truth, seed)
            example = _example(probes, judging, acts[1])
    difference = hits[RELATIVE].float().mean(2) - hits[ABSOLUTE].float().mean(2)
    edges = _bands(difference, held_out, seed)
    nulls = [model.random_twin(seed + 1 + number) for number in range(twins)]
    null = [_accuracies(twin, fitting, judging) for twin in progress(nulls, "random-init twins")]
    return BoardProbes(
        linear,
        bent,
        low,
        high,
        {"difference": difference.mean(1), "low": edges[0], "high": edges[1]},
        {view: torch.stack([one[view] for one in null]) for view in STATES},
        shuffled,
        prior,
        example,
        size_of(model),
        {
            "games": games,
            "held_out": held_out,
            "hidden": hidden,
            "mine": "of the player who moves next",
            "plies": "all but the last",
        },
    )


def _acts(model: Model, given: Positions) -> Float[Tensor, "layer row d_model"]:
    return streams(model, given, ("resid_pre@0-0", "resid_post@*")).flatten(1, 2)


def _labels(given: Positions, view: str) -> Int[Tensor, "row square"]:
    return given.seen(view).flatten(0, 1).long()


def _bands(
    hits: Float[Tensor, "layer row"], games: int, seed: int
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """The interval of the mean when games are drawn again."""
    return bootstrap_band(hits.unflatten(1, (games, -1)).mean(2).T, seed=seed)


def _shuffled(
    acts: tuple[Tensor, Tensor],
    labels: Int[Tensor, "row square"],
    truth: Int[Tensor, "held square"],
    seed: int,
) -> Float[Tensor, " layer"]:
    """Every position is given the board of another."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    probes = logistic(Labelled.of(acts[0], labels[order], classes=3), tolerance=TOLERANCE)
    return (probes.predictions(acts[1]) == truth).float().mean((1, 2))


def _accuracies(model: Model, fitting: Positions, judging: Positions) -> dict[str, Float[Tensor, " layer"]]:
    """What linear probes read of another network."""
    acts = _acts(model, fitting), _acts(model, judging)
    found = {}
    for view in STATES:
        probes = logistic(Labelled.of(acts[0], _labels(fitting, view), classes=3), tolerance=TOLERANCE)
        found[view] = (probes.predictions(acts[1]) == _labels(judging, view)).float().mean((1, 2))
    return found


def _example(probes: LinearProbes, judging: Positions, acts: Float[Tensor, "layer row d_model"]) -> dict:
    """The middle of the first held-out game."""
    ply = judging.boards.shape[1] // 2
    return {
        "board": judging.boards[0, ply].long(),
        "read": probes.probabilities(acts[:, ply : ply + 1])[:, 0],
    }


def _laid(values: Tensor, side: int) -> Tensor:
    return values.float().reshape(side, side)


def _nine(values: list | tuple) -> list[float | None]:
    """A row of the table: as many layers as the published network has, and its embedding."""
    return [None if value is None else round(value, 1) for value in values[:9]] + [None] * (9 - len(values))
