"""Probing: at which layers can a question be answered from the activations, and was that learned?

Alain & Bengio 2016 (arXiv 1610.01644); Belinkov 2022 (arXiv 2102.12452). A probe that answers well shows that the
answer is there to be read, which may be no merit of the training: much can be read from the activations of a random
network, and much learned by heart. So the same probe is fitted to

1. random-init twins of the network, which read the same inputs;
2. shuffled answers, as a control task (Hewitt & Liang 2019, arXiv 1909.03368).

The network, its twins, all sites of one width and the shuffled answers are one solve (`vesalius.probes`). Rows are
parted by groups, of which none is in two parts; the penalty and the layer that the headline speaks of are chosen on
the validation part, and all that is reported is of the test part.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import sites_of
from vesalius.data.images import Images
from vesalius.dictionaries.probe import ProbeDictionary
from vesalius.errors import VesaliusError, nearest
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import family_wise
from vesalius.model import Model
from vesalius.probes import (
    Labelled,
    LinearProbes,
    MLPProbes,
    lda,
    logistic,
    mass_mean,
    mlp,
    ridge,
    scored,
    sparse,
    splits,
)
from vesalius.questions import answered, question
from vesalius.result import Headline, Result

Kind = Literal["linear", "ridge", "mass_mean", "lda", "mlp", "sparse"]
PENALTIES = (1.0, 0.1, 0.01)
"""The strongest first, in units of the mean variance of a site's units."""
UNITS = 16
SHUFFLES = 3


@dataclass(frozen=True)
class Probing(Result):
    """Accuracies on the test part, 0 to 1, by site; probes as `probe(site)`."""

    question: str
    probe_kind: str
    sites: list
    classes: list
    accuracy: Float[Tensor, " site"]
    low: Float[Tensor, " site"]
    high: Float[Tensor, " site"]
    """The 95% interval over groups."""
    validation: Float[Tensor, " site"]
    """Accuracy on the validation part."""
    shuffled: Float[Tensor, "shuffle site"]
    """Of probes fitted to shuffled answers and judged by them."""
    twins: Float[Tensor, "twin site"]
    """Of probes of random-init twins."""
    majority: float
    """The share of the commonest class."""
    nats: Float[Tensor, " site"]
    """Mean cross-entropy."""
    calibration_error: Float[Tensor, " site"]
    confidence: Float[Tensor, "site bin"]
    right: Float[Tensor, "site bin"]
    """How often the likeliest class is true, by its probability."""
    weights: dict
    """Site → `[width, class]`; empty for a probe that is not linear."""
    biases: dict
    choices: dict

    @property
    def best(self) -> int:
        """The site whose probe does best on the validation part."""
        return int(self.validation.argmax())

    @property
    def chance(self) -> float:
        """What the best site of a twin, or of shuffled answers, passes once in a hundred times."""
        return min(1.0, max(self.majority, family_wise(self.twins), family_wise(self.shuffled)))

    def probe(self, site: str | int) -> ProbeDictionary:
        """The directions at one site, by its address or its number. Raises VesaliusError if there are none."""
        name = self.sites[site] if isinstance(site, int) and 0 <= site < len(self.sites) else str(site)
        if not self.weights:
            raise VesaliusError(
                f"a probe of the kind '{self.probe_kind}' has no directions; expected a linear one"
            )
        if name not in self.weights:
            raise VesaliusError(
                f"there is no probe at '{name}'; expected {', '.join(self.sites)}{nearest(name, self.sites)}"
            )
        about = {"kind": self.probe_kind, "accuracy": self.accuracy[self.sites.index(name)].item()}
        about |= {key: self.provenance[key] for key in ("model", "model_hash") if key in self.provenance}
        return ProbeDictionary(
            name, self.weights[name], self.biases[name], tuple(self.classes), self.question, about
        )

    def headlines(self) -> list[Headline]:
        at = self.best
        interval = (self.low[at].item(), self.high[at].item())
        twin, shuffled = self.twins[:, at].mean().item(), self.shuffled[:, at].mean().item()
        note = (
            f"random-init twins {twin:.3f}, shuffled answers {shuffled:.3f}, commonest class {self.majority:.3f}; "
            f"control: 1 in 100 of their best; {self.choices['rows'][2]} test rows"
        )
        claim = f"'{self.question}' read at {self.sites[at]} by a {self.probe_kind} probe, accuracy"
        accuracy = self.accuracy[at].item()
        return [
            Headline(claim, accuracy, self.chance, interval, interval[0] > self.chance, note),
            Headline("selectivity, accuracy less that of shuffled answers", accuracy - shuffled, 0.0),
            Headline("calibration error there", self.calibration_error[at].item(), 0.0),
        ]

    def figure(self) -> Figure:
        at, numbers = self.best, list(range(len(self.sites)))
        drawn = [
            figures.lines(
                numbers,
                {
                    f"{self.probe_kind} probe": self.accuracy,
                    "random-init twins": self.twins.mean(0),
                    "shuffled answers": self.shuffled.mean(0),
                    "commonest class": [self.majority] * len(numbers),
                },
                title="Accuracy by site",
                x_label=f"site, {self.sites[0]} to {self.sites[-1]}",
                y_label="accuracy on held-out groups",
                bands={
                    f"{self.probe_kind} probe": (self.low, self.high),
                    "random-init twins": (self.twins.amin(0), self.twins.amax(0)),
                    "shuffled answers": (self.shuffled.amin(0), self.shuffled.amax(0)),
                },
                caption="Bands: 95% interval over groups of the probe, the range of the controls.",
            )
        ]
        full = self.confidence[at].isfinite()
        drawn.append(
            figures.scatter(
                self.confidence[at][full],
                self.right[at][full],
                title=f"Calibration at {self.sites[at]}",
                x_label="probability of the likeliest class",
                y_label="share that is right",
                references=[("diagonal", 0.0, "calibrated")],
                caption=f"Mean difference {self.calibration_error[at]:.3f}.",
            )
        )
        return figures.group(drawn, title=f"Probing for '{self.question}'")


