"""Automated interpretability: latents explained in words, and the words put to the test on other examples.

Bills et al. 2023 (openaipublic.blob.core.windows.net/neuron-explainer), as in Bricken et al. 2023 (Towards
Monosemanticity, transformer-circuits.pub/2023/monosemantic-features):

1. an interpreter explains a latent by 49 pieces of text with its activations, and by what it does to the logits;
2. from the explanation alone it predicts the activations on 60 other pieces: `simulation` and `importance`, Spearman's
   correlation over 540 tokens; `detection` and `fuzzing` (Paulo et al. 2024, arXiv 2410.13928) and `logits`, balanced
   accuracies;
3. the same with an explanation of another latent (`shuffled`), with one made from the same pieces after their
   activations are dealt out anew (`random`), for neurons, and for the dictionary's directions, as many of them active,
   in a network whose weights are permuted within each matrix (`twin`). There too latents fire on single tokens, which
   is easy to explain.

An explanation says something about a network only if it beats all of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary, SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.formats.zoo import cache_folder
from vesalius.interpreters import Explained, Interpreter, Nonsense, Snippet, Unreachable, interpreter_of
from vesalius.interpreters.layout import Layout, layout_of, snippets_of
from vesalius.interpreters.scores import SCORES, SHOWN, named, scores_of
from vesalius.latents.inputs import Inputs, inputs_of, reads, written
from vesalius.latents.token_codes import token_codes
from vesalius.latents.token_tasks import untrained
from vesalius.method import method, progress
from vesalius.metrics import percentiles, resampled
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.logit_weights import logit_weights

CONTROLS = {
    "shuffled": "another latent's explanation",
    "random": "activations dealt anew",
    "neurons": "neurons",
    "twin": "the network with shuffled weights",
}
CONFIDENCE = 0.99
CANDIDATES = 4
"""Neurons looked at for each that is wanted, since some never fire."""


@dataclass(frozen=True)
class AutomatedInterpretability(Result):
    """Scores by condition: `latents`, and CONTROLS; correlations in -1..1, accuracies in 0..1, NaN if not known."""

    latents: list
    explanations: list
    """One for each, empty if there was no answer."""
    scores: dict
    """Condition → `[latent, score]`, scores as in SCORES."""
    single: dict
    """`latents`, `neurons`, `twin` → the share whose highest token is the same in all of their 20 best contexts."""
    failures: list
    """`[condition, latent, reason]`: answers that were nonsense, or never came."""
    dropped: int
    """Latents that are active on fewer than the least number of tokens, and are not asked about."""
    choices: dict

    def headlines(self) -> list[Headline]:
        scored = int(self.scores["latents"][:, 0].isfinite().sum())
        rows = [self._row(score) for score in SCORES if self._known(score, "latents")]
        if self._known("simulation", "neurons"):
            rows.append(self._over_neurons())
        note = f"{self.dropped} more are active on fewer than {self.choices['least']} tokens"
        if self.failures:
            note += f"; {len(self.failures)} answers failed, first: {self.failures[0][2]}"
        rows.append(Headline("latents explained and scored", f"{scored} of {len(self.latents)}", note=note))
        if "twin" in self.single:
            rows.append(
                Headline(
                    "share of latents of a single token",
                    self.single["latents"],
                    self.single["twin"],
                    note=f"control: {CONTROLS['twin']}",
                )
            )
        return rows

    def figure(self) -> Figure:
        shown = [name for name in self.scores if self._known("simulation", name)]
        drawn = []
        if shown:
            drawn.append(
                figures.histogram(
                    {name: self.scores[name][:, 0] for name in shown},
                    title="Activations predicted from explanations",
                    x_label="Spearman's correlation with the true activations",
                    bins=20,
                    caption=f"Explained by {self.choices['interpreter']}, on pieces that it has not seen.",
                )
            )
        means = {
            name: [_mean(table[:, number]) for number in range(len(SCORES))]
            for name, table in self.scores.items()
        }
        drawn += [
            figures.table(
                ["condition", *SCORES],
                [[name, *(f"{mean:.3f}" for mean in row)] for name, row in means.items()],
                title="Mean scores",
                caption="; ".join(f"{name}: {words}" for name, words in CONTROLS.items()),
            ),
            figures.table(
                ["latent", "simulation", "explanation"],
                [
                    [str(latent), f"{self.scores['latents'][number, 0]:.2f}", text[:400]]
                    for number, (latent, text) in enumerate(zip(self.latents, self.explanations))
                ],
                title="Explanations",
            ),
        ]
        return figures.group(drawn, title="Automated interpretability")

    def _known(self, score: str, condition: str) -> bool:
        table = self.scores.get(condition)
        return table is not None and bool(table[:, SCORES.index(score)].isfinite().any())

    def _row(self, score: str) -> Headline:
        own = _finite(self.scores["latents"][:, SCORES.index(score)])
        others = {
            name: _finite(self.scores[name][:, SCORES.index(score)])
            for name in ("shuffled", "random", "twin")
            if self._known(score, name)
        }
        best = max(others, key=lambda name: others[name].mean().item(), default="")
        beaten = all(_difference(own, other)[0] > 0 for other in others.values())
        return Headline(
            f"{score} from explanations, mean over latents",
            own.mean().item(),
            others[best].mean().item() if best else None,
            _interval(own),
            beaten if {"shuffled", "random", "twin"} <= others.keys() else None,
            f"control: {CONTROLS[best]}" if best else "",
        )

    def _over_neurons(self) -> Headline:
        """Better than neurons, and not in the way that latents of any network are."""
        own, neurons = (_finite(self.scores[name][:, 0]) for name in ("latents", "neurons"))
        twin = _finite(self.scores["twin"][:, 0]) if self._known("simulation", "twin") else None
        beaten = None
        if twin is not None:
            beaten = _difference(own, neurons)[0] > 0 and _difference(own, twin)[0] > 0
        median = own.median().item()
        claim = "median simulation of latents against neurons"
        note = "control: neurons" + ("" if twin is None else f"; of the twin's latents {twin.median():.3g}")
        return Headline(claim, median, neurons.median().item(), evidence=beaten, note=note)


@method(needs=("tokens", "tokenizer"))
def automated_interpretability(
    model: Model,
    dictionary: Dictionary,
    *,
    latents: list[int] | None = None,
    n_latents: int = 20,
    explainer: str = "offline",
    explainer_model: str = "",
    answers: str | None = None,
    network: Literal["trained", "shuffled"] = "trained",
    text: str | None = None,
    contexts: int = 128,
    length: int = 64,
    least: int = 20,
    twins: int = 1,
    seed: int = 0,
) -> AutomatedInterpretability:
    """Explanations of latents, and how well they predict what the latents do where they were not looked at.

    `latents` are asked about (None: `n_latents` at random) if they are active on `least` tokens of the `text` (None:
    the held-out sample). `explainer` is `offline`, statistics of tokens, or the address of a server that speaks the
    OpenAI protocol, there `explainer_model`; its answers are kept in the folder `answers` (None: the cache), so a run
    that was stopped asks only what is new. `network="shuffled"` asks all this of the network with shuffled weights.
    `twins` of 0 leaves out that control, and so any evidence. Raises VesaliusError if nothing can be asked, or
    nobody answers at all.
    """
    kept = cache_folder() / "answers" if answers is None else Path(answers)
    interpreter = interpreter_of(explainer, model=explainer_model, answers=kept)
    model = model if network == "trained" else model.shuffled_twin(seed)
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    groups = {"latents": _group(model, dictionary, inputs, latents, n_latents, least, seed)}
    chosen = groups["latents"]
    groups["neurons"] = _neurons(model, dictionary, inputs, n_latents, least, seed)
    for number in range(min(twins, 1)):
        twin = model.shuffled_twin(seed + 1 + number)
        among = untrained(dictionary, round(chosen.active))
        groups["twin"] = _group(twin, among, inputs, None, n_latents, least, seed, among=True)

    asked = _Asked(interpreter, model.strings(list(range(model.d_vocab))), seed)
    explanations = {
        name: [
            asked.explained(name, group, number) for number in progress(range(len(group)), f"explain {name}")
        ]
        for name, group in groups.items()
    }
    random = [asked.explained("random", chosen, number) for number in range(len(chosen))]
    scores = {name: asked.scored(name, group, explanations[name]) for name, group in groups.items()}
    others = explanations["latents"][1:] + explanations["latents"][:1] if len(chosen) > 1 else [""]
    scores["shuffled"] = asked.scored("shuffled", chosen, others)
    scores["random"] = asked.scored("random", chosen, random)
    if asked.down and not scores["latents"].isfinite().any():
        raise VesaliusError(asked.down)
    return AutomatedInterpretability(
        chosen.numbers,
        explanations["latents"],
        {name: scores[name] for name in ("latents", *CONTROLS) if name in scores},
        {name: group.single for name, group in groups.items()},
        asked.failures,
        chosen.dropped,
        choices={
            "interpreter": interpreter.name,
            "network": network,
            "data": inputs.described,
            "data_hash": inputs.hash,
            "least": least,
            "logits": "direct effect" if chosen.effects is not None else "not known at this site",
            "twin": "the same directions, as many active, without biases",
        },
    )


@dataclass(frozen=True, eq=False)
class _Group:
    """Latents of one dictionary in one network, with all that is asked about them."""

    numbers: list[int]
    tables: Float[Tensor, "latent context pos"]
    layouts: list[Layout]
    tokens: list[list[str]]
    effects: Float[Tensor, "latent d_vocab"] | None
    dropped: int
    active: float
    """Latents that are active on a token, in the mean."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def single(self) -> float:
        """The share of latents that have one and the same token highest in their 20 best contexts."""
        if not len(self):
            return torch.nan
        alike = 0
        for table in self.tables:
            best = table.max(1)
            contexts = best.values.argsort(descending=True)[:20]
            contexts = contexts[best.values[contexts] > 0]
            found = {self.tokens[c][p] for c, p in zip(contexts.tolist(), best.indices[contexts].tolist())}
            alike += len(found) == 1
        return alike / len(self)


