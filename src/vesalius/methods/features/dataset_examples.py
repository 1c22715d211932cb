"""Dataset examples: what a feature fires for in pictures that nobody made for it, over its whole range.

The second argument of Cammarata et al. 2020 (Curve Detectors, distill.pub/2020/circuits/curve-detectors). The values
are those before the nonlinearity, so that what a unit is inhibited by is seen as well:

1. the pictures in which the feature is highest and lowest, each cropped to what the position saw;
2. the spectrum: bins of equal width over all values, and from each a random sample, since the top alone shows what
   a unit fires most for and not what it fires for;
3. the density of all values on a logarithmic scale beside a Gaussian, and the exponential scale of both tails;
4. what untrained twins of the network do with the same pictures: how far the top of each of their units stands out,
   and the top examples of the unit of the same number.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.data.images import Images, open_images
from vesalius.dictionaries import Feature
from vesalius.examples import activations, before_nonlinearity, by_unit, crops, field_of, of_feature, places
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.store.reducers import Histogram, Moments, Quantiles, Reservoir, Spectrum, TopExamples

NULLS = 100
"""Units of untrained twins that the first headline is compared with, at least."""


@dataclass(frozen=True)
class DatasetExamples(Result):
    """Examples of one feature; values are in the units of the activation before its nonlinearity."""

    feature: str
    site: str
    """Where the values were read."""
    rows: list
    """From the top to the bottom, `{"label", "pictures", "values", "names", "positions", "outside"}`."""
    edges: Float[Tensor, " edge"]
    counts: Int[Tensor, " bin"]
    """How many of all positions of all pictures are in each bin."""
    mean: float
    sd: float
    firing: float
    """Share of positions above 0."""
    tails: dict
    """`upper` and `lower`: `{"scale", "straight", "gaussian"}`, see `_tail`; None where it holds too few bins."""
    peak: float
    """Mean of the top values, in standard deviations above the mean."""
    peak_low: float
    peak_high: float
    null_peaks: Float[Tensor, " unit"]
    """The same of every unit of untrained twins."""
    chance: float
    """What one in a hundred units of untrained twins exceeds."""
    skipped: dict
    """Pictures that could not be read, and why."""
    choices: dict

    def headlines(self) -> list[Headline]:
        upper = self.tails["upper"]
        rows = [
            Headline(
                f"mean of the {len(self.rows[0]['values'])} highest pictures, in sd above the mean",
                self.peak,
                self.chance,
                (self.peak_low, self.peak_high),
                self.peak_low > self.chance,
                "control: one in a hundred units of untrained twins exceeds it",
            ),
            Headline(
                "share of positions above 0", self.firing, note=f"mean {self.mean:.3g}, sd {self.sd:.3g}"
            ),
        ]
        if upper is not None:
            rows.append(
                Headline(
                    "R² of an exponential upper tail",
                    upper["straight"],
                    upper["gaussian"],
                    note=f"control: a Gaussian tail; scale {upper['scale']:.3g}",
                )
            )
        return rows

    def figure(self) -> Figure:
        quilt = figures.gallery(
            [
                {"label": row["label"], "pictures": row["pictures"], "texts": _captions(row)}
                for row in self.rows
            ],
            title="Examples from the highest to the lowest",
            caption="Bins of equal width, a random sample of each. "
            "Grey is outside the picture. Under each: the value.",
        )
        density = figures.lines(
            (self.edges[1:] + self.edges[:-1]) / 2,
            {"values": self._log_density(), f"Gaussian, sd {self.sd:.3g}": self._log_gaussian()},
            title="Density of all values",
            x_label=f"value at {self.site}",
            y_label="log10 density",
            marks=[(0.0, "0"), (self.mean, "mean")],
            caption=f"{int(self.counts.sum()):,} positions; above 0: {self.firing:.1%}.",
        )
        standing = figures.histogram(
            {"units of untrained twins": self.null_peaks},
            title="How far the top stands out",
            x_label="mean of the highest pictures, sd above the mean",
            references=[("x", self.peak, self.feature), ("x", self.chance, "1 in 100")],
        )
        return figures.group([quilt, density, standing], title=f"Dataset examples of {self.feature}")

    def _log_density(self) -> Float[Tensor, " bin"]:
        density = self.counts / self.counts.sum() / self.edges.diff()
        return torch.where(self.counts > 0, density, torch.nan).log10()

    def _log_gaussian(self) -> Float[Tensor, " bin"]:
        """Down to the lowest density that was seen."""
        if self.sd == 0:
            return torch.full((len(self.counts),), torch.nan)
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        z = (centres - self.mean) / self.sd
        line = (-z.square() / 2 - math.log(self.sd * math.sqrt(2 * math.pi))) / math.log(10)
        lowest = self._log_density().nan_to_num(nan=torch.inf).min()
        return torch.where(line >= lowest - 0.5, line, torch.nan)


@method(needs=("images",))
def dataset_examples(
    model: Model,
    feature: Feature,
    *,
    images: str | Path | Images = "shapes",
    n_images: int = 256,
    top: int = 8,
    bins: int = 16,
    per_bin: int = 8,
    positions: Literal["all", "inside"] = "all",
    seed: int = 0,
) -> DatasetExamples:
    """What a feature fires for, from its highest to its lowest value, in a set of pictures.

    `top` pictures are shown from either end, and `per_bin` from each of at most `bins` bins. The feature stands out
    if its top does so more than that of 99 in 100 units of untrained twins, in the whole of a bootstrap interval
    over pictures. `positions` says whether those are left out that see the padding beyond the picture's border, which
    may be what a unit answers to. Raises VesaliusError for an empty set of pictures and for activations that are not
    finite.
    """
    pictures = open_images(images).take(n_images, seed=seed)
    name, feature = str(feature), before_nonlinearity(model, feature)
    reading = _Reading(model, pictures, feature.site, positions)
    moments, histogram = Moments(1), Histogram(1, bins=64)
    highest, lowest = TopExamples(1, top), TopExamples(1, top, sign=-1)
    spectrum = Spectrum(1, bins=bins, size=per_bin, draws=None, seed=seed)
    anywhere = Quantiles(1, size=per_bin, seed=seed)
    peaks = []
    units = model.map_shape(feature.site)[0]
    twins = [model.random_twin(seed + 1 + number) for number in range(math.ceil(NULLS / units))]
    untrained = [(Moments(units), TopExamples(units, top)) for _ in twins]
    for numbers, acts in progress(activations([model, *twins], feature.site, pictures), "pictures"):
        values = of_feature(feature, acts[0])[..., reading.places]
        for reducer in (moments, histogram, highest, lowest, spectrum, anywhere):
            reducer.add(values, numbers)
        peaks.append(values.amax((1, 2)).float().cpu())
        for reducers, theirs in zip(untrained, acts[1:]):
            for reducer in reducers:
                reducer.add(by_unit(theirs)[..., reading.places], numbers)
    mean, sd = moments.mean.item(), moments.sd.item()
    peak, low, high = _peak(torch.cat(peaks), mean, sd, top=top, seed=seed)
    null = torch.cat([_peaks(*reducers, n_pictures=len(pictures)) for reducers in untrained])

    anywhere.reservoir.flush()
    edges, used = spectrum.histogram.edges[0], spectrum.histogram.counts[0] > 0
    rows = [reading.row("highest", highest, 0)]
    for number in reversed(range(len(used))):
        if used[number]:
            label = f"{edges[number]:.4g} to {edges[number + 1]:.4g}"
            rows.append(reading.kept(label, spectrum.bins(0)[number]))
    rows.append(reading.row("lowest", lowest, 0))
    rows.append(reading.row("at random", anywhere.reservoir, 0))
    if feature.index is not None and feature.read is None:
        rows.append(reading.row("highest, untrained twin", untrained[0][1], feature.index))

    filled = (histogram.counts[0] > 0).nonzero()[:, 0]
    first, last = int(filled[0]), int(filled[-1]) + 1
    counts, edges = histogram.counts[0, first:last], histogram.edges[0, first : last + 1].float()
    return DatasetExamples(
        feature=name,
        site=feature.site,
        rows=rows,
        edges=edges,
        counts=counts,
        mean=mean,
        sd=sd,
        firing=(counts[edges[:-1] >= 0].sum() / counts.sum()).item(),
        tails={"upper": _tail(edges, counts, mean), "lower": _tail(-edges.flip(0), counts.flip(0), -mean)},
        peak=peak,
        peak_low=low,
        peak_high=high,
        null_peaks=null,
        chance=null.quantile(0.99).item(),
        skipped=pictures.skipped,
        choices={
            "pictures": len(pictures),
            "data": pictures.hash,
            "field": "whole picture" if reading.field is None else f"{reading.field.size} px",
            "positions": positions,
            "sampling": "uniform over positions, at most one of a picture in a bin",
        },
    )


def _peak(
    peaks: Float[Tensor, " picture"], mean: float, sd: float, *, top: int, seed: int
) -> tuple[float, float, float]:
    """Mean of the `top` largest in standard deviations, and its interval over pictures drawn again; 0 of a constant."""
    if sd == 0:
        return 0.0, 0.0, 0.0
    top = min(top, len(peaks))
    generator = torch.Generator().manual_seed(seed)
    drawn = peaks[torch.randint(len(peaks), (400, len(peaks)), generator=generator)]
    again = ((drawn.topk(top).values.mean(1) - mean) / sd).sort().values
    return ((peaks.topk(top).values.mean().item() - mean) / sd), again[10].item(), again[389].item()


def _peaks(moments: Moments, highest: TopExamples, *, n_pictures: int) -> Float[Tensor, " unit"]:
    """The mean of the top values of each unit, in standard deviations above its mean; 0 of a constant."""
    values = highest.values[:, :n_pictures].double().mean(1)
    return torch.where(moments.sd > 0, (values - moments.mean) / moments.sd, 0).float()


def _tail(edges: Tensor, counts: Tensor, mean: float) -> dict | None:
    """A straight line through the log density of the highest tenth of values: an exponential of this `scale`.

    `straight` is the R² of that line, `gaussian` that of one in the squared distance from the mean. Bins of fewer
    than five values are left out, and None is said where fewer than four bins remain.
    """
    above = counts.flip(0).cumsum(0).flip(0) / counts.sum()
    centres = (edges[1:] + edges[:-1]) / 2
    kept = (above <= 0.1) & (counts >= 5)
    if kept.sum() < 4:
        return None
    x, y = centres[kept].double(), counts[kept].double().log()
    straight, slope = _line(x, y)
    gaussian, _ = _line((x - mean).square(), y)
    return {"scale": -1 / slope if slope < 0 else math.inf, "straight": straight, "gaussian": gaussian}


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """R² and slope of the least-squares line."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    rest = (y - slope * x).square().sum() / y.square().sum().clamp(min=1e-30)
    return 1 - rest.item(), slope.item()


