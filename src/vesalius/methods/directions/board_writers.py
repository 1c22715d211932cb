"""Which heads and MLPs write the board into the residual stream: whose stone a square holds, part by part.

The stream after a layer is the sum of what the embedding, every head and every MLP wrote (Elhage et al. 2021,
transformer-circuits.pub/2021/framework), so the gap between mine and theirs along the probe's direction (Nanda et al.
2023, arXiv 2309.00941) is the sum of their gaps: the difference of the means of what a part writes along it, in
positions where the square is mine and where it is theirs. Gaps are in standard deviations of the stream along the
direction among positions of one state, so that 4 parts the two states well, and their sum is that of the whole stream.
Beside them stand
directions drawn at random, and random-init twins, whose strongest head or MLP sets the bar.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.boards import Positions, random_positions, size_of
from vesalius.boards.directions import OPENING, BoardDirections, fit_directions, inner_layer
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap_band, family_wise
from vesalius.model import Model
from vesalius.result import Headline, Result

PARTS = 10
"""Equal parts of the held-out games, over which intervals are drawn."""
SHOWN = 6


@dataclass(frozen=True)
class BoardWriters(Result):
    """Gaps between mine and theirs in standard deviations, of every part of the network at every square."""

    parts: list
    """Names: `embed`, `head 2.5`, `mlp 3`, `bias`."""
    gaps: Float[Tensor, "part square"]
    low: Float[Tensor, " part"]
    high: Float[Tensor, " part"]
    """Of the mean over squares."""
    random: Float[Tensor, " part"]
    """Mean over squares along random directions, sign apart."""
    chance: float
    """What the strongest head or MLP of a random-init twin passes once in a hundred times."""
    size: int
    choices: dict

    def headlines(self) -> list[Headline]:
        mean = self.gaps.mean(1)
        best, total = int(mean[1:-1].argmax()) + 1, mean.sum().item()
        of = {
            kind: sum(mean[i].item() for i, name in enumerate(self.parts) if name.startswith(kind))
            for kind in ("head", "mlp")
        }
        return [
            Headline(
                f"gap between mine and theirs written by {self.parts[best]}, the strongest head or MLP, in sd",
                mean[best].item(),
                max(self.chance, self.random[best].item()),
                (self.low[best].item(), self.high[best].item()),
                self.low[best].item() > self.chance,
                f"of {total:.2f} in all after layer {self.choices['layer']}; control: the strongest of twins",
            ),
            Headline(
                "share of the gap that MLPs write", of["mlp"] / total, note=f"heads {of['head'] / total:.2f}"
            ),
        ]

    def figure(self) -> Figure:
        mean = self.gaps.mean(1)
        order = mean.argsort(descending=True).tolist()
        bars = order[:16]
        side = self.size
        shown = order[:SHOWN]
        return figures.group(
            [
                figures.bars(
                    [self.parts[i] for i in bars],
                    {"probe's direction": mean[bars], "random direction": self.random[bars]},
                    intervals={
                        "probe's direction": [(self.low[i].item(), self.high[i].item()) for i in bars]
                    },
                    title="Who writes it: the strongest parts, mean over squares",
                    y_label="gap between mine and theirs (sd)",
                    caption=f"Once in a hundred random-init networks has a head or MLP above {self.chance:.3f}.",
                ),
                figures.board(
                    [{"label": self.parts[i], "values": self.gaps[i].reshape(side, side)} for i in shown],
                    title="Where they write",
                    value_label="gap between mine and theirs (sd)",
                    diverging=True,
                    columns=min(SHOWN, 6),
                ),
            ],
            title=f"Who writes whose stone it is, into the stream after layer {self.choices['layer']}",
        )


@method(needs=("othello", "attention", "mlp"))
def board_writers(
    model: Model,
    *,
    layer: int | None = None,
    games: int = 300,
    held_out: int = 100,
    twins: int = 3,
    seed: int = 0,
) -> BoardWriters:
    """What every head and MLP adds to the difference between mine and theirs, for every square of the board.

    The direction is that of a linear probe after `layer` (None: the last but one), fitted to `games` random games;
    gaps are of `held_out` others, and the interval is over ten parts of these.
    """
    layer = inner_layer(model, layer)
    fitting = random_positions(model, games, seed=OPENING + seed)
    judging = random_positions(model, held_out, seed=seed)
    names, gaps, random = _written(model, fitting, judging, layer, seed)
    null = []
    for twin in progress(
        [model.random_twin(seed + 1 + number) for number in range(twins)], "random-init twins"
    ):
        null.append(_written(twin, fitting, judging, layer, seed)[1].mean((0, 2))[1:-1])
    low, high = bootstrap_band(gaps.mean(2), seed=seed)
    return BoardWriters(
        names,
        gaps.mean(0),
        low,
        high,
        random,
        family_wise(torch.stack(null)),
        size_of(model),
        {
            "layer": layer,
            "games": games,
            "held_out": held_out,
            "norm": "none: what is added to the stream as it is",
        },
    )


def _written(
    model: Model, fitting: Positions, judging: Positions, layer: int, seed: int
) -> tuple[list[str], Float[Tensor, "group part square"], Float[Tensor, " part"]]:
    """The gaps of every part along the probe's directions, and their mean size along random ones."""
    directions = fit_directions(model, fitting)
    chosen = _units(directions, layer)
    generator = torch.Generator().manual_seed(seed)
    other = torch.nn.functional.normalize(torch.randn(chosen.shape, generator=generator), dim=1)
    names, written = _parts(model, judging, torch.cat([chosen, other]), layer)
    boards = judging.boards.repeat(1, 1, 2)
    sd = _within(written.sum(0), boards).clamp(min=1e-9)
    each = [_gap(values, held) for values, held in zip(_split(written, 1), _split(boards, 0))]
    gaps = torch.stack(each) / sd
    squares = len(chosen)
    return names, gaps[..., :squares], gaps[..., squares:].mean(0).abs().mean(1)


