"""Removing a spurious correlation: a probe that learned the wrong thing, put right by taking latents away.

Marks et al. 2024 (Sparse Feature Circuits, SHIFT, arXiv 2403.19647), as Karvonen et al. 2024 (arXiv 2411.18895) score
dictionaries by it:

1. of two classes of tokens, A is wanted and B spurious. A probe for A is fitted where both always agree, so that it may
   as well have learned B, and judged where all four combinations are as frequent;
2. the latents that account most for a probe of B are held at their mean, and the same probe is judged again;
3. the score is the accuracy that comes back, as a share of what a probe fitted without the correlation has more.

Beside it as many random latents, drawn by how often they are active, and the same in networks with shuffled weights.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.latents.inputs import inputs_of
from vesalius.latents.token_tasks import Subjects, shares, subjects_of
from vesalius.method import method, progress
from vesalius.metrics import family_wise, percentiles
from vesalius.model import Model
from vesalius.result import Headline, Result

Answers = Bool[Tensor, " row"]


@dataclass(frozen=True)
class SpuriousCorrelationRemoval(Result):
    """Accuracies of the wanted class where both are independent, in 0..1; 0.5 is chance."""

    pairs: list
    """`[wanted, spurious]`."""
    biased: Float[Tensor, " pair"]
    """Of the probe fitted where both agree."""
    removed: Float[Tensor, " pair"]
    """Of the same probe without the latents of the spurious class."""
    unbiased: Float[Tensor, " pair"]
    """Of a probe fitted where both are independent."""
    random: Float[Tensor, "draw pair"]
    """Of the biased probe without random latents."""
    twins: Float[Tensor, "twin pair"]
    """What comes back in networks with shuffled weights, as a gain in accuracy."""
    gain: list
    """Accuracy that comes back, mean over pairs, `[gain, low, high]`."""
    against_random: list
    """The same less that of random latents, `[difference, low, high]`, the interval of 99%."""
    latents: list
    choices: dict

    def headlines(self) -> list[Headline]:
        value, low, high = self.gain
        chance = family_wise(self.twins.mean(1)) if len(self.twins) > 1 else None
        random = (self.random.mean(0) - self.biased).mean().item()
        missing = (self.unbiased - self.biased).mean().item()
        share = f"{value / missing:.0%} of what" if missing > 0.01 else "nothing of which"
        return [
            Headline(
                f"accuracy back when {self.choices['ablated']} latents of the spurious class are taken away",
                value,
                random if chance is None else max(random, chance),
                (low, high),
                None if chance is None else self.against_random[1] > 0 and low > chance,
                f"{share} an unbiased probe has more; random latents {random:.3g}"
                + ("" if chance is None else f", chance in networks with shuffled weights {chance:.3g}"),
            ),
            Headline(
                "accuracy of the biased probe", self.biased.mean().item(), self.unbiased.mean().item(),
                note="control: the unbiased one",
            ),
        ]  # fmt: skip

    def figure(self) -> Figure:
        return figures.bars(
            [f"{wanted} (not {spurious})" for wanted, spurious in self.pairs],
            {
                "biased": self.biased,
                "without its latents": self.removed,
                "without random latents": self.random.mean(0),
                "unbiased": self.unbiased,
            },
            title="What a probe knows once the spurious class is taken away",
            y_label="accuracy where both classes are independent",
            caption="0.5 is chance.",
        )


@method(needs=("tokens", "tokenizer"))
def spurious_correlation_removal(
    model: Model,
    dictionary: Dictionary,
    *,
    ablated: int = 10,
    n_pairs: int = 4,
    text: str | None = None,
    contexts: int = 96,
    length: int = 64,
    least: int = 15,
    draws: int = 3,
    twins: int = 3,
    seed: int = 0,
) -> SpuriousCorrelationRemoval:
    """How much of what a correlation spoiled in a probe comes back without the latents of the spurious class.

    `ablated` latents are taken away, against `draws` times as many random ones, for `n_pairs` pairs of classes of which
    the `text` (None: the held-out sample) has `least` tokens of all four combinations. Raises VesaliusError if it has
    none, or there are not so many latents.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    subjects = subjects_of(model, dictionary, inputs, twins=twins, seed=seed)
    subjects.require(ablated)
    tasks = subjects.tasks(least=2 * least)
    pairs = _pairs(subjects, tasks, n_pairs, least)
    hits, latents = [], []
    for number, (wanted, spurious) in enumerate(progress(pairs, "pairs")):
        random = [subjects.drawn(ablated, number * draws + draw) for draw in range(draws)]
        found, best = _hits(subjects, tasks[wanted], tasks[spurious], ablated, random)
        hits.append(found)
        latents.append(best)
    value, again = shares(torch.stack(hits, 1), seed=seed)  # [pair, condition]
    count = len(subjects)
    biased, removed, unbiased = value[:, :count], value[:, count : 2 * count], value[:, 2 * count]
    gains = again[..., count] - again[..., 0]
    over = (again[..., count] - again[..., 2 * count + 1 :].mean(-1)).mean(1)
    gain = (removed[:, 0] - biased[:, 0]).mean()
    against = (removed[:, 0] - value[:, 2 * count + 1 :].mean(1)).mean()
    return SpuriousCorrelationRemoval(
        [list(pair) for pair in pairs],
        biased[:, 0].contiguous(),
        removed[:, 0].contiguous(),
        unbiased.contiguous(),
        value[:, 2 * count + 1 :].T.contiguous(),
        (removed - biased)[:, 1:].T.contiguous(),
        [gain.item(), *(end.item() for end in percentiles(gains.mean(1)))],
        [against.item(), *(end.item() for end in percentiles(over, confidence=0.99))],
        latents,
        choices={
            "site": dictionary.site,
            "ablated": ablated,
            "ablation": "to their mean over the tokens judged",
            "tokens": len(subjects.tokens),
        },
    )