class _Asked:
    """One interpreter's answers, with what failed; after it is down nothing more is asked."""

    def __init__(self, interpreter: Interpreter, vocabulary: list[str], seed: int) -> None:
        self.interpreter, self.vocabulary, self.seed = interpreter, vocabulary, seed
        self.failures: list[list] = []
        self.down = ""

    def explained(self, condition: str, group: _Group, number: int) -> str:
        """Empty if there is no answer."""
        snippets = snippets_of(group.layouts[number].explained, group.tables[number], group.tokens)
        promoted, suppressed = (), ()
        if group.effects is not None:
            order = group.effects[number].argsort(descending=True)
            promoted = tuple(named(order[:SHOWN], self.vocabulary))
            suppressed = tuple(named(order[-SHOWN:], self.vocabulary))
        shown = Explained(snippets, promoted, suppressed)
        if condition == "random":
            shown = _dealt_anew(shown, self.vocabulary, self._generator(number))
        return self._tried(condition, group.numbers[number], lambda: self.interpreter.explain(shown), "")

    def scored(self, condition: str, group: _Group, explanations: list[str]) -> Float[Tensor, "latent score"]:
        nothing = torch.full((len(SCORES),), torch.nan)
        rows = [nothing]
        for number, explanation in enumerate(progress(explanations, f"score {condition}")):
            if not explanation:
                rows.append(nothing)
                continue

            def scores(number: int = number, explanation: str = explanation) -> Tensor:
                return scores_of(
                    self.interpreter,
                    explanation,
                    group.layouts[number],
                    group.tables[number],
                    group.tokens,
                    effects=None if group.effects is None else group.effects[number],
                    vocabulary=self.vocabulary,
                    generator=self._generator(number),
                )

            rows.append(self._tried(condition, group.numbers[number], scores, nothing))
        return torch.stack(rows)[1:]

    def _tried(self, condition: str, latent: int, ask, nothing):
        if self.down:
            return nothing
        try:
            return ask()
        except Nonsense as error:
            self.failures.append([condition, latent, str(error)])
        except Unreachable as error:
            self.down = str(error)
            self.failures.append([condition, latent, str(error)])
        return nothing

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