def _within(
    stream: Float[Tensor, "game ply square"], boards: Int8[Tensor, "game ply square"]
) -> Float[Tensor, " square"]:
    """The sd of the stream along each direction among positions of one state, mine and theirs taken together."""
    squares, count = torch.zeros(stream.shape[2]), torch.zeros(stream.shape[2])
    for state in (1, 2):
        member = (boards == state).float()
        mean = (stream * member).sum((0, 1)) / member.sum((0, 1)).clamp(min=1)
        squares += ((stream - mean).square() * member).sum((0, 1))
        count += member.sum((0, 1))
    return (squares / count.clamp(min=1)).sqrt()


def _units(directions: BoardDirections, layer: int) -> Float[Tensor, "square d_model"]:
    """From theirs to mine."""
    weight = directions.probes.weight[layer]
    return torch.nn.functional.normalize(weight[..., 1] - weight[..., 2], dim=1)


def _parts(
    model: Model, given: Positions, units: Float[Tensor, "square d_model"], layer: int
) -> tuple[list[str], Float[Tensor, "part game ply square"]]:
    """What every part adds along every direction, up to `layer`."""
    names, written = ["embed"], []
    sites = ["resid_pre@0", f"z@0-{layer}", f"mlp_out@0-{layer}"]
    through = [torch.einsum("hdm,sm->hds", model.weight("W_O", l).float(), units) for l in range(layer + 1)]
    biases = units @ sum(model.weight("b_O", l).float() for l in range(layer + 1))
    for tokens in given.tokens.split(128):
        with record(model, sites, stop=True) as acts:
            model(tokens)
        found = [acts["resid_pre@0"][:, given.first :].float() @ units.T]
        for l in range(layer + 1):
            heads = acts[f"z@{l}"][:, :, given.first :].float()
            found += torch.einsum("bhpd,hds->hbps", heads, through[l])
            found.append(acts[f"mlp_out@{l}"].reshape(*tokens.shape, -1)[:, given.first :].float() @ units.T)
        found.append(biases.expand_as(found[0]))
        written.append(torch.stack(found))
    for l in range(layer + 1):
        names += [*(f"head {l}.{head}" for head in range(model.n_heads)), f"mlp {l}"]
    return [*names, "bias"], torch.cat(written, 1)


def _split(values: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Equal parts of the games."""
    return values.tensor_split(min(PARTS, values.shape[axis]), axis)


def _gap(written: Float[Tensor, "part game ply square"], boards: Tensor) -> Float[Tensor, "part square"]:
    """The mean where the square is mine less that where it is theirs; 0 where it never is one of them."""
    means = []
    for state in (1, 2):
        member = (boards == state).float()
        means.append((written * member).sum((1, 2)) / member.sum((0, 1)).clamp(min=1))
    both = ((boards == 1).any(0).any(0) & (boards == 2).any(0).any(0)).float()
    return (means[0] - means[1]) * both
