"""Sparse probing: how much of what can be read from activations is in a few latents.

Gurnee et al. 2023 (Finding Neurons in a Haystack, arXiv 2305.01610); of dictionaries, SAEBench (Karvonen et al. 2025,
arXiv 2503.09532):

1. the questions are those that any text can be asked, with as many answers yes as no: of what class a token is, and of
   what class the next one;
2. for each the k latents whose means differ most, in standard deviations, on the rows to fit on, and a logistic
   regression on them; accuracy is on other contexts, 0.5 is chance;
3. the same with k neurons, with all units, with labels permuted, and with the dictionary's directions in networks with
   shuffled weights. There too the present token can be read from almost anything.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.latents.inputs import inputs_of
from vesalius.latents.token_tasks import PENALTY, Subjects, moments_of, separation, shares, subjects_of
from vesalius.method import method, progress
from vesalius.metrics import family_wise, percentiles
from vesalius.model import Model
from vesalius.probes import Labelled, logistic
from vesalius.result import Headline, Result

CONDITIONS = ("latents", "neurons", "shuffled")
LABELS = {
    "neurons": "as many neurons",
    "shuffled": "permuted labels",
    "twins": "networks with shuffled weights",
}


@dataclass(frozen=True)
class SparseProbing(Result):
    """Accuracies in 0..1 on contexts that the probes were not fitted on; 0.5 is chance."""

    tasks: list
    ks: list
    accuracy: dict
    """CONDITIONS → `[k, task]`."""
    everything: Float[Tensor, " task"]
    """A probe of all units of the site."""
    twins: Float[Tensor, "twin k task"]
    means: dict
    """CONDITIONS → k by k the mean over tasks, `[mean, low, high]`."""
    differences: dict
    """`neurons`, `shuffled` → k by k the mean of latents less it, `[mean, low, high]`, the interval of 99%."""
    latents: list
    """For the smallest k, the latents of each task."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows = []
        for number, k in enumerate(self.ks):
            value, low, high = self.means["latents"][number]
            chance = family_wise(self.twins[:, number].mean(1)) if len(self.twins) > 1 else None
            controls = {name: self.means[name][number][0] for name in ("neurons", "shuffled")}
            controls |= {} if chance is None else {"twins": chance}
            best = max(controls, key=controls.__getitem__)
            beaten = all(part[number][1] > 0 for part in self.differences.values())
            rows.append(
                Headline(
                    f"accuracy of {k} latent{'s' * (k > 1)}, mean over {len(self.tasks)} tasks",
                    value,
                    controls[best],
                    (low, high),
                    None if chance is None else beaten and low > chance,
                    f"control: {LABELS[best]}; all units: {self.everything.mean():.3g}",
                )
            )
        return rows

    def figure(self) -> Figure:
        series = {name: [part[0] for part in self.means[name]] for name in CONDITIONS}
        twins = {"twins": self.twins.mean((0, 2))} if len(self.twins) else {}
        k = len(self.ks) - 1
        drawn = [
            figures.lines(
                self.ks,
                series | twins | {"all units": [self.everything.mean().item()] * len(self.ks)},
                bands={
                    name: ([part[1] for part in self.means[name]], [part[2] for part in self.means[name]])
                    for name in CONDITIONS
                },
                title="What a few latents know",
                x_label="latents or neurons read (k)",
                y_label="accuracy, mean over tasks",
                log_x=True,
                caption="0.5 is chance. " + "; ".join(f"{name}: {words}" for name, words in LABELS.items()),
            ),
            figures.bars(
                self.tasks,
                {name: self.accuracy[name][k] for name in CONDITIONS}
                | ({"twins": self.twins[:, k].mean(0)} if len(self.twins) else {})
                | {"all units": self.everything},
                title=f"Task by task, k = {self.ks[k]}",
                y_label="accuracy",
            ),
        ]
        return figures.group(drawn, title="Sparse probing")