@method()
def probing(
    model: Model,
    *,
    labels: str | Path = "auto",
    sites: str = "",
    position: Literal["auto", "last", "mean", "all"] = "auto",
    kind: Kind = "linear",
    text: str | None = None,
    contexts: int = 64,
    length: int = 64,
    images: str | Path | Images = "shapes",
    n_images: int = 240,
    twins: int = 3,
    seed: int = 0,
) -> Probing:
    """At which sites a question can be answered by a probe, beside random-init twins and shuffled answers.

    `labels` is `repeated`, `token_class`, `previous_class`, `next_class` (of every token of `text`, None: the held-out
    sample), `image_class`, or a `.csv`, `.jsonl` or `.parquet` file with the columns `text`, `label` and perhaps
    `group`. `sites` is an address, as `mlp_out@*` (empty: the output of every layer). A question about a whole input is
    read at its last token, or from the mean over a picture's places. The evidence is that the interval at the best
    site lies above the family-wise 1% level of the controls. Raises VesaliusError for one class only, fewer than
    three groups, or a position that does not fit the question.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = probing(handwritten_induction(), kind="ridge", contexts=32)
    >>> result.sites[result.best]
    'resid_post@1'
    """
    asked = question(
        model,
        labels,
        text=text,
        contexts=contexts,
        length=length,
        images=images,
        n_images=n_images,
        seed=seed,
    )
    addresses = [str(one) for one in sites_of(model, sites)] if sites else model.layer_sites()
    networks = [model, *(model.random_twin(seed + 1 + number) for number in range(twins))]
    seen = [
        answered(network, asked, addresses, position=position)
        for network in progress(networks, "activations of the network and its twins")
    ]
    groups = [asked.groups[number] for number in seen[0].inputs.tolist()]
    parts = splits(groups, seed=seed)
    truth = seen[0].labels
    _check_rows(truth, parts.train, asked.classes)
    answers = torch.stack([truth, *_shuffled(truth, seen[0].inputs, seed)], 1)

    found: dict[str, _Site] = {}
    widths = {site: acts.shape[1] for site, acts in seen[0].acts.items()}
    for width in progress(sorted(set(widths.values())), "probes"):
        alike = [site for site in addresses if widths[site] == width]
        acts = torch.stack([one.acts[site] for one in seen for site in alike])  # network by network
        fit = _fitted(
            kind, acts, answers, len(asked.classes), train=parts.train, choose=parts.validation, seed=seed
        )
        found |= _judged(
            fit, acts, answers, groups, alike, choose=parts.validation, test=parts.test, seed=seed
        )

    judged = [found[site] for site in addresses]
    numbers = {name: torch.stack([one.numbers[name] for one in judged]) for name in judged[0].numbers}
    share = truth[parts.test].bincount(minlength=len(asked.classes)).max() / len(parts.test)
    return Probing(
        question=asked.name,
        probe_kind=kind,
        sites=addresses,
        classes=list(asked.classes),
        majority=share.item(),
        shuffled=torch.stack([one.shuffled for one in judged], 1),
        twins=torch.stack([one.twins for one in judged], 1),
        weights={site: found[site].weight for site in addresses if found[site].weight is not None},
        biases={site: found[site].bias for site in addresses if found[site].bias is not None},
        accuracy=numbers["accuracy"],
        low=numbers["low"],
        high=numbers["high"],
        validation=numbers["validation"],
        nats=numbers["nats"],
        calibration_error=numbers["calibration_error"],
        confidence=numbers["confidence"],
        right=numbers["right"],
        choices={
            "position": position,
            "rows": [len(parts.train), len(parts.validation), len(parts.test)],
            "groups": len(set(groups)),
            "penalties": list(PENALTIES) if kind in ("linear", "ridge", "lda") else [],
            "units": UNITS if kind == "sparse" else None,
        },
    )


