"""The dashboard of every latent of a dictionary: when it fires, what that does, and what else fires with it.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features). All latents are
seen in one pass over the sparse codes of a text or of pictures:

1. the top examples and a sample of every one of `intervals` evenly spaced parts of each latent's range, with what it
   did around them; the histogram of its values and the share of tokens at which it fires;
2. logit weights, where the way from the site to the logits is known: the tokens a latent makes likelier and unlikelier;
3. the effect on every shown token of taking the latent away, in the first of those examples;
4. the neurons a latent is made of (the largest entries of its direction), the neurons most correlated with it, and the
   latents of another dictionary most correlated with it;
5. and the other way round: all latents that fire at each token of a few contexts.

Controls: the correlations with neurons of other contexts, and the effect of random directions taken away instead.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary
from vesalius.dictionaries.codes import Codes
from vesalius.dictionaries.sparse import before_patches
from vesalius.errors import VesaliusError
from vesalius.examples import field_of
from vesalius.figures import Figure
from vesalius.latents.ablation import ablation_effects
from vesalius.latents.co_moments import CoMoments
from vesalius.latents.examples import LatentExamples, Picked
from vesalius.latents.inputs import Inputs, activations_of, coded, inputs_of, reads
from vesalius.method import method, progress
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.store.reducers import uniform
from vesalius.weights.logit_weights import logit_weights

SHOWN = 400_000
"""Examples that a page of 30 MB has room for."""
NEAREST = 5
LOGITS, LOGIT_BINS = 10, 40
THUMBNAIL = 112
STRONGEST = 24
"""Latents listed at one token of a context, at most."""


@dataclass(frozen=True)
class FeatureDashboard(Result):
    """Everything a page of dashboards shows; tensors have one row for each of `latents`, in their order."""

    site: str
    latents: Int[Tensor, " latent"]
    rows: int
    """Tokens, or places of maps, that were seen."""
    counts: Int[Tensor, " latent"]
    """At how many of them each fired."""
    means: Float[Tensor, " latent"]
    """Of the values where it fired."""
    maxima: Float[Tensor, " latent"]
    histogram: Int[Tensor, "latent bin"]
    widths: Float[Tensor, " latent"]
    """Of the bins, which begin at 0."""
    examples: dict
    """`Picked`'s parts, and `effects`, nats each token gains (NaN: not measured), and of texts `tokens` (-1: none)."""
    logits: dict | None
    """`tokens` and `values` of the most and the least favoured, `counts` of all in bins from `low` to `high`."""
    neurons: dict
    """`correlated` and `aligned`: `[latent, 5]` units, and their correlations and entries."""
    shuffled: Float[Tensor, " latent"]
    """Correlation with the most correlated neuron of another context."""
    others: dict | None
    """The most correlated latents of the other dictionary and their correlations."""
    effects: Float[Tensor, "direction latent"]
    """Nats that the token after the top example gains from the latent and, below, from a random direction."""
    texts: list
    """Contexts as `tokens`, and what fires in them: `starts`, `latents`, `values`."""
    pictures: dict | None
    """Of image networks: thumbnails, the shape of the maps, and what a place sees."""
    vocabulary: list
    choices: dict

    def headlines(self) -> list[Headline]:
        fired = self.counts > 0
        best = self.neurons["correlations"][fired, 0]
        rows = [
            Headline(
                "latents that fired", f"{int(fired.sum())} of {len(fired)}", note=f"in {self.rows:,} rows"
            )
        ]
        if fired.any():
            chance = self.shuffled[fired].mean().item()
            rows.append(
                Headline(
                    "correlation of a latent with its most correlated neuron, mean",
                    best.mean().item(),
                    chance,
                    bootstrap(best, seed=0),
                    note="1: a latent is a neuron; control: neurons of other contexts",
                )
            )
        gained, random = self.effects[:, self.effects.isfinite().all(0)]
        if len(gained) > 1:
            low, high = bootstrap(gained, seed=0, confidence=0.99)
            chance = bootstrap(random, seed=0, confidence=0.99)[1]
            rows.append(
                Headline(
                    "nats that a latent gives the token after its highest value, mean",
                    gained.mean().item(),
                    random.mean().item(),
                    (low, high),
                    low > max(chance, 0.0),
                    "control: random directions as long, taken away there",
                )
            )
        return rows

    def figure(self) -> Figure:
        numbers = self.latents
        related = {
            "Neurons most correlated": (self.neurons["correlated"], self.neurons["correlations"]),
            "Neurons it is made of": (self.neurons["aligned"], self.neurons["entries"]),
        }
        if self.others is not None:
            related["Latents of the other dictionary"] = (self.others["latents"], self.others["correlations"])
        return figures.dashboard(
            numbers,
            columns={
                "density": self.counts / max(self.rows, 1),
                "max": self.maxima,
                "mean where active": self.means,
                "random order": uniform(1, numbers).float(),
                "best neuron": self.neurons["correlations"][:, 0],
            },
            histogram=(self.histogram, self.widths),
            examples=self.examples,
            intervals=self.choices["intervals"],
            logits=self.logits,
            related=related,
            texts=self.texts,
            vocabulary=self.vocabulary,
            pictures=self.pictures,
            title=f"{len(numbers)} latents of {self.site}",
            caption=f"{self.choices['data']}; {self.rows:,} positions. {self.choices['effects']}",
        )