def _pairs(subjects: Subjects, tasks: dict[str, Answers], count: int, least: int) -> list[tuple[str, str]]:
    """Those whose rarest combination is the most frequent; wanted is what the next token is, if one of them is that."""
    found = {}
    names = list(tasks)
    for number, spurious in enumerate(names):
        for wanted in names[number + 1 :]:
            cells = 2 * tasks[wanted].long() + tasks[spurious].long()
            size = min(int(cells[part].bincount(minlength=4).min()) for part in subjects.parts)
            if size >= least:
                found[wanted, spurious] = size
    if not found:
        raise VesaliusError(
            f"no two of the classes {', '.join(names)} have {least} tokens of all four combinations; give more text"
        )
    return sorted(found, key=lambda pair: -found[pair])[:count]


def _hits(
    subjects: Subjects, wanted: Answers, spurious: Answers, ablated: int, random: list[list[int]]
) -> tuple[Float[Tensor, "context condition two"], list[int]]:
    """Right answers by context: of each subject's biased probe; of the same without its latents of the spurious class;
    of the network's unbiased probe; of the biased one without random latents. And the network's latents.
    """
    cells = 2 * wanted.long() + spurious.long()
    agreeing = torch.where(wanted == spurious, wanted.long(), -1)
    fitted, judged = subjects.balanced(cells, 0), subjects.balanced(cells, 1)
    biased = subjects.probes(subjects.balanced(agreeing, 0), wanted)
    unbiased, of_spurious = subjects.probes(fitted, wanted), subjects.probes(fitted, spurious)
    best = [
        subjects.accounting(subject, of_spurious, fitted, spurious).topk(ablated).indices.tolist()
        for subject in range(len(subjects))
    ]
    changed = torch.stack(
        [subjects.without(subject, latents, judged) for subject, latents in enumerate(best)]
    )
    acts = subjects.acts[:, judged]
    without = [subjects.without(0, latents, judged).expand(len(subjects), -1, -1) for latents in random]
    answers = torch.cat(
        [
            biased.predictions(acts)[..., 0],
            biased.predictions(changed)[..., 0],
            unbiased.predictions(acts)[:1, :, 0],
            *(biased.predictions(one)[:1, :, 0] for one in without),
        ]
    )
    return subjects.hits(answers == wanted[judged].long(), judged), best[0]