def _group(
    model: Model,
    dictionary: Dictionary,
    inputs: Inputs,
    wanted: list[int] | None,
    count: int,
    least: int,
    seed: int,
    *,
    among: bool = False,
    names: Mapping[int, int] | None = None,
) -> _Group:
    """The latents that are asked about. Raises VesaliusError if none is active often enough, and they are not `among`
    others that can do without."""
    found = token_codes(model, dictionary, inputs)
    often = found.active >= least
    if wanted is None:
        order = torch.randperm(len(often), generator=torch.Generator().manual_seed(seed)).tolist()
        wanted = sorted([latent for latent in order if often[latent]][:count])
        dropped = int((~often).sum())
    else:
        wrong = [latent for latent in wanted if not 0 <= latent < len(often)]
        if wrong:
            raise VesaliusError(f"latent {wrong[0]} was asked for; this dictionary has 0 to {len(often) - 1}")
        dropped = sum(not often[latent] for latent in wanted)
        wanted = [latent for latent in wanted if often[latent]]
    if not wanted and not among:
        raise VesaliusError(
            f"no latent asked for is active on {least} of {len(found.codes)} tokens; give more text"
        )
    tables = found.tables(wanted).clamp(min=0)
    generator = torch.Generator().manual_seed(seed + 1)
    layouts = [layout_of(table, found.ids, found.counts, generator=generator) for table in tables]
    tokens = [model.strings(row) for row in found.ids]
    effects = _effects(model, dictionary, wanted)
    numbers = wanted if names is None else [names[latent] for latent in wanted]
    active = found.active.sum().item() / len(found.codes)
    return _Group(numbers, tables, layouts, tokens, effects, dropped, active)