@method(needs=("tokens", "tokenizer"))
def sparse_probing(
    model: Model,
    dictionary: Dictionary,
    *,
    ks: list[int] | None = None,
    text: str | None = None,
    contexts: int = 96,
    length: int = 64,
    least: int = 30,
    twins: int = 3,
    seed: int = 0,
) -> SparseProbing:
    """How well a few latents tell classes of tokens, against neurons, untrained networks and permuted labels.

    `ks` are numbers of latents (None: 1 and 8). The `text` (None: the held-out sample) gives the tasks, those with
    `least` tokens of both answers. Raises VesaliusError if it gives none, or a k is more than there are.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    subjects = subjects_of(model, dictionary, inputs, twins=twins, seed=seed)
    chosen_ks = sorted(set([1, 8] if ks is None else ks))
    most = min(subjects.found[0].codes.width, subjects.acts.shape[2])
    if not chosen_ks or chosen_ks[0] < 1 or chosen_ks[-1] > most:
        raise VesaliusError(f"ks of {ks} were given; expected numbers of 1 to {most}")
    tasks = subjects.tasks(least=least)
    hits, everything, latents = [], [], []
    for yes in progress(list(tasks.values()), "tasks"):
        rows, judged = (subjects.balanced(yes.long(), part) for part in (0, 1))
        best = _best(subjects, rows, yes, chosen_ks[-1])
        hits.append(torch.stack([_answers(subjects, best, k, rows, judged, yes) for k in chosen_ks], 1))
        probes = subjects.probes(rows, yes)
        right = probes.predictions(subjects.acts[:, judged])[:1, :, 0] == yes[judged]
        everything.append(right.float().mean().item())
        latents.append(best[0][: chosen_ks[0]])
    value, draws = shares(torch.stack(hits, 2), seed=seed)  # [k, task, condition]
    of_mean = draws.mean(2)
    return SparseProbing(
        list(tasks),
        chosen_ks,
        {name: value[:, :, number].contiguous() for number, name in enumerate(CONDITIONS)},
        torch.tensor(everything),
        value[:, :, len(CONDITIONS) :].permute(2, 0, 1).contiguous(),
        {
            name: _with_intervals(value[:, :, number].mean(1), of_mean[:, :, number])
            for number, name in enumerate(CONDITIONS)
        },
        {
            name: _with_intervals(
                (value[:, :, 0] - value[:, :, number]).mean(1), of_mean[:, :, 0] - of_mean[:, :, number], 0.99
            )
            for number, name in enumerate(CONDITIONS)
            if number
        },
        latents,
        choices={
            "site": dictionary.site,
            "chosen by": "difference of means in standard deviations",
            "probe": f"logistic regression, penalty {PENALTY}",
            "tokens": len(subjects.tokens),
        },
    )


def _best(
    subjects: Subjects, rows: Int[Tensor, " some"], yes: Bool[Tensor, " row"], k: int
) -> list[list[int]]:
    """The units of largest separation, best first: latents of each subject, and last the network's neurons."""
    found = [separation(*moments_of(one, rows, yes)) for one in subjects.found]
    acts, answers = subjects.acts[0, rows], yes[rows]
    parts = [acts[~answers], acts[answers]]
    mean, variance = (
        torch.stack(part, 1) for part in ([p.mean(0) for p in parts], [p.var(0) for p in parts])
    )
    return [one.topk(k).indices.tolist() for one in (*found, separation(mean, variance))]


def _answers(
    subjects: Subjects,
    best: list[list[int]],
    k: int,
    rows: Int[Tensor, " some"],
    judged: Int[Tensor, " other"],
    yes: Bool[Tensor, " row"],
) -> Float[Tensor, "context condition two"]:
    """Right answers by context: of CONDITIONS, and of the twins."""
    columns = [found.columns(units[:k]) for found, units in zip(subjects.found, best)]
    columns.insert(1, subjects.acts[0][:, best[-1][:k]])
    read = torch.stack([column / column[rows].std(0).clamp(min=1e-6) for column in columns])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(subjects.seed))
    labels = torch.stack([yes[rows], yes[rows][order]], 1).long()
    probes = logistic(Labelled.of(read[:, rows], labels), penalty=PENALTY, iterations=30)
    right = probes.predictions(read[:, judged]) == yes[judged, None]
    latents, neurons, *twins = right[:, :, 0]
    return subjects.hits(torch.stack([latents, neurons, right[0, :, 1], *twins]), judged)


def _with_intervals(
    values: Float[Tensor, " k"], draws: Float[Tensor, "draw k"], confidence: float = 0.95
) -> list[list[float]]:
    low, high = percentiles(draws, confidence=confidence)
    return torch.stack([values, low, high], 1).tolist()
