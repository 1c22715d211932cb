"""Probing: at which layers can a question be answered from the activations, and was that learned?

Alain & Bengio 2016 (arXiv 1610.01644); Belinkov 2022 (arXiv 2102.12452). A probe that answers well shows that the
answer is there to be read, which may be no merit of the training: much can be read from the activations of a random
network, and much learned by heart. So the same probe is fitted to

1. random-init twins of the network, which read the same inputs;
2. shuffled answers, as a control task (Hewitt & Liang 2019, arXiv 1909.03368).

All sites of one width and the shuffled answers are one solve (`vesalius.probes`), for the network and for each twin.
Rows are parted by groups, of which none is in two parts; the penalty and the layer that the headline speaks of are
chosen on the validation part, and all that is reported is of the test part.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
    Splits,
    lda,
    logistic,
    mass_mean,
    mlp,
    ridge,
    scored,
    sparse,
    splits,
)
from vesalius.questions import Answered, answered, question, stored
from vesalius.result import Headline, Result
from vesalius.store import ActivationStore

Kind = Literal["linear", "ridge", "mass_mean", "lda", "mlp", "sparse"]
PENALTIES = (1.0, 0.1, 0.01)
"""The strongest first, in units of the mean variance of a site's units."""
UNITS = 16
SHUFFLES = 3
TOGETHER = 1 << 27
"""Numbers, of all rows of some sites, that are solved together."""


