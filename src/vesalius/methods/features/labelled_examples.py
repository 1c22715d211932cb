"""Labelled examples: people say what is in the crops, without seeing how strongly the feature fired.

Cammarata et al. 2020 (Curve Detectors, distill.pub/2020/circuits/curve-detectors). The same number of crops is drawn
from each of the bins of equal width over the whole range of the feature, shuffled, and shown one at a time. Given
the labels, three questions are answered:

1. of the crops at each activation, how many are of each class;
2. of all positions, how many are of each class at each activation;
3. how much of the expected positive activation is due to each class. For InceptionV1's 3b:379 curves and imperfect
   curves made 55% of it, though nearly all of the unit's strong activations.

No precision and recall: almost all positions are near 0, so errors of labelling there would decide them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vesalius import figures
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError, nearest
from vesalius.examples import activations, before_nonlinearity, crops, field_of, of_feature
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.store.reducers import Spectrum

DRAWS = 1000
"""Bootstrap samples, and shuffles of the labels."""
UNLABELLED = -1
CLASSES = ("feature", "imperfect", "unrelated", "opposing")


@dataclass(frozen=True)
class LabelledExamples(Result):
    """Crops in random order, the bins they are from, and what people called them."""

    feature: str
    pictures: UInt8[Tensor, "crop channel height width"]
    keys: list
    """A name for each crop that tells nothing about it."""
    values: Float[Tensor, " crop"]
    bins: Int[Tensor, " crop"]
    edges: Float[Tensor, " edge"]
    density: Float[Tensor, " bin"]
    """Share of all positions in each bin."""
    classes: list
    labels: Int[Tensor, " crop"]
    """The number of each crop's class, -1 where it has none."""
    shares: Float[Tensor, "class bin"]
    """P(label | activation); NaN where no crop of the bin has a label."""
    expected: dict
    """Of each class the share of the expected positive activation, `[value, low, high]`; empty without labels."""
    together: list
    """The same of the classes that count as the feature, taken together; empty without labels."""
    shuffled: float
    """What the latter exceeds once in a hundred times when the labels are shuffled over the crops."""
    covered: float
    """Share of the expected positive activation that lies in bins with labels."""
    choices: dict

    def headlines(self) -> list[Headline]:
        done = int((self.labels != UNLABELLED).sum())
        rows = [
            Headline(
                "share of the crops that is from above 0",
                (self.values > 0).float().mean().item(),
                self.density[self.edges[:-1] >= 0].sum().item(),
                note=f"control: of all positions; {done} of {len(self.keys)} crops are labelled",
            ),
        ]
        if self.together:
            value, low, high = self.together
            counted = " or ".join(self.choices["counted"])
            rows.append(
                Headline(
                    f"share of the expected positive activation that is {counted}",
                    value,
                    self.shuffled,
                    (low, high),
                    low > self.shuffled,
                    f"control: labels shuffled; {self.covered:.0%} of it lies in labelled bins",
                )
            )
        return rows

    def figure(self) -> Figure:
        if not self.together:
            return figures.labelling(
                self.pictures,
                classes=self.classes,
                keys=self.keys,
                title=f"What is in the picture? {self.feature}, blind",
                caption="Download the labels and give them back as labels.",
            )
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        stacked = self.shares.cumsum(0)
        upto = {f"… or {name}" if row else name: stacked[row] for row, name in enumerate(self.classes)}
        by_label = {name: (self.shares[row] * self.density).log10() for row, name in enumerate(self.classes)}
        x_label = f"value of {self.feature} before its nonlinearity"
        drawn = [
            figures.lines(
                centres,
                upto,
                title="What is there at each activation",
                x_label=x_label,
                y_label="share of crops, added up",
                marks=[(0.0, "0")],
            ),
            figures.lines(
                centres,
                {name: line.where(line.isfinite(), torch.nan) for name, line in by_label.items()},
                title="Density by label",
                x_label=x_label,
                y_label="log10 share of positions",
                marks=[(0.0, "0")],
            ),
            figures.lines(
                centres[centres > 0],
                {
                    name: (self.shares[row] * self.density * centres)[centres > 0]
                    for row, name in enumerate(self.classes)
                },
                title="Contribution to the expected activation",
                x_label=x_label,
                y_label="activation × probability",
            ),
            figures.bars(
                self.classes,
                {"share": [self.expected[name][0] for name in self.classes]},
                title="Share of the expected positive activation",
                y_label="share",
                intervals={"share": [tuple(self.expected[name][1:]) for name in self.classes]},
            ),
        ]
        return figures.group(drawn, title=f"Labelled examples of {self.feature}")


