"""Absorption: a latent that is silent on just those tokens whose own latent has taken its place.

Chanin et al. 2024 (A is for Absorption, arXiv 2409.14507), with the projection that SAEBench (Karvonen et al. 2025,
arXiv 2503.09532) puts in the place of ablations, on the tokens of any text that are words:

1. a linear probe on the activations for the first letter of the present token;
2. for each letter its latents: the one that tells it best by being active (F1), and others as long as each adds 0.03;
   where that is not 0.4 in the end, no latent is the letter's, and nothing can be absorbed from it;
3. else a token is absorbed if the probe is right, all latents of its letter are silent, and one other latent alone
   writes 0.4 or more of all that the latents write along the probe's direction, at a cosine of 0.025 or more to it.

Chance is the same with the latents' directions permuted among them, and the dictionary's directions in networks with
shuffled weights.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.data.token_classes import first_letters
from vesalius.dictionaries import Dictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.latents.inputs import inputs_of
from vesalius.latents.token_codes import TokenCodes
from vesalius.latents.token_tasks import PENALTY, Subjects, subjects_of
from vesalius.method import method, progress
from vesalius.metrics import family_wise, percentiles, resampled
from vesalius.model import Model
from vesalius.probes import Labelled, LinearProbes, logistic
from vesalius.result import Headline, Result

GAIN = 0.03
"""What a latent must add to F1 to be one of a letter's."""
TOLD = 0.4
"""F1 from which latents are a letter's."""
CANDIDATES = 12
COSINE = 0.025
SHARE = 0.4


@dataclass(frozen=True)
class Absorption(Result):
    """Letter by letter; rates are shares of the tokens on which the probe is right."""

    letters: list
    latents: list
    """Those of each letter."""
    f1: Float[Tensor, " letter"]
    """How well their being active tells the letter, 0 to 1."""
    probe: Float[Tensor, " letter"]
    """On which share of the letter's tokens the probe is right."""
    tokens: Float[Tensor, " letter"]
    """On how many the probe is right."""
    silent: Float[Tensor, " letter"]
    """The share of those on which all latents of the letter are silent."""
    rates: Float[Tensor, " letter"]
    """The share that is absorbed."""
    mean: list
    """Over all tokens, `[rate, low, high]`."""
    permuted: list
    """The same with directions permuted, `[rate, low, high]`."""
    against_permuted: list
    """The difference, the interval of 99%."""
    twins: Float[Tensor, " twin"]
    absorbed: list
    """`[token, letter, latent, times]`, the most frequent first."""
    choices: dict

    def headlines(self) -> list[Headline]:
        value, low, high = self.mean
        chance = family_wise(self.twins[:, None]) if len(self.twins) > 1 else None
        control = self.permuted[0] if chance is None else max(self.permuted[0], chance)
        examples = ", ".join(f"{token!r} by latent {latent}" for token, _, latent, _ in self.absorbed[:3])
        return [
            Headline(
                f"absorption of first letters at {self.choices['site']}",
                value,
                control,
                (low, high),
                None if chance is None else self.against_permuted[1] > 0 and low > chance,
                (f"as {examples}; " if examples else "")
                + f"directions permuted {self.permuted[0]:.3g}"
                + ("" if chance is None else f", chance in networks with shuffled weights {chance:.3g}"),
            ),
            Headline("F1 of a letter's latents, mean over letters", self.f1.mean().item()),
            Headline(
                "share of tokens on which the probe is right, mean over letters",
                self.probe.mean().item(),
                1 / len(self.letters),
                note="control: chance",
            ),
        ]

    def figure(self) -> Figure:
        drawn = [
            figures.bars(
                self.letters,
                {"absorbed": self.rates, "all its latents silent": self.silent, "F1 of its latents": self.f1},
                title="Absorption, letter by letter",
                y_label="share of tokens where the probe is right",
                caption=f"Over all tokens {self.mean[0]:.3f}; with directions permuted {self.permuted[0]:.3f}.",
            )
        ]
        if self.absorbed:
            drawn.append(
                figures.table(
                    ["token", "letter", "absorbed by", "times"],
                    [
                        [token, letter, str(latent), times]
                        for token, letter, latent, times in self.absorbed[:40]
                    ],
                    title="Absorbed tokens",
                )
            )
        return figures.group(drawn, title="Absorption")