@dataclass(frozen=True)
class Probing(Result):
    """Accuracies on the test part, 0 to 1, of every probe; the probes as `probe(site)`."""

    question: str
    probe_kind: str
    sites: list
    """Of each probe, where it reads."""
    positions: list
    """Of each probe: `all`, `last`, `mean`, or the number of the one position that it reads."""
    classes: list
    accuracy: Float[Tensor, " probe"]
    low: Float[Tensor, " probe"]
    high: Float[Tensor, " probe"]
    """The 95% interval over groups."""
    validation: Float[Tensor, " probe"]
    """Accuracy on the validation part."""
    majority: Float[Tensor, " probe"]
    """The share of the commonest class."""
    shuffled: Float[Tensor, "shuffle probe"]
    """Of probes fitted to shuffled answers and judged by them."""
    twins: Float[Tensor, "twin probe"]
    """Of probes of random-init twins."""
    nats: Float[Tensor, " probe"]
    """Mean cross-entropy."""
    calibration_error: Float[Tensor, " probe"]
    confidence: Float[Tensor, "probe bin"]
    right: Float[Tensor, "probe bin"]
    """How often the likeliest class is true, by its probability."""
    weights: list
    """Of each probe `[width, class]`; empty for a kind that is not linear."""
    biases: list
    choices: dict

    @property
    def best(self) -> int:
        """The probe that does best on the validation part."""
        return int(self.validation.argmax())

    @property
    def chance(self) -> float:
        """What the best probe of a twin, or of shuffled answers, passes once in a hundred times."""
        nulls = [family_wise(null) for null in (self.twins, self.shuffled) if len(null)]
        return min(1.0, max(self.majority.max().item(), *nulls))

    def name(self, number: int) -> str:
        """Where a probe reads."""
        position = self.positions[number]
        return (
            f"{self.sites[number]} at position {position}"
            if isinstance(position, int)
            else self.sites[number]
        )

    def probe(self, site: str | int, position: int | None = None) -> ProbeDictionary:
        """The directions of one probe, by its number or its site, and its position where there is a probe for each.

        Raises VesaliusError if there are none.
        """
        if not self.weights:
            raise VesaliusError(
                f"a probe of the kind '{self.probe_kind}' has no directions; expected a linear one"
            )
        names = [self.name(number) for number in range(len(self.sites))]
        if isinstance(site, int) and 0 <= site < len(names):
            at = site
        else:
            name = str(site) if position is None else f"{site} at position {position}"
            if name not in names:
                raise VesaliusError(
                    f"there is no probe at '{name}'; expected {', '.join(names)}{nearest(name, names)}"
                )
            at = names.index(name)
        about = {"kind": self.probe_kind, "accuracy": self.accuracy[at].item()}
        about |= {key: self.provenance[key] for key in ("model", "model_hash") if key in self.provenance}
        return ProbeDictionary(
            self.sites[at], self.weights[at], self.biases[at], tuple(self.classes), self.question, about
        )

    def headlines(self) -> list[Headline]:
        at = self.best
        interval = (self.low[at].item(), self.high[at].item())
        shuffled = self.shuffled[:, at].mean().item()
        twins = f"{self.twins[:, at].mean():.3f}" if len(self.twins) else "none"
        note = (
            f"random-init twins {twins}, shuffled answers {shuffled:.3f}, commonest class {self.majority[at]:.3f}; "
            f"control: 1 in 100 of their best; {self.choices['rows'][2]} test rows"
        )
        claim = f"'{self.question}' read at {self.name(at)} by a {self.probe_kind} probe, accuracy"
        accuracy = self.accuracy[at].item()
        return [
            Headline(claim, accuracy, self.chance, interval, interval[0] > self.chance, note),
            Headline("selectivity, accuracy less that of shuffled answers", accuracy - shuffled, 0.0),
            Headline("calibration error there", self.calibration_error[at].item(), 0.0),
        ]

    def figure(self) -> Figure:
        at = self.best
        each = len(set(self.sites)) < len(self.sites)
        drawn = [self._by_position() if each else self._by_site()]
        full = self.confidence[at].isfinite()
        drawn.append(
            figures.scatter(
                self.confidence[at][full],
                self.right[at][full],
                title=f"Calibration at {self.name(at)}",
                x_label="probability of the likeliest class",
                y_label="share that is right",
                references=[("diagonal", 0.0, "calibrated")],
                caption=f"Mean difference {self.calibration_error[at]:.3f}.",
            )
        )
        return figures.group(drawn, title=f"Probing for '{self.question}'")

    def _by_site(self) -> Figure:
        own, controls = f"{self.probe_kind} probe", {"shuffled answers": self.shuffled}
        if len(self.twins):
            controls = {"random-init twins": self.twins} | controls
        return figures.lines(
            list(range(len(self.sites))),
            {
                own: self.accuracy,
                **{name: null.mean(0) for name, null in controls.items()},
                "commonest class": self.majority,
            },
            title="Accuracy by site",
            x_label=f"site, {self.sites[0]} to {self.sites[-1]}",
            y_label="accuracy on held-out groups",
            bands={
                own: (self.low, self.high),
                **{name: (null.amin(0), null.amax(0)) for name, null in controls.items()},
            },
            caption="Bands: 95% interval over groups of the probe, the range of the controls.",
        )

    def _by_position(self) -> Figure:
        sites, positions = list(dict.fromkeys(self.sites)), sorted(set(self.positions))
        panels = {f"{self.probe_kind} probe": self.accuracy, "shuffled answers": self.shuffled.mean(0)}
        if len(self.twins):
            panels["random-init twins"] = self.twins.mean(0)
        return figures.heatmap(
            torch.stack([panel.reshape(len(sites), len(positions)) for panel in panels.values()]),
            title="Accuracy by site and position",
            x=positions,
            y=sites,
            panels=list(panels),
            x_label="position",
            value_label="accuracy on held-out groups",
            diverging=False,
        )