@method()
@torch.no_grad()
def feature_dashboard(
    model: Model,
    dictionary: Dictionary,
    *,
    latents: list[int] | None = None,
    other: str | Dictionary = "",
    text: str | None = None,
    images: str = "shapes",
    contexts: int = 64,
    n_images: int = 128,
    length: int = 128,
    top: int = 20,
    intervals: int = 11,
    per_interval: int = 5,
    window: int = 4,
    ablated: int = 3,
    texts: int = 4,
    seed: int = 0,
) -> FeatureDashboard:
    """Dashboards of all latents of a dictionary from one pass over a text or over pictures.

    `latents` are those shown (None: all); `other` is another dictionary of the same model, whose latents are
    correlated with these; `text` is what is read (None: the held-out sample). Shown are the `top` examples and
    `per_interval` of each of `intervals`, fewer of very many latents, with `window` tokens or places to each side;
    the first `ablated` of each latent are measured without it. Raises VesaliusError for a latent the dictionary has
    not, and for activations that are not finite.
    """
    inputs = inputs_of(
        model, text=text, images=images, contexts=contexts, n_images=n_images, length=length, seed=seed
    )
    second = model.dictionary(other) if other else None
    stream = _Stream(model, dictionary, second, inputs, latents)
    top, per_interval = _room(len(stream.chosen), top, intervals, per_interval)
    stream.read(
        top=top, intervals=intervals, per_interval=per_interval, window=window, texts=texts, seed=seed
    )
    kept, chosen, picked = stream.examples, stream.chosen, stream.examples.picked()

    width = model.value_at(dictionary.site, next(inputs.batches(model, batch=1)).inputs)
    width = width.shape[1] if width.dim() == 4 else width.shape[-1]
    directions = torch.stack([dictionary[i].written(width) for i in chosen.tolist()]).float().cpu()
    logits = _logits(model, dictionary.site, directions)
    effects, at_top, how = _effects(model, dictionary, inputs, picked, chosen, directions, ablated, seed)
    examples = {**vars(picked), "windows": picked.windows.half(), "effects": effects.half()}
    if inputs.ids is not None:
        examples["tokens"] = _tokens(inputs, picked)
    correlations = stream.neurons.correlations()
    return FeatureDashboard(
        site=dictionary.site,
        latents=chosen,
        rows=kept.seen,
        counts=kept.counts,
        means=(kept.sums / kept.counts.clamp(min=1)).float(),
        maxima=kept.maxima,
        histogram=kept.histogram.counts,
        widths=torch.ldexp(torch.ones(len(chosen)), kept.histogram.exponent),
        examples=examples,
        logits=logits,
        neurons={
            **_largest(correlations, "correlated", "correlations"),
            **_largest(directions, "aligned", "entries", by=directions.abs()),
        },
        shuffled=stream.shuffled.correlations().amax(1),
        others=None if second is None else _largest(stream.others.correlations(), "latents", "correlations"),
        effects=at_top,
        texts=stream.texts,
        pictures=_pictures(model, reads(dictionary), inputs, picked, stream) if inputs.pictures else None,
        vocabulary=[] if inputs.ids is None else model.strings(torch.arange(model.d_vocab)),
        choices={
            "data": inputs.described,
            "top": top,
            "intervals": intervals,
            "per_interval": per_interval,
            "window": window,
            "sampling": "uniform over tokens of an interval, at most one of a context",
            "logits": "none: no known way to them" if logits is None else "direct, the norm's scale left out",
            "effects": how,
        },
    )


