"""Neurons as rules of the board: each explained by a few squares that must be in a certain state for it to fire.

Nanda et al. 2023 (arXiv 2309.00941) found a neuron of Othello-GPT that fires when C0 is blank, D1 theirs and E2 mine;
a study of rules in its MLPs (arXiv 2511.00059) finds half of a layer's neurons to be compact decision trees over
the board. Here every neuron of a layer gets a conjunction:

1. it fires where its activation is above half of its 99.9th percentile;
2. a rule grows one condition at a time, each that a square is, or is not, empty, mine or theirs, taking the one that
   makes the F1 of predicting the firing largest; all neurons at once, as two products of matrices for each condition;
3. precision and recall are told on games that the rule was not grown on.

Beside it, the same growing on firings that were exchanged among the positions, and on random-init twins.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.boards import STATES, Positions, random_positions, size_of
from vesalius.boards.directions import OPENING, inner_layer
from vesalius.data.othello_records import square_names
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import family_wise, percentiles, wilson
from vesalius.model import Model
from vesalius.result import Headline, Result

COMPACT = 0.8
"""F1 on held-out games from which a neuron is called a rule."""
RARELY, OFTEN = 20, 0.3
"""To be looked at, a neuron fires at so many positions at least, growing and judging, and at such a share at most."""
MARGIN = 0.1
"""By what share of neurons the network has to exceed its twins."""
SHOWN = 8
STATE_NAMES = STATES["mine/theirs"]


@dataclass(frozen=True)
class BoardRules(Result):
    """Rules of the neurons that fire often enough; precision, recall and F1 on held-out games, 0..1.

    Those come first whose F1 exceeds most what is found when their firings are exchanged.
    """

    neurons: Int[Tensor, " neuron"]
    rules: list
    """Of each neuron, its conditions as `[square, state, holds]`."""
    precision: Float[Tensor, " neuron"]
    recall: Float[Tensor, " neuron"]
    f1: Float[Tensor, " neuron"]
    shuffled: Float[Tensor, " neuron"]
    """F1 of rules grown on firings that were exchanged among the positions."""
    twins: dict
    """Of random-init twins, the `share` of neurons that are rules and the `median` F1, each `[twin]`."""
    size: int
    choices: dict

    @property
    def share(self) -> float:
        """Of the neurons that fire, those that are rules."""
        return (self.f1 >= COMPACT).float().mean().item() if len(self.f1) else 0.0

    def headlines(self) -> list[Headline]:
        found, looked = int((self.f1 >= COMPACT).sum()), len(self.f1)
        interval = wilson(found, looked) if looked else (0.0, 0.0)
        exchanged = (self.shuffled >= COMPACT).float().mean().item() if looked else 0.0
        bar = max(family_wise(self.twins["share"]), exchanged)
        rows = [
            Headline(
                f"share of the neurons of layer {self.choices['layer']} that a rule of the board predicts",
                self.share,
                bar,
                interval,
                interval[0] > bar + MARGIN,
                f"F1 of {COMPACT} or more: {found} of {looked}; control: random-init twins; "
                f"shuffled {exchanged:.3f}",
            )
        ]
        if looked:
            median = max(family_wise(self.twins["median"]), self.shuffled.median().item())
            middle = percentiles(self.f1[_drawn_again(looked)].median(1).values)
            rows.append(
                Headline(
                    "median F1 of the rules of the layer's neurons",
                    self.f1.median().item(),
                    median,
                    (middle[0].item(), middle[1].item()),
                    middle[0].item() > median + MARGIN,
                    f"control: random-init twins; shuffled {self.shuffled.median():.3f}",
                )
            )
            rows.append(
                Headline(
                    f"neuron {int(self.neurons[0])}: {self.said(0)}; F1",
                    self.f1[0].item(),
                    self.shuffled[0].item(),
                    note=f"precision {self.precision[0]:.2f}, recall {self.recall[0]:.2f}; control: shuffled",
                )
            )
        return rows

    def said(self, number: int) -> str:
        """A rule in words."""
        return " ∧ ".join(
            f"{square} {'' if holds else 'not '}{state}" for square, state, holds in self.rules[number]
        )

    def figure(self) -> Figure:
        few = range(min(SHOWN, len(self.f1)))
        rows = [
            [
                f"neuron {int(self.neurons[i])}",
                self.said(i),
                self.precision[i].item(),
                self.recall[i].item(),
                self.f1[i].item(),
                self.shuffled[i].item(),
            ]
            for i in range(min(40, len(self.f1)))
        ]
        drawn = [
            figures.table(
                ["", "fires where", "precision", "recall", "F1", "F1, shuffled"],
                rows,
                title="The neurons that rules predict best",
                caption="On held-out games.",
            )
        ]
        if len(self.f1):
            drawn = [
                figures.board(
                    [self._drawn(i) for i in few],
                    title="Rules as boards",
                    stones=("mine", "theirs"),
                    columns=4,
                    caption="Framed squares are those that the rule speaks of; a framed one without a stone is "
                    "empty, one with two halves only has to be taken.",
                ),
                figures.histogram(
                    {"rules": self.f1, "shuffled firings": self.shuffled},
                    title="How well rules predict neurons",
                    x_label="F1 on held-out games",
                    references=[("x", COMPACT, "a rule")],
                ),
                *drawn,
            ]
        return figures.group(
            drawn,
            title=f"Neurons of layer {self.choices['layer']} as rules of the board",
        )

    def _drawn(self, number: int) -> dict:
        """What the rule asks of each square, as a share of stones: what is left open is drawn as half of each."""
        side, names = self.size, square_names(self.size)
        stones = torch.zeros(2, side * side)
        for place, name in enumerate(names):
            asked = [(state, holds) for square, state, holds in self.rules[number] if square == name]
            left = [s for s in STATE_NAMES if all((s == state) == holds for state, holds in asked)]
            for kind, state in enumerate(STATE_NAMES[1:]):
                stones[kind, place] = (state in left) / max(len(left), 1) if asked else 0.0
        dark, light = (layer.reshape(side, side) for layer in stones)
        return {
            "label": f"{int(self.neurons[number])}: F1 {self.f1[number]:.2f}",
            "dark": dark,
            "light": light,
            "marked": sorted({square for square, _, _ in self.rules[number]}),
        }


@method(needs=("othello", "mlp"))
def board_rules(
    model: Model,
    *,
    layer: int | None = None,
    conditions: int = 4,
    games: int = 400,
    held_out: int = 200,
    twins: int = 2,
    seed: int = 0,
) -> BoardRules:
    """For every neuron of a layer, the conjunction of up to `conditions` squares that predicts best when it fires.

    `layer` None is the last but one. Rules grow on `games` random games and are judged on `held_out` others.
    """
    layer = inner_layer(model, layer)
    growing = random_positions(model, games, seed=OPENING + seed)
    judging = random_positions(model, held_out, seed=seed)
    fires, fired, looked = _firings(model, growing, judging, layer)
    rules, scores = _judged(growing, judging, fires, fired, conditions)
    generator = torch.Generator().manual_seed(seed)
    mixed = fires[torch.randperm(len(fires), generator=generator)]
    _, shuffled = _judged(growing, judging, mixed, fired, conditions)
    null = []
    for twin in progress(
        [model.random_twin(seed + 1 + number) for number in range(twins)], "random-init twins"
    ):
        other, others, _ = _firings(twin, growing, judging, layer)
        f1 = _judged(growing, judging, other, others, conditions)[1][2]
        null.append(((f1 >= COMPACT).float().mean(), f1.median()) if len(f1) else (torch.zeros(()),) * 2)
    order = (scores[2] - shuffled[2]).argsort(descending=True, stable=True)
    names = square_names(growing.size)
    said = [
        [
            [names[int(c) % (3 * len(names)) // 3], STATE_NAMES[int(c) % 3], int(c) < 3 * len(names)]
            for c in rules[:, i].tolist()
            if c >= 0
        ]
        for i in order.tolist()
    ]
    return BoardRules(
        looked[order],
        said,
        scores[0][order],
        scores[1][order],
        scores[2][order],
        shuffled[2][order],
        {name: torch.stack(values) for name, values in zip(("share", "median"), zip(*null))},
        size_of(model),
        {
            "layer": layer,
            "conditions": conditions,
            "games": games,
            "held_out": held_out,
            "fires": "above half of the 99.9th percentile",
        },
    )


def _drawn_again(count: int) -> Int[Tensor, "draw neuron"]:
    """Which neurons each of a thousand draws with replacement takes."""
    return torch.randint(count, (1000, count), generator=torch.Generator().manual_seed(0))


def _firings(
    model: Model, growing: Positions, judging: Positions, layer: int
) -> tuple[Bool[Tensor, "row neuron"], Bool[Tensor, "held_out neuron"], Int[Tensor, " neuron"]]:
    """Where each neuron fires, of those that do so often enough."""
    acts, held = _neurons(model, growing, layer), _neurons(model, judging, layer)
    bar = acts.quantile(0.999, dim=0) / 2
    fires, fired = (acts > bar) & (acts > 0), (held > bar) & (held > 0)
    told = (fires.float().mean(0) <= OFTEN) & (fires.sum(0) >= RARELY) & (fired.sum(0) >= RARELY)
    looked = told.nonzero()[:, 0]
    return fires[:, looked], fired[:, looked], looked


def _neurons(model: Model, given: Positions, layer: int) -> Float[Tensor, "row neuron"]:
    parts = []
    for tokens in given.tokens.split(128):
        with record(model, f"neurons@{layer}", stop=True) as acts:
            model(tokens)
        found = acts[f"neurons@{layer}"].reshape(*tokens.shape, -1)
        parts.append(found[:, given.first :].float().cpu())
    return torch.cat(parts).flatten(0, 1)


def _judged(
    growing: Positions,
    judging: Positions,
    fires: Bool[Tensor, "row neuron"],
    fired: Bool[Tensor, "held_out neuron"],
    conditions: int,
) -> tuple[Int[Tensor, "condition neuron"], tuple[Tensor, Tensor, Tensor]]:
    """Rules, and their precision, recall and F1 where they were not grown."""
    rules = grown(_conditions(growing), fires, conditions)
    holds = followed(_conditions(judging), rules)
    both = (holds & fired).sum(0).float()
    precision = both / holds.sum(0).clamp(min=1)
    recall = both / fired.sum(0).clamp(min=1)
    return rules, (precision, recall, 2 * both / (holds.sum(0) + fired.sum(0)).clamp(min=1))


def _conditions(given: Positions) -> Bool[Tensor, "row condition"]:
    """Whether each square is empty, mine, theirs, and then whether it is not."""
    states = torch.nn.functional.one_hot(given.boards.flatten(0, 1).long(), 3).flatten(1) > 0
    return torch.cat([states, ~states], 1)


def grown(
    conditions: Bool[Tensor, "row condition"], fires: Bool[Tensor, "row neuron"], most: int
) -> Int[Tensor, "step neuron"]:
    """The conditions of each neuron's rule in the order in which they were taken; -1 where none made it better.

    >>> conditions = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]) > 0
    >>> grown(conditions, conditions.all(1, keepdim=True), 3).flatten().tolist()
    [0, 1, -1]
    """
    plain = conditions.float()
    holds, wanted = torch.ones_like(fires).float(), fires.float()
    total, best = wanted.sum(0), torch.zeros(fires.shape[1])
    taken = []
    for _ in range(most):
        hits, size = (holds * wanted).T @ plain, holds.T @ plain  # [neuron, condition]
        f1 = 2 * hits / (size + total[:, None]).clamp(min=1)
        value, chosen = f1.max(1)
        better = value > best + 1e-3
        taken.append(torch.where(better, chosen, -1))
        holds = torch.where(better, holds * plain[:, chosen], holds)
        best = torch.where(better, value, best)
    return torch.stack(taken)


def followed(
    conditions: Bool[Tensor, "row condition"], rules: Int[Tensor, "step neuron"]
) -> Bool[Tensor, "row neuron"]:
    """Where every condition of each rule holds."""
    holds = torch.ones(len(conditions), rules.shape[1], dtype=torch.bool)
    for step in rules:
        holds &= conditions[:, step.clamp(min=0)] | (step < 0)
    return holds