@dataclass(frozen=True)
class _Site:
    """What is known of one site."""

    numbers: dict[str, Tensor]
    shuffled: Float[Tensor, " shuffle"]
    twins: Float[Tensor, " twin"]
    weight: Float[Tensor, "width class"] | None
    bias: Float[Tensor, " class"] | None


def _check_rows(truth: Int[Tensor, " row"], train: Int[Tensor, " fitted"], classes: tuple[str, ...]) -> None:
    known = truth[train].unique()
    if len(known) < 2:
        only = classes[int(known[0])] if len(known) else "none"
        raise VesaliusError(
            f"all {len(train)} rows to fit a probe to are of the class '{only}'; expected two or more"
        )


def _shuffled(
    truth: Int[Tensor, " row"], inputs: Int[Tensor, " row"], seed: int
) -> list[Int[Tensor, " row"]]:
    """Answers dealt to other rows; those of whole inputs stay together."""
    generator = torch.Generator().manual_seed(seed)
    _, first = torch.unique(inputs, return_inverse=True)
    together = all(len(truth[first == one].unique()) == 1 for one in range(int(first.max()) + 1))
    dealt = []
    for _ in range(SHUFFLES):
        if not together:
            dealt.append(truth[torch.randperm(len(truth), generator=generator)])
            continue
        each = torch.stack([truth[first == one][0] for one in range(int(first.max()) + 1)])
        dealt.append(each[torch.randperm(len(each), generator=generator)][first])
    return dealt


def _fitted(
    kind: Kind,
    acts: Float[Tensor, "layer row width"],
    answers: Int[Tensor, "row target"],
    classes: int,
    *,
    train: Int[Tensor, " fitted"],
    choose: Int[Tensor, " chosen"],
    seed: int,
) -> LinearProbes | MLPProbes:
    """Probes of the kind; where there is a penalty, each with the one that reads the validation part best."""
    labelled = Labelled.of(acts[:, train], answers[train], classes=classes)
    if kind == "mlp":
        return mlp(labelled, seed=seed)
    if kind == "sparse":
        return sparse(labelled, units=min(UNITS, labelled.width), tolerance=1e-3)
    if kind == "mass_mean":
        return mass_mean(labelled)
    if kind == "linear":
        fits: list[LinearProbes] = []
        for penalty in PENALTIES:
            fits.append(logistic(labelled, penalty=penalty, tolerance=1e-3, start=fits[-1] if fits else None))
    else:
        solve: Callable[..., LinearProbes] = {"ridge": ridge, "lda": lda}[kind]
        fits = [solve(labelled, penalty=penalty) for penalty in PENALTIES]
    held = [scored(fit, acts[:, choose], answers[choose]).accuracy for fit in fits]
    chosen = torch.stack(held).argmax(0)  # the strongest of equal ones
    weight, bias = fits[0].weight.clone(), fits[0].bias.clone()
    for number, fit in enumerate(fits):
        weight[chosen == number], bias[chosen == number] = (
            fit.weight[chosen == number],
            fit.bias[chosen == number],
        )
    return replace(fits[0], weight=weight, bias=bias)


def _judged(
    fit: LinearProbes | MLPProbes,
    acts: Float[Tensor, "layer row width"],
    answers: Int[Tensor, "row target"],
    groups: list[str],
    sites: list[str],
    *,
    choose: Int[Tensor, " chosen"],
    test: Int[Tensor, " judged"],
    seed: int,
) -> dict[str, _Site]:
    """By site, of the network (the first layers) and of its twins (the others)."""
    true = answers.clone()
    true[:, 1:] = -1
    held = scored(fit, acts[:, choose], true[choose]).overall
    found = scored(fit, acts[:, test], true[test], groups=[groups[row] for row in test.tolist()], seed=seed)
    others = scored(fit, acts[:, test], answers[test]).accuracy[: len(sites), 1:]
    linear = isinstance(fit, LinearProbes)
    judged = {}
    for number, site in enumerate(sites):
        numbers = {
            "accuracy": found.overall[number],
            "low": found.low[number],
            "high": found.high[number],
            "validation": held[number],
            "nats": found.nats[number],
            "calibration_error": found.calibration_error[number],
            "confidence": found.confidence[number],
            "right": found.right[number],
        }
        judged[site] = _Site(
            numbers,
            others[number],
            found.overall[number + len(sites) :: len(sites)],
            fit.weight[number, 0] if linear else None,
            fit.bias[number, 0] if linear else None,
        )
    return judged