@method(needs=("tokens", "tokenizer"))
def absorption(
    model: Model,
    dictionary: Dictionary,
    *,
    text: str | None = None,
    contexts: int = 96,
    length: int = 64,
    least: int = 30,
    most: int = 4,
    twins: int = 3,
    seed: int = 0,
) -> Absorption:
    """On how many tokens the latents of a first letter are silent because another latent has absorbed it.

    Letters with `least` tokens in the `text` (None: the held-out sample) count, each with up to `most` latents. Raises
    VesaliusError if there are fewer than two of them.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    subjects = subjects_of(model, dictionary, inputs, twins=twins, seed=seed)
    letters, labels = _letters(subjects, least)
    known = labels >= 0
    rows = known.nonzero()[:, 0]
    fitted = logistic(Labelled.of(subjects.acts[:, rows], labels[rows]), penalty=PENALTY, iterations=30)
    judge = partial(_judged, labels=labels, letters=len(letters), most=most)
    found = [
        judge(
            one,
            directions=subjects.directions[number],
            probes=_of(fitted, number),
            acts=subjects.acts[number],
        )
        for number, one in enumerate(progress(subjects.found, "networks"))
    ]
    order = torch.randperm(len(subjects.directions[0]), generator=torch.Generator().manual_seed(seed))
    permuted = judge(
        subjects.found[0],
        directions=subjects.directions[0][order],
        probes=_of(fitted, 0),
        acts=subjects.acts[0],
    )

    own = found[0]
    table = torch.stack([own.absorbed, permuted.absorbed, own.right], 1).float()
    by_context = torch.zeros(len(inputs), 3).index_add_(0, subjects.contexts, table)
    mean, draws = (
        part[..., :2] / part[..., 2:].clamp(min=1e-9)
        for part in (by_context.mean(0), resampled(by_context, seed=seed))
    )
    low, high = percentiles(draws)
    difference = percentiles(draws[:, 0] - draws[:, 1], confidence=0.99)
    counts = torch.stack(
        [
            labels[part].bincount(minlength=len(letters))
            for part in (known, own.right, own.right & own.silent, own.absorbed)
        ]
    ).float()
    return Absorption(
        letters,
        own.latents,
        torch.tensor(own.f1),
        counts[1] / counts[0],
        counts[1],
        counts[2] / counts[1].clamp(min=1),
        counts[3] / counts[1].clamp(min=1),
        [mean[0].item(), low[0].item(), high[0].item()],
        [mean[1].item(), low[1].item(), high[1].item()],
        [(mean[0] - mean[1]).item(), *(end.item() for end in difference)],
        torch.tensor([one.absorbed.sum().item() / max(one.right.sum().item(), 1) for one in found[1:]]),
        _examples(subjects, own, letters, labels),
        choices={
            "site": dictionary.site,
            "least cosine": COSINE,
            "least share": SHARE,
            "gain of F1": GAIN,
            "least F1": TOLD,
            "tokens": int(known.sum()),
        },
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Judged:
    """Of one network: the latents of each letter, and what becomes of each row."""

    latents: list[list[int]]
    f1: list[float]
    right: Bool[Tensor, " row"]
    silent: Bool[Tensor, " row"]
    absorbed: Bool[Tensor, " row"]
    by: Int[Tensor, " row"]
    """The latent that writes most along the probe's direction."""


def _letters(subjects: Subjects, least: int) -> tuple[list[str], Int[Tensor, " row"]]:
    """The letters that count, and the number of each row's; -1 of others."""
    of_token = first_letters(subjects.strings)
    counts: dict[str, int] = {}
    for token in subjects.tokens.tolist():
        counts[of_token[token]] = counts.get(of_token[token], 0) + 1
    letters = sorted(letter for letter, count in counts.items() if letter and count >= least)
    if len(letters) < 2:
        raise VesaliusError(
            f"{len(letters)} letters begin {least} tokens of {len(subjects.tokens)}; give more text"
        )
    number = {letter: index for index, letter in enumerate(letters)}
    return letters, torch.tensor([number.get(letter, -1) for letter in of_token])[subjects.tokens]