class _Reading:
    """The places that are looked at, and examples read again, to be shown."""

    def __init__(
        self, model: Model, pictures: Images, site: str, positions: Literal["all", "inside"]
    ) -> None:
        self.model, self.pictures, self.site = model, pictures, site
        self.field = field_of(model, site)
        self.places = places(model, site, self.field, positions)

    def row(self, label: str, kept: TopExamples | Reservoir, unit: int) -> dict:
        """The examples of one unit."""
        seen = kept.examples[unit] >= 0
        parts = {"values": kept.values, "examples": kept.examples, "positions": kept.positions}
        return self.kept(label, {name: part[unit][seen] for name, part in parts.items()})

    def kept(self, label: str, picked: dict[str, Tensor]) -> dict:
        examples, positions = picked["examples"].tolist(), self.places[picked["positions"]]
        shown, outside = crops(
            self.model,
            self.pictures,
            site=self.site,
            field=self.field,
            examples=examples,
            positions=positions.tolist(),
        )
        names = [self.pictures.names[example] for example in examples]
        return {
            "label": label, "pictures": shown, "values": picked["values"], "names": names,
            "positions": positions, "outside": outside,
        }  # fmt: skip


def _captions(row: dict) -> list[str]:
    """Each value, and how much of the crop is outside the picture if that is a tenth or more."""
    return [
        f"{value:.3g}" + (f", {share:.0%} outside" if share >= 0.1 else "")
        for value, share in zip(row["values"].tolist(), row["outside"].tolist())
    ]