@method()
def probing(
    model: Model,
    *,
    labels: str | Path | Tensor | list[str] | list[int] = "auto",
    sites: str = "",
    position: str | int = "auto",
    kind: Kind = "linear",
    store: str | Path | ActivationStore | None = None,
    rows: int = 65_536,
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
    `group`. `sites` is an address, as `mlp_out@*` (empty: the output of every layer). `position` is `all`, `last`,
    `mean`, a number, or `each` for a probe at every one (left out are those with one class to learn); a question about
    a whole input is read at its last token, or from the mean over a picture's places. The evidence is that the interval
    at the best site lies above the family-wise 1% level of the controls.

    With `store`, activations are read from there (`sites` empty: all that it has), at most `rows` of them, parted by
    documents; `labels` may then also be a tensor, a list or a file (`.npy` too) of one for each document, picture or
    row. The twins read what the store was harvested from: tokens lie in it, of pictures `images` must be the same, and
    without them there are no twins. Raises VesaliusError for one class only, fewer than three groups, a position that
    does not fit the question, a store of another network, or labels that do not fit the store.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = probing(handwritten_induction(), kind="ridge", contexts=32)
    >>> result.sites[result.best]
    'resid_post@1'
    """
    if store is None:
        if not isinstance(labels, str | Path):
            raise VesaliusError("labels were given for no store; expected store= as well")
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
        about, run = {}, lambda network: answered(network, asked, addresses, position=position)
    else:
        if text is not None:
            raise VesaliusError(
                "a text and a store were given; expected one, as a store has a text of its own"
            )
        asked = stored(model, store, labels, position=position, rows=rows, images=images, seed=seed)
        chosen = [str(one) for one in sites_of(model, sites)] if sites else asked.store.sites
        addresses = list(asked.store[chosen].sites)
        twins = twins if asked.source is not None else 0
        about, run = asked.about, partial(asked.answered, sites=addresses)

    seen = run(model)
    parts = splits(seen.groups, seed=seed)
    _check_rows(seen.labels, parts.train, asked.classes)
    places, left_out = _places(seen, parts)
    probed = partial(_probed, places=places, kind=kind, classes=len(asked.classes), seed=seed)
    own = probed(seen, shuffles=SHUFFLES)
    controls = [
        probe
        for number in progress(range(twins), "random-init twins")
        for probe in probed(run(model.random_twin(seed + 1 + number)), shuffles=0)
    ]
    numbers: dict[str, Any] = {
        name: torch.stack([one.numbers[name] for one in own]) for name in own[0].numbers
    }
    return Probing(
        question=asked.name,
        probe_kind=kind,
        sites=[site for site in addresses for _ in places],
        positions=[position for _ in addresses for position in places],
        classes=list(asked.classes),
        shuffled=torch.stack([one.shuffled for one in own], 1),
        twins=torch.tensor([one.numbers["accuracy"] for one in controls]).reshape(twins, len(own)),
        weights=[one.weight for one in own if one.weight is not None],
        biases=[one.bias for one in own if one.bias is not None],
        **numbers,
        choices={
            "position": seen.where,
            "positions_left_out": left_out,
            "rows": [len(parts.train), len(parts.validation), len(parts.test)],
            "groups": len(seen.groups.unique()),
            "twins": f"{twins} random-init networks that read the same inputs" if twins else "none",
            "penalties": list(PENALTIES) if kind in ("linear", "ridge", "lda") else [],
            "units": UNITS if kind == "sparse" else None,
            **about,
        },
    )  # fmt: skip


@dataclass(frozen=True)
class _Probe:
    """What is known of one probe."""

    numbers: dict[str, Tensor]
    shuffled: Float[Tensor, " shuffle"]
    weight: Float[Tensor, "width class"] | None
    bias: Float[Tensor, " class"] | None


def _check_rows(truth: Int[Tensor, " row"], train: Int[Tensor, " fitted"], classes: tuple[str, ...]) -> None:
    known = truth[train].unique()
    if len(known) < 2:
        only = classes[int(known[0])] if len(known) else "none"
        raise VesaliusError(
            f"all {len(train)} rows to fit a probe to are of the class '{only}'; expected two or more"
        )


def _places(seen: Answered, parts: Splits) -> tuple[dict[str | int, tuple[Tensor, Splits]], list[int]]:
    """By position its rows and how they are parted among themselves; positions that have not two classes to learn."""
    if seen.where != "each":
        return {seen.where: (torch.arange(len(seen.labels)), parts)}, []
    part = torch.zeros_like(seen.labels)
    part[parts.validation], part[parts.test] = 1, 2
    found, left_out = {}, []
    for position in seen.positions.unique().tolist():
        rows = (seen.positions == position).nonzero()[:, 0]
        own = Splits(*((part[rows] == number).nonzero()[:, 0] for number in range(3)))
        if len(seen.labels[rows][own.train].unique()) > 1 and len(own.validation) and len(own.test):
            found[position] = rows, own
        else:
            left_out.append(position)
    if not found:
        raise VesaliusError(
            f"no one of the {len(left_out)} positions has rows of two classes to learn and others to be judged by; "
            "expected position 'all', or more contexts"
        )
    return found, left_out


def _probed(
    seen: Answered,
    *,
    places: dict[str | int, tuple[Tensor, Splits]],
    kind: Kind,
    classes: int,
    shuffles: int,
    seed: int,
) -> list["_Probe"]:
    """Of one network, all positions of the first site, of the second, and so on."""
    found: dict[tuple[str, str | int], _Probe] = {}
    for place, (rows, parts) in places.items():
        truth, groups = seen.labels[rows], seen.groups[rows]
        answers = torch.stack([truth, *_shuffled(truth, seen.inputs[rows], shuffles, seed)], 1)
        for alike in progress(_alike(seen, len(rows)), "probes"):
            acts = torch.stack([seen.acts[site][rows] for site in alike])
            fit = _fitted(kind, acts, answers, classes, parts, seed=seed)
            judged = _judged(fit, acts, answers, groups, classes, parts, seed=seed)
            found |= {(site, place): probe for site, probe in zip(alike, judged)}
    return [found[site, place] for site in seen.acts for place in places]


def _alike(seen: Answered, rows: int) -> list[list[str]]:
    """Sites of one width, as many as are solved together."""
    by_width: dict[int, list[str]] = {}
    for site, acts in seen.acts.items():
        by_width.setdefault(acts.shape[1], []).append(site)
    return [
        sites[first : first + max(1, TOGETHER // (rows * width))]
        for width, sites in sorted(by_width.items())
        for first in range(0, len(sites), max(1, TOGETHER // (rows * width)))
    ]


def _shuffled(
    truth: Int[Tensor, " row"], inputs: Int[Tensor, " row"], shuffles: int, seed: int
) -> list[Int[Tensor, " row"]]:
    """Answers dealt to other rows; those of whole inputs stay together."""
    generator = torch.Generator().manual_seed(seed)
    named, of = torch.unique(inputs, return_inverse=True)
    low, high = (
        torch.zeros_like(named).scatter_reduce(0, of, truth, way, include_self=False)
        for way in ("amin", "amax")
    )
    if not torch.equal(low, high):
        return [truth[torch.randperm(len(truth), generator=generator)] for _ in range(shuffles)]
    return [high[torch.randperm(len(high), generator=generator)][of] for _ in range(shuffles)]


def _fitted(
    kind: Kind,
    acts: Float[Tensor, "layer row width"],
    answers: Int[Tensor, "row target"],
    classes: int,
    parts: Splits,
    *,
    seed: int,
) -> LinearProbes | MLPProbes:
    """Probes of the kind; where there is a penalty, each with the one that reads the validation part best."""
    choose = parts.validation
    labelled = Labelled.of(acts[:, parts.train], answers[parts.train], classes=classes)
    if kind == "mlp":
        return mlp(labelled, seed=seed)
    if kind == "sparse":
        return sparse(labelled, units=min(UNITS, labelled.width))
    if kind == "mass_mean":
        return mass_mean(labelled)
    if kind == "linear":
        fits: list[LinearProbes] = []
        for penalty in PENALTIES:
            fits.append(logistic(labelled, penalty=penalty, start=fits[-1] if fits else None))
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
    groups: Int[Tensor, " row"],
    classes: int,
    parts: Splits,
    *,
    seed: int,
) -> list["_Probe"]:
    """The probes of every site by the true answers, which come first, and by the shuffled ones."""
    true = answers.clone()
    true[:, 1:] = -1
    choose, test = parts.validation, parts.test
    held = scored(fit, acts[:, choose], true[choose]).overall
    found = scored(fit, acts[:, test], true[test], groups=groups[test], seed=seed)
    others = scored(fit, acts[:, test], answers[test]).accuracy[:, 1:]
    majority = answers[test, 0].bincount(minlength=classes).max() / len(test)
    linear = isinstance(fit, LinearProbes)
    return [
        _Probe(
            {
                "accuracy": found.overall[number],
                "low": found.low[number],
                "high": found.high[number],
                "validation": held[number],
                "majority": majority,
                "nats": found.nats[number],
                "calibration_error": found.calibration_error[number],
                "confidence": found.confidence[number],
                "right": found.right[number],
            },
            others[number],
            fit.weight[number, 0].clone() if linear else None,
            fit.bias[number, 0].clone() if linear else None,
        )
        for number in range(len(acts))
    ]