def _of(probes: LinearProbes, subject: int) -> LinearProbes:
    return replace(probes, weight=probes.weight[subject, None], bias=probes.bias[subject, None])


def _judged(
    found: TokenCodes,
    *,
    directions: Float[Tensor, "latent width"],
    probes: LinearProbes,
    acts: Float[Tensor, "row width"],
    labels: Int[Tensor, " row"],
    letters: int,
    most: int,
) -> _Judged:
    right = (probes.predictions(acts)[0, :, 0] == labels) & (labels >= 0)
    silent, absorbed, by = torch.zeros_like(right), torch.zeros_like(right), torch.zeros_like(labels)
    latents, scores = [], []
    for letter in range(letters):
        mine, score = _split(found, labels == letter, labels >= 0, most)
        quiet = (labels == letter) & ~(found.columns(mine) > 0).any(1)
        candidates = (right & quiet).nonzero()[:, 0]
        top, share, cosine = _largest(found, candidates, directions, probes.direction(0, 0, of=letter))
        by[candidates], silent = top, silent | quiet
        absorbed[candidates] = (share >= SHARE) & (cosine >= COSINE) & (score >= TOLD)
        latents.append(mine)
        scores.append(score)
    return _Judged(latents, scores, right, silent, absorbed, by)


def _split(
    found: TokenCodes, of_letter: Bool[Tensor, " row"], known: Bool[Tensor, " row"], most: int
) -> tuple[list[int], float]:
    """The latents whose being active tells a letter best, together; greedily."""
    weights = torch.stack([of_letter.float(), known.float()], 1)
    hits, fired = found.sums(weights, power=0).unbind(1)
    alone = 2 * hits / (fired + of_letter.sum()).clamp(min=1)
    candidates = alone.topk(min(CANDIDATES, len(alone))).indices.tolist()
    active = found.columns(candidates)[known] > 0
    truth = of_letter[known]
    chosen: list[int] = []
    union, best = torch.zeros_like(truth), 0.0
    while len(chosen) < most:
        joined = active | union[:, None]
        f1 = 2 * (joined & truth[:, None]).sum(0) / (joined.sum(0) + truth.sum())
        place = int(f1.argmax())
        if chosen and f1[place] < best + GAIN:
            break
        chosen.append(place)
        union, best = joined[:, place], f1[place].item()
    return [candidates[place] for place in chosen], best


def _largest(
    found: TokenCodes,
    rows: Int[Tensor, " some"],
    directions: Float[Tensor, "latent width"],
    probe: Float[Tensor, " width"],
) -> tuple[Int[Tensor, " some"], Float[Tensor, " some"], Float[Tensor, " some"]]:
    """For each row the latent that writes most along a probe, its share of all that is written, and its cosine."""
    effect, codes = directions @ probe, found.codes
    cosine = torch.cosine_similarity(directions, probe[None])
    tops, parts = [], []
    for row in rows.tolist():
        first, last = int(codes.starts[row]), int(codes.starts[row + 1])
        active, written = (
            codes.latents[first:last],
            codes.values[first:last] * effect[codes.latents[first:last]],
        )
        if not len(active) or written.max() <= 0:
            tops.append(0)
            parts.append(0.0)
            continue
        tops.append(int(active[written.argmax()]))
        parts.append((written.max() / written.sum()).item() if written.sum() > 0 else 1.0)
    top = torch.tensor(tops, dtype=torch.long)
    return top, torch.tensor(parts, dtype=torch.float32), cosine[top]


def _examples(subjects: Subjects, own: _Judged, letters: list[str], labels: Int[Tensor, " row"]) -> list:
    """Absorbed tokens with the latent that has them, by how often."""
    counts: dict[tuple[str, str, int], int] = {}
    for row in own.absorbed.nonzero()[:, 0].tolist():
        key = (subjects.strings[int(subjects.tokens[row])], letters[int(labels[row])], int(own.by[row]))
        counts[key] = counts.get(key, 0) + 1
    return [[*key, count] for key, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
