"""Concept ablation: one direction without which the network no longer acts on a concept.

Arditi et al. 2024 (Refusal in Language Models Is Mediated by a Single Direction, arXiv 2406.11717), for any concept
that comes as pairs: the difference of means at every position after the text and every layer; of these the one whose
ablation changes behaviour most, provided that adding it induces the behaviour, that texts without the concept are
continued as before (KL at most 0.1), and that it does not lie in the last fifth of the layers, where directions are
words rather than concepts. The direction is then taken out of every write into the residual stream, by edits or,
equally, out of the weights. Texts that it is fitted on, chosen by and tested on are of different groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene
from vesalius.concepts.prompts import Answers, Rows, answers_of, padded, preference, token_rows, values_at
from vesalius.concepts.readers import fold_of
from vesalius.concepts.steered import ablation_edits, orthogonalised
from vesalius.data.pairs import open_pairs
from vesalius.edits import add
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, kl
from vesalius.model import Model
from vesalius.result import Headline, Result

DISCARDED = 0.2
"""The share of layers, counted from the last, that no direction is taken from."""


@dataclass(frozen=True)
class ConceptAblation(Result):
    """Preferences in nats: log P(answer the concept speaks for) - log P(the other)."""

    direction: Float[Tensor, " d_model"]
    position: int
    layer: int
    passed: bool
    """Whether any candidate passed the filters; if none did, the one of the largest effect is shown."""
    bypass: Float[Tensor, "position layer"]
    """The preference on texts with the concept under ablation, for every candidate."""
    induced: Float[Tensor, "position layer"]
    """The change of preference on texts without the concept when the direction is added."""
    spilt: Float[Tensor, "position layer"]
    """KL divergence on texts without the concept under ablation."""
    plain: dict
    """The preference on test texts `with` and `without` the concept, unedited."""
    drop: list
    """How far ablation lowers it on test texts with the concept: `[mean, low, high]`."""
    raised: list
    """How far adding the direction raises it on test texts without."""
    nulls: dict
    """Drops under `random` directions, directions of `shuffled` labels, and in random-init `twin`s."""
    chance: float
    orthogonal_error: float | None
    """The largest difference of a logit between orthogonal weights and edits; None where weights cannot do it."""
    choices: dict

    def headlines(self) -> list[Headline]:
        gap = self.plain["with"] - self.plain["without"]
        what = self.choices["concept"]
        share = (
            f"{self.drop[0] / gap:.0%} of the {gap:.2f} between the classes"
            if gap > 0
            else "the classes do not differ"
        )
        kept = float(self.spilt[self.choices["positions"].index(self.position), self.layer])
        return [
            Headline(
                f"preference lost without the direction of {what}, nats",
                self.drop[0],
                self.chance,
                (self.drop[1], self.drop[2]),
                self.passed and gap > 0 and self.drop[1] > self.chance,
                f"{share}; position {self.position}, layer {self.layer}; "
                f"KL on texts without the concept {kept:.3f}"
                + ("" if self.passed else "; no candidate passed the filters"),
            ),
            Headline(
                "preference gained by adding it to texts without, nats",
                self.raised[0],
                self.raised[3],
                (self.raised[1], self.raised[2]),
                note="control: a random direction of equal norm",
            ),
        ]

    def figure(self) -> Figure:
        drawn = [
            figures.heatmap(
                values,
                title=title,
                y=[str(position) for position in self.choices["positions"]],
                x_label="layer",
                y_label="position",
                value_label=unit,
                diverging=diverging,
            )
            for values, title, unit, diverging in (
                (self.bypass, "Preference on texts with the concept, direction ablated", "nats", True),
                (self.induced, "Change on texts without the concept, direction added", "nats", True),
                (self.spilt, "KL on texts without the concept, direction ablated", "nats", False),
            )
        ]
        title = f"Ablating {self.choices['concept']}: layer {self.layer}, position {self.position}"
        return figures.group(drawn, title=title)


@method(needs=("tokens", "tokenizer", "causal", "attention"))
def concept_ablation(
    model: Model,
    *,
    pairs: str | Path = "sentiment",
    template: str = "",
    follow: str = "",
    towards: str = "",
    away: str = "",
    positions: list[int] | None = None,
    layers: list[int] | None = None,
    most_kl: float = 0.1,
    least_induced: float = 0.0,
    n_pairs: int = 48,
    draws: int = 6,
    twins: int = 2,
    seed: int = 0,
) -> ConceptAblation:
    """The one direction whose removal from every write makes the network stop acting on a concept.

    Every text of `pairs` is followed by `follow`, and what is measured is how much likelier `towards` is then than
    `away` (empty: the concept's own). Candidates are differences of means at `positions` (None: the last tokens of
    `follow`, at most 3) before `layers` (None: the first four fifths). Control: as many random directions as `draws`,
    half as many from shuffled labels, and the same place in `twins` random-init networks.

    Raises VesaliusError for pairs without something that follows, or a position past the end.
    """
    found = open_pairs(pairs).take(n_pairs, seed=seed)
    said = (follow or found.follow[0], towards or found.follow[1], away or found.follow[2])
    if not all(said):
        raise VesaliusError(f"{found.name} does not say what follows a text; give follow, towards and away")
    with_, without = ([text + said[0] for text in side] for side in found.filled(template))
    fold = fold_of(found.groups, folds=3, seed=seed).tolist()

    def part(number: int) -> list[list[str]]:
        return [
            [text for text, f in zip(side, fold, strict=True) if f == number] for side in (with_, without)
        ]

    fitted, chosen, tested = part(0), part(1), part(2)
    tail = len(model.tokens(with_[0])[0]) - len(model.tokens(with_[0].removesuffix(said[0]))[0])
    places = positions or [-1 - number for number in range(min(3, tail))]
    last = max(1, round(model.n_layers * (1 - DISCARDED)))
    candidates = sorted(set(layers or range(last)) & set(range(last)))
    if not candidates:
        raise VesaliusError(f"layers {layers} are all discarded; expected some of 0 to {last - 1}")

    differences = _differences(model, fitted, places)
    bypass, induced, spilt = (torch.full((len(places), model.n_layers), torch.nan) for _ in range(3))
    asked = [_asked(model, texts, said) for texts in chosen]
    rows = token_rows(model, chosen[1])
    plain, before = _next_logits(model, rows), preference(model, asked[1])
    for place, layer in progress([(p, l) for p in range(len(places)) for l in candidates], "candidates"):
        direction = differences[place, layer]
        if not direction.any():  # all texts have the same token there
            continue
        with intervene(model, ablation_edits(model, direction)):
            bypass[place, layer] = preference(model, asked[0]).mean()
            spilt[place, layer] = kl(plain, _next_logits(model, rows)).mean()
        with intervene(model, {f"resid_pre@{layer}": add(direction)}):
            induced[place, layer] = (preference(model, asked[1]) - before).mean()
    if bypass.isnan().all():
        raise VesaliusError(
            f"no candidate of {found.name} tells its classes apart; expected another position or layer"
        )
    passed = (spilt <= most_kl) & (induced >= least_induced)
    allowed = torch.where(passed if passed.any() else ~bypass.isnan(), bypass, torch.inf)
    place, layer = divmod(int(allowed.argmin()), model.n_layers)
    direction = differences[place, layer]

    tests = [_asked(model, texts, said) for texts in tested]
    base = [preference(model, answers) for answers in tests]
    drop = base[0] - _ablated(model, direction, tests[0])
    generator = torch.Generator().manual_seed(7_919 + seed)
    random = [torch.randn(model.d_model, generator=generator) for _ in range(draws)]
    labels = [
        _differences(model, _shuffled(fitted, seed + n), places)[place, layer] for n in range(draws // 2)
    ]
    networks = [model.random_twin(seed + number) for number in range(1, 1 + twins)]
    nulls = {
        "random": [float((base[0] - _ablated(model, one, tests[0])).mean()) for one in random],
        "shuffled": [float((base[0] - _ablated(model, one, tests[0])).mean()) for one in labels],
        "twin": [
            float(
                (
                    preference(twin, tests[0])
                    - _ablated(twin, _differences(twin, fitted, places)[place, layer], tests[0])
                ).mean()
            )
            for twin in networks
        ],
    }
    gains = []
    for one in (direction, *(F.normalize(r, dim=0) * direction.norm() for r in random[:1])):
        with intervene(model, {f"resid_pre@{layer}": add(one)}):
            gains.append(preference(model, tests[1]) - base[1])
    return ConceptAblation(
        direction,
        places[place],
        layer,
        bool(passed.any()),
        bypass,
        induced,
        spilt,
        {"with": base[0].mean().item(), "without": base[1].mean().item()},
        [drop.mean().item(), *bootstrap(drop, seed=seed)],
        [gains[0].mean().item(), *bootstrap(gains[0], seed=seed), gains[-1].mean().item()],
        nulls,
        family_wise(torch.tensor([v for values in nulls.values() for v in values]).abs()[:, None]),
        _orthogonal_error(model, direction, token_rows(model, tested[0][:4])),
        {
            "concept": found.concept or found.name, "positions": places, "follow": list(said),
            "ablation": "projection at every block input, attention and MLP output",
            "filters": f"KL <= {most_kl}, induced >= {least_induced}, layers below {last}",
            "texts": f"{len(fitted[0])} fitted, {len(chosen[0])} chosen by, {len(tested[0])} tested on",
        },
    )  # fmt: skip


def _differences(
    model: Model, texts: Sequence[list[str]], positions: Sequence[int]
) -> Float[Tensor, "position layer d_model"]:
    """Mean with the concept less mean without, before every layer, in double precision."""
    means = [
        values_at(model, token_rows(model, side), "resid_pre", positions=positions).double().mean(0)
        for side in texts
    ]
    return (means[0] - means[1]).float()


def _shuffled(texts: Sequence[list[str]], seed: int) -> list[list[str]]:
    """Half of the pairs turned round."""
    flip = fold_of([str(number) for number in range(len(texts[0]))], folds=2, seed=seed).bool().tolist()
    sides = [(b, a) if f else (a, b) for a, b, f in zip(*texts, flip, strict=True)]
    return [list(side) for side in zip(*sides, strict=True)]


def _asked(model: Model, texts: Sequence[str], said: tuple[str, str, str]) -> Answers:
    return answers_of(model, [(text, *said[1:]) for text in texts])


def _ablated(
    model: Model, direction: Float[Tensor, " d_model"], answers: Answers
) -> Float[Tensor, " prompt"]:
    with intervene(model, ablation_edits(model, direction)):
        return preference(model, answers)


def _next_logits(model: Model, rows: Rows) -> Float[Tensor, "prompt d_vocab"]:
    logits = model.logits(padded(rows, fill=model.bos or 0))
    return logits[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])].float()


def _orthogonal_error(model: Model, direction: Float[Tensor, " d_model"], rows: Rows) -> float | None:
    try:
        edited = orthogonalised(model, direction)
    except VesaliusError:
        return None
    with intervene(model, ablation_edits(model, direction)):
        ablated = _next_logits(model, rows)
    return (ablated - _next_logits(edited, rows)).abs().max().item()
