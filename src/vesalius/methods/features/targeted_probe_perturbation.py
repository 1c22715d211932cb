"""Targeted probe perturbation: whether the latents of one class can be taken away without touching the others.

Karvonen et al. 2024 (Evaluating Sparse Autoencoders on Targeted Concept Erasure Tasks, arXiv 2411.18895):

1. a linear probe for every class of tokens, and of the next token, on the activations;
2. for each class the latents that account most for its probe, difference of mean codes times what the probe reads of
   their direction; what they write is taken off the activations;
3. the score is how much accuracy the probe of that class loses, less what the others lose in the mean.

Beside it as many random latents, drawn by how often they are active, and the same in networks with shuffled weights.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
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


@dataclass(frozen=True)
class TargetedProbePerturbation(Result):
    """Losses of accuracy, `[class taken away, class probed]`; 0.5 is all there is to lose, 0 is nothing."""

    tasks: list
    accuracy: Float[Tensor, " task"]
    """Of the probes before anything is taken away."""
    losses: Float[Tensor, "taken probed"]
    random: Float[Tensor, "draw taken probed"]
    twins: Float[Tensor, "twin taken probed"]
    latents: list
    """Those taken away, class by class."""
    score: list
    """`[score, low, high]`, of the class itself less the mean of the others."""
    against_random: list
    """The score less that of random latents, `[difference, low, high]`, the interval of 99%."""
    choices: dict

    def headlines(self) -> list[Headline]:
        value, low, high = self.score
        twins = [_score(one).item() for one in self.twins]
        chance = family_wise(torch.tensor(twins)) if len(twins) > 1 else None
        random = torch.stack([_score(one) for one in self.random]).mean().item()
        control = random if chance is None else max(random, chance)
        own, others = _halves(self.losses)
        return [
            Headline(
                f"accuracy lost by the class whose {self.choices['ablated']} latents are taken away, beyond the others",
                value,
                control,
                (low, high),
                None if chance is None else self.against_random[1] > 0 and low > chance,
                f"the class loses {own:.3g}, others {others:.3g}; random latents {random:.3g}"
                + ("" if chance is None else f", chance in networks with shuffled weights {chance:.3g}"),
            ),
            Headline("accuracy of the probes", self.accuracy.mean().item(), 0.5, note="control: chance"),
        ]

    def figure(self) -> Figure:
        panels = [("latents", self.losses), ("random latents", self.random.mean(0))]
        panels += [("twins", self.twins.mean(0))] if len(self.twins) else []
        return figures.heatmap(
            torch.stack([values for _, values in panels]),
            title="What each class loses",
            panels=[name for name, _ in panels],
            x=self.tasks,
            y=self.tasks,
            x_label="probed",
            y_label="latents taken away",
            value_label="loss of accuracy",
            caption="A diagonal: latents belong to classes.",
        )


@method(needs=("tokens", "tokenizer"))
def targeted_probe_perturbation(
    model: Model,
    dictionary: Dictionary,
    *,
    ablated: int = 10,
    text: str | None = None,
    contexts: int = 96,
    length: int = 64,
    least: int = 30,
    draws: int = 3,
    twins: int = 3,
    seed: int = 0,
) -> TargetedProbePerturbation:
    """How selectively a class of tokens is erased by taking away the latents that account for it.

    `ablated` latents are taken away, against `draws` times as many random ones. The `text` (None: the held-out sample)
    gives the classes. Raises VesaliusError if it gives fewer than two, or there are not so many latents.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    subjects = subjects_of(model, dictionary, inputs, twins=twins, seed=seed)
    subjects.require(ablated)
    tasks = subjects.tasks(least=least)
    if len(tasks) < 2:
        raise VesaliusError(f"the text gives one class only, {', '.join(tasks)}; give more text")
    fitted = []
    for yes in progress(list(tasks.values()), "probes"):
        rows, judged = (subjects.balanced(yes.long(), part) for part in (0, 1))
        fitted.append((yes, rows, judged, subjects.probes(rows, yes)))

    taken, latents = [], []
    for number, (yes, rows, _, probes) in enumerate(progress(fitted, "classes taken away")):
        best = [
            subjects.accounting(subject, probes, rows, yes).topk(ablated).indices.tolist()
            for subject in range(len(subjects))
        ]
        latents.append(best[0])
        random = [subjects.drawn(ablated, number * draws + draw) for draw in range(draws)]
        taken.append(torch.stack([_hits(subjects, best, random, *probed) for probed in fitted], 1))
    value, again = shares(torch.stack(taken, 1), seed=seed)  # [taken, probed, condition]

    before, after = value[..., : len(subjects)], value[..., len(subjects) :]
    losses = torch.cat([before, before[..., :1].expand(*before.shape[:2], draws)], -1) - after
    drawn = again[..., : len(subjects)]
    drawn = (
        torch.cat([drawn, drawn[..., :1].expand(*drawn.shape[:3], draws)], -1) - again[..., len(subjects) :]
    )
    scores, noise = _score(losses[..., 0]), _score(losses[..., len(subjects) :].mean(-1))
    score_draws = _score(drawn[..., 0])
    differences = score_draws - _score(drawn[..., len(subjects) :].mean(-1))
    return TargetedProbePerturbation(
        list(tasks),
        before[0, :, 0].contiguous(),
        losses[..., 0].contiguous(),
        losses[..., len(subjects) :].permute(2, 0, 1).contiguous(),
        losses[..., 1 : len(subjects)].permute(2, 0, 1).contiguous(),
        latents,
        [scores.item(), *(end.item() for end in percentiles(score_draws))],
        [(scores - noise).item(), *(end.item() for end in percentiles(differences, confidence=0.99))],
        choices={
            "site": dictionary.site,
            "ablated": ablated,
            "ablation": "to their mean over the tokens judged",
            "tokens": len(subjects.tokens),
        },
    )


def _hits(
    subjects: Subjects, best: list[list[int]], random: list[list[int]], yes, rows, judged, probes
) -> Tensor:
    """Right answers of one class's probes by context: before, of each subject; after; and after random latents."""
    before = probes.predictions(subjects.acts[:, judged])[..., 0]
    changed = [subjects.without(subject, latents, judged) for subject, latents in enumerate(best)]
    after = probes.predictions(torch.stack(changed))[..., 0]
    noise = [
        probes.logits(subjects.without(0, latents, judged).expand(len(subjects), -1, -1))[0, :, 0].argmax(-1)
        for latents in random
    ]
    answers = torch.cat([before, after, torch.stack(noise)]) == yes[judged].long()
    return subjects.hits(answers, judged)


def _score(losses: Float[Tensor, "*draw taken probed"]) -> Float[Tensor, "*draw"]:
    """The mean of the diagonal less that of the rest."""
    count = losses.shape[-1]
    own = losses.diagonal(dim1=-2, dim2=-1).sum(-1)
    return own / count - (losses.sum((-2, -1)) - own) / (count * (count - 1))


def _halves(losses: Float[Tensor, "taken probed"]) -> tuple[float, float]:
    count, own = len(losses), losses.diagonal().sum().item()
    return own / count, (losses.sum().item() - own) / (count * (count - 1))