@method(needs=("images",))
def labelled_examples(
    model: Model,
    feature: Feature,
    *,
    images: str | Path | Images = "shapes",
    n_images: int = 256,
    bins: int = 16,
    per_bin: int = 8,
    classes: list[str] | None = None,
    counted: list[str] | None = None,
    labels: Path | None = None,
    seed: int = 0,
) -> LabelledExamples:
    """Crops of a feature's whole range to be labelled blind; given the labels, what it responds to.

    Without `labels` the figure is the form to fill in. `labels` is the file it gave, JSON of key to class, and all
    other parameters must be as they were then; crops without a label are left out. `classes` are those of the paper
    if left out, feature, imperfect, unrelated and opposing; `counted`, those that count as the feature, are the first
    two of them. Intervals are bootstraps over the crops of each bin.

    Raises VesaliusError for a file that is not such JSON, for classes that are not in `classes`, and for keys of
    other crops than these.
    """
    classes = list(classes or CLASSES)
    counted = list(counted or classes[:2])
    if unknown := [name for name in counted if name not in classes]:
        raise VesaliusError(f"counted names '{unknown[0]}'; expected some of {', '.join(classes)}")
    pictures = open_images(images).take(n_images, seed=seed)
    name, feature = str(feature), before_nonlinearity(model, feature)
    spectrum = Spectrum(1, bins=bins, size=per_bin, draws=None, seed=seed)
    for numbers, (acts,) in progress(activations([model], feature.site, pictures), "pictures"):
        spectrum.add(of_feature(feature, acts), numbers)

    counts = spectrum.histogram.counts[0]
    used = counts.nonzero()[:, 0]
    first, last = int(used[0]), int(used[-1]) + 1
    kept = [spectrum.bins(0)[number] for number in range(first, last)]
    bin = torch.cat([torch.full((len(one["values"]),), number) for number, one in enumerate(kept)])
    order = torch.randperm(len(bin), generator=torch.Generator().manual_seed(seed))
    values, examples, positions = (
        torch.cat([one[name] for one in kept])[order] for name in ("values", "examples", "positions")
    )
    bin, edges = bin[order], spectrum.histogram.edges[0, first : last + 1].float()
    density = counts[first:last] / counts.sum()
    shown, _ = crops(
        model,
        pictures,
        site=feature.site,
        field=field_of(model, feature.site),
        examples=examples.tolist(),
        positions=positions.tolist(),
    )
    keys = [
        _key(model, feature, pictures.names[example], position)
        for example, position in zip(examples.tolist(), positions.tolist())
    ]
    given = torch.full((len(keys),), UNLABELLED) if labels is None else _read(labels, keys, classes)
    answers = _answers(given, bin, edges, density, classes=classes, counted=counted, seed=seed)
    return LabelledExamples(
        feature=name,
        pictures=shown,
        keys=keys,
        values=values,
        bins=bin,
        edges=edges,
        density=density,
        classes=classes,
        labels=given,
        **answers,
        choices={
            "pictures": len(pictures),
            "data": pictures.hash,
            "per_bin": per_bin,
            "counted": counted,
        },
    )