class _Stream:
    """One pass over the codes, and all that is kept of it."""

    def __init__(
        self,
        model: Model,
        dictionary: Dictionary,
        second: Dictionary | None,
        inputs: Inputs,
        latents: list[int] | None,
    ) -> None:
        self.model, self.dictionary, self.second, self.inputs = model, dictionary, second, inputs
        first = next(activations_of(model, reads(dictionary), inputs, batch=1))
        count = coded(dictionary, first.rows).width
        wrong = [latent for latent in latents or () if not 0 <= latent < count]
        if wrong:
            raise VesaliusError(f"latent {wrong[0]} was asked for; {dictionary} has 0 to {count - 1}")
        self.chosen = torch.arange(count) if not latents else torch.tensor(latents)
        self.place = torch.full((count,), -1)
        self.place[self.chosen] = torch.arange(len(self.chosen))
        self.units = first.rows.shape[1]
        shape = model.map_shape(reads(dictionary)) if inputs.pictures else ()
        places = shape[-1] * (shape[-2] if len(shape) == 3 else 1) if shape else 0
        self.columns = None if not shape else shape[2] if len(shape) == 3 else int(places**0.5)
        self.before = 0 if len(shape) != 2 else before_patches(places)
        """Tokens before those of a picture, such as CLS, which have no place in it."""

    def read(
        self, *, top: int, intervals: int, per_interval: int, window: int, texts: int, seed: int
    ) -> None:
        size = len(self.chosen)
        self.examples = LatentExamples(
            size, top=top, intervals=intervals, per_interval=per_interval, window=window,
            columns=self.columns, seed=seed,
        )  # fmt: skip
        self.neurons, self.shuffled = CoMoments(size, self.units), CoMoments(size, self.units)
        self.texts, self.others = [], CoMoments(size, 0)
        theirs = None if self.second is None else activations_of(self.model, reads(self.second), self.inputs)
        stream = activations_of(self.model, reads(self.dictionary), self.inputs)
        for examples, positions, rows in progress(stream, "contexts"):
            rows = rows.float().cpu()
            codes = _of(coded(self.dictionary, rows), self.place, size)
            self.examples.add(examples, positions - self.before, codes)
            self.neurons.add(codes, rows)
            self.shuffled.add(codes, rows.roll(len(rows) // 2, 0))
            if theirs is not None and self.second is not None:
                others = coded(self.second, next(theirs).rows).dense()
                if not self.others.products.shape[1]:
                    self.others = CoMoments(size, others.shape[1])
                self.others.add(codes, others)
            if self.inputs.ids is not None:
                for number in examples.unique().tolist()[: texts - len(self.texts)]:
                    here = examples == number
                    self.texts.append(_text(self.inputs, number, positions[here], codes_at(codes, here)))


def codes_at(codes: Codes, rows: Tensor) -> Codes:
    """Some rows of codes, by a mask."""
    active = rows[codes.rows]
    counts = codes.counts[rows]
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Codes(starts, codes.latents[active], codes.values[active], codes.width)


def _of(codes: Codes, place: Int[Tensor, " latent"], size: int) -> Codes:
    """Codes of the latents that are looked at, numbered in their order; what is negative does not fire."""
    kept = (place[codes.latents] >= 0) & (codes.values > 0)
    counts = codes.rows[kept].bincount(minlength=len(codes))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Codes(starts, place[codes.latents[kept]], codes.values[kept].float(), size)


def _room(latents: int, top: int, intervals: int, per_interval: int) -> tuple[int, int]:
    """How many examples of each latent are shown, so that the page stays below 30 MB."""
    each = SHOWN // latents
    top = max(1, min(top, each // 2))
    return top, max(1, min(per_interval, (each - top) // intervals))


def _text(inputs: Inputs, number: int, positions: Tensor, codes: Codes) -> dict[str, Tensor]:
    """What fires at each token of one context, strongest first; nothing at tokens that do not count."""
    assert inputs.ids is not None
    order = codes.values.argsort(descending=True, stable=True)
    order = order[codes.rows[order].argsort(stable=True)]
    rank = torch.arange(len(order)) - codes.starts[:-1][codes.rows[order]]
    order = order[rank < STRONGEST]
    ids = inputs.ids[number]
    counts = torch.zeros(len(ids), dtype=torch.long)
    counts[positions] = codes.rows[order].bincount(minlength=len(codes))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return {"tokens": ids, "starts": starts, "latents": codes.latents[order], "values": codes.values[order]}


def _logits(model: Model, site: str, directions: Float[Tensor, "latent width"]) -> dict | None:
    if "tokens" not in model.kinds:
        return None
    parts: dict[str, list[Tensor]] = {name: [] for name in ("tokens", "values", "counts", "low", "high")}
    count = min(LOGITS, model.d_vocab // 2)
    for some in directions.split(max(1, 2**24 // model.d_vocab)):
        try:
            weights = logit_weights(model, site, some.to(model.device)).cpu()
        except VesaliusError:  # it says so of a site whose way to the logits is not known
            return None
        most, least = weights.topk(count), weights.topk(count, largest=False)
        parts["tokens"].append(torch.cat([most.indices, least.indices], 1))
        parts["values"].append(torch.cat([most.values, least.values], 1))
        low, high = weights.amin(1), weights.amax(1)
        share = (weights - low[:, None]) / (high - low).clamp(min=1e-30)[:, None]
        bins = (share * LOGIT_BINS).long().clamp(max=LOGIT_BINS - 1)
        counts = torch.zeros(len(some), LOGIT_BINS, dtype=torch.long)
        parts["counts"].append(counts.scatter_add(1, bins, torch.ones_like(bins)))
        parts["low"].append(low)
        parts["high"].append(high)
    return {name: torch.cat(part) for name, part in parts.items()}


def _effects(
    model: Model,
    dictionary: Dictionary,
    inputs: Inputs,
    picked: Picked,
    chosen: Int[Tensor, " latent"],
    directions: Float[Tensor, "latent width"],
    ablated: int,
    seed: int,
) -> tuple[Float[Tensor, "example offset"], Float[Tensor, "direction latent"], str]:
    """Of the first examples of each latent; then of the token after the very first one, and the same at random."""
    effects = torch.full(picked.windows.shape, torch.nan)
    at_top = torch.full((2, len(chosen)), torch.nan)
    offset = picked.windows.shape[1] // 2 + 1
    if inputs.ids is None or not ablated or offset == picked.windows.shape[1]:
        return effects, at_top, ""
    index = torch.repeat_interleave(picked.starts.diff())
    rank = torch.arange(len(index)) - picked.starts[index]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(directions.shape, generator=generator)
    noise *= directions.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)

    def of(which: Tensor, along: Tensor) -> Float[Tensor, "entry offset"]:
        return ablation_effects(
            model, dictionary, inputs, latents=chosen[index[which]], examples=picked.examples[which],
            positions=picked.positions[which], windows=picked.windows[which], directions=along[index[which]],
        )  # fmt: skip

    shown, first = (rank < ablated).nonzero()[:, 0], (rank == 0).nonzero()[:, 0]
    effects[shown] = of(shown, directions)
    at_top[0, index[first]] = effects[first, offset]
    at_top[1, index[first]] = of(first, noise)[:, offset]
    told = f"Underlined: what each token gains from the latent, in the first {ablated} examples."
    return effects, at_top, told


def _tokens(inputs: Inputs, picked: Picked) -> Int[Tensor, "example offset"]:
    assert inputs.ids is not None
    reach = torch.arange(picked.windows.shape[1]) - picked.windows.shape[1] // 2
    places = picked.positions[:, None] + reach
    there = (places >= 0) & (places < inputs.ids.shape[1])
    ids = inputs.ids[picked.examples[:, None], places.clamp(0, inputs.ids.shape[1] - 1)]
    return torch.where(there, ids, -1).int()


def _largest(table: Tensor, names: str, values: str, *, by: Tensor | None = None) -> dict[str, Tensor]:
    order = (table if by is None else by).topk(min(NEAREST, table.shape[1])).indices
    return {names: order, values: table.gather(1, order)}


def _pictures(model: Model, site: str, inputs: Inputs, picked: Picked, stream: _Stream) -> dict[str, Tensor]:
    """The pictures that examples are of, small, and which of them each is of; in shares of a picture's side."""
    assert inputs.pictures is not None and stream.columns is not None
    used, which = picked.examples.unique(return_inverse=True)
    thumbnails = [_thumbnail(inputs.pictures.fitted(number, model.pictures)) for number in used.tolist()]
    field = field_of(model, site) if not stream.before else None
    height = model.pictures.size[0]
    cell = 1 / stream.columns
    shape = (
        (1.0, cell, cell / 2)
        if field is None
        else (field.size / height, field.stride / height, field.offset / height)
    )
    return {
        "thumbnails": torch.stack(thumbnails),
        "of": which,
        "columns": torch.tensor(stream.columns),
        "field": torch.tensor(shape),
    }


def _thumbnail(picture: Float[Tensor, "channel height width"]) -> UInt8[Tensor, "channel height width"]:
    size = [min(side, THUMBNAIL) for side in picture.shape[1:]]
    small = torch.nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    return (small.clamp(0, 1) * 255).round().to(torch.uint8)