def _neurons(
    model: Model, dictionary: Dictionary, inputs: Inputs, count: int, least: int, seed: int
) -> _Group:
    """Rectified units of the site that is read, some of them."""
    site = reads(dictionary)
    width = dictionary[0].vector(0).shape[0] if dictionary[0].read is None else len(dictionary[0].read)
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[: CANDIDATES * count]
    units = SparseDictionary.of_directions(site, torch.eye(width)[order], name="neuron")
    return _group(
        model, units, inputs, None, count, least, seed, among=True, names=dict(enumerate(order.tolist()))
    )


def _effects(
    model: Model, dictionary: Dictionary, latents: list[int]
) -> Float[Tensor, "latent d_vocab"] | None:
    """Logits per unit of each latent; None where the way to the logits is not known."""
    if not latents or not model.has("W_U"):
        return None
    directions = torch.stack([written(dictionary, latent) for latent in latents])
    try:
        return logit_weights(model, dictionary.site, directions).float().cpu()
    except VesaliusError:  # it says so of a site in the middle of the network
        return None


def _dealt_anew(shown: Explained, vocabulary: list[str], generator: torch.Generator) -> Explained:
    """The same pieces with their levels in another order, and random tokens for those it acts on."""
    levels = torch.tensor([level for one in shown.snippets for level in one.levels])
    dealt = iter(levels[torch.randperm(len(levels), generator=generator)].tolist())
    snippets = tuple(Snippet(one.tokens, tuple(next(dealt) for _ in one.tokens)) for one in shown.snippets)
    drawn = torch.randint(
        len(vocabulary), (len(shown.promoted) + len(shown.suppressed),), generator=generator
    )
    words = tuple(named(drawn, vocabulary))
    return Explained(snippets, words[: len(shown.promoted)], words[len(shown.promoted) :])


def _finite(values: Float[Tensor, " latent"]) -> Float[Tensor, " known"]:
    return values[values.isfinite()]


def _mean(values: Float[Tensor, " latent"]) -> float:
    known = _finite(values)
    return known.mean().item() if len(known) else torch.nan


def _interval(values: Float[Tensor, " latent"]) -> tuple[float, float]:
    low, high = percentiles(resampled(values, seed=0))
    return low.item(), high.item()


def _difference(a: Float[Tensor, " latent"], b: Float[Tensor, " other"]) -> tuple[float, float]:
    """The interval of the difference of two means, of two samples."""
    low, high = percentiles(resampled(a, seed=0) - resampled(b, seed=1), confidence=CONFIDENCE)
    return low.item(), high.item()