def _key(model: Model, feature: Feature, name: str, position: int) -> str:
    text = f"{model.hash} {feature} {name} {position}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(path: Path, keys: list[str], classes: list[str]) -> Int[Tensor, " crop"]:
    """The class of each key, from the file of the labelling figure."""
    if not Path(path).is_file():
        raise VesaliusError(f"'{path}' is not a file; expected the labels that the figure gave")
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise VesaliusError(f"'{path}' is not JSON; expected the labels that the figure gave") from None
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given.values()):
        raise VesaliusError(f"'{path}' holds no labels; expected JSON of the form {{key: class}}")
    for key, name in given.items():
        if name not in classes:
            raise VesaliusError(
                f"'{path}' has the class '{name}'; expected {', '.join(classes)}{nearest(name, classes)}"
            )
        if key not in keys:
            raise VesaliusError(
                f"'{path}' has the key '{key}', which is none of these crops; "
                "expected the labels of the same model, feature, images and seed"
            )
    return torch.tensor([classes.index(given[key]) if key in given else UNLABELLED for key in keys])


def _answers(
    labels: Int[Tensor, " crop"],
    bins: Int[Tensor, " crop"],
    edges: Float[Tensor, " edge"],
    density: Float[Tensor, " bin"],
    *,
    classes: list[str],
    counted: list[str],
    seed: int,
) -> dict:
    """Shares of labels by bin, and of the expected activation by class, with intervals and the control."""
    shares = _shares(labels[None], bins, len(density), len(classes))[0]
    if (labels == UNLABELLED).all():
        return {"shares": shares, "expected": {}, "together": [], "shuffled": 0.0, "covered": 0.0}
    mass = ((edges[1:] + edges[:-1]) / 2).clamp(min=0) * density
    known = shares.isfinite().all(0)
    generator = torch.Generator().manual_seed(seed)
    again, mixed = _resampled(labels, bins, generator), _shuffled(labels, generator)

    def expectation(labels: Int[Tensor, "draw crop"]) -> Float[Tensor, "draw class"]:
        part = _shares(labels, bins, len(density), len(classes)).nan_to_num() * mass
        return part.sum(2) / part.sum((1, 2)).clamp(min=1e-30)[:, None]

    point, boot, null = expectation(labels[None])[0], expectation(again), expectation(mixed)
    ours = [classes.index(name) for name in counted]
    return {
        "shares": shares,
        "expected": {name: [point[row].item(), *_interval(boot[:, row])] for row, name in enumerate(classes)},
        "together": [point[ours].sum().item(), *_interval(boot[:, ours].sum(1))],
        "shuffled": null[:, ours].sum(1).quantile(0.99).item(),
        "covered": (mass[known].sum() / mass.sum().clamp(min=1e-30)).item(),
    }


def _shares(
    labels: Int[Tensor, "draw crop"], bins: Int[Tensor, " crop"], n_bins: int, n_classes: int
) -> Float[Tensor, "draw class bin"]:
    """Of the labelled crops of each bin, the share of each class; NaN where there are none."""
    counts = torch.zeros(len(labels), n_classes * n_bins)
    place = labels.clamp(min=0) * n_bins + bins
    counts.scatter_add_(1, place, (labels != UNLABELLED).float())
    counts = counts.view(len(labels), n_classes, n_bins)
    return counts / counts.sum(1, keepdim=True)


def _resampled(
    labels: Int[Tensor, " crop"], bins: Int[Tensor, " crop"], generator: torch.Generator
) -> Int[Tensor, "draw crop"]:
    """Within each bin, as many labels drawn again with replacement."""
    drawn = torch.full((DRAWS, len(labels)), UNLABELLED)
    for number in bins.unique():
        inside = ((bins == number) & (labels != UNLABELLED)).nonzero()[:, 0]
        if len(inside):
            picked = torch.randint(len(inside), (DRAWS, len(inside)), generator=generator)
            drawn[:, inside] = labels[inside][picked]
    return drawn


def _shuffled(labels: Int[Tensor, " crop"], generator: torch.Generator) -> Int[Tensor, "draw crop"]:
    """The labels exchanged among the crops that have one."""
    inside = (labels != UNLABELLED).nonzero()[:, 0]
    order = torch.rand(DRAWS, len(inside), generator=generator).argsort(1)
    mixed = labels.repeat(DRAWS, 1)
    mixed[:, inside] = labels[inside][order]
    return mixed


def _interval(draws: Float[Tensor, " draw"]) -> tuple[float, float]:
    """The middle 95 in a hundred."""
    low, high = draws.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
