"""Latents that stand for a kind of text, for any kind that a computable proxy can be written of.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features) test a feature's
meaning against a proxy, log P(s | kind) − log P(s) of the string that ends at a token (`text_proxies`):

1. all latents at once: the correlation of each one's activation with each proxy, over half of the contexts. The best
   latent of each kind is then judged on the other half, so that to be the best of many is no merit;
2. sensitivity: its correlation there, with an interval over contexts, and how many tokens of the kind it is active on;
3. specificity: how many of its active tokens are of the kind, when it is barely on and when it is strong, which the
   histogram of its activation shows, coloured by the proxy, and once more weighted by the activation itself.

Controls, chosen and judged in the same two halves: the best neuron, the same dictionary on random twins of the network,
and the best latent for proxies whose tokens are shuffled.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Codes, Dictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.latents.inputs import Batch, Inputs, coded, inputs_of, reads, rows_at
from vesalius.latents.text_proxies import USUAL, kind_name, text_proxies
from vesalius.method import method, progress
from vesalius.metrics import family_wise, percentiles, resampled
from vesalius.model import Model
from vesalius.result import Headline, Result

BANDS = ("no evidence of the kind", "up to 5 nats", "more than 5 nats")
BINS = 8
DRAWN = 3
"""Kinds whose histograms are drawn: those best stood for."""


_Coder = Callable[[Batch], Codes]
"""What is compared with proxies: the codes of the rows of a batch that count."""


@dataclass(frozen=True)
class FeatureProxies(Result):
    """Correlations, -1..1, of activations and proxies; the first axis is that of `kinds`."""

    site: str
    kinds: list
    absent: list
    """Kinds that the text has not."""
    shares: Float[Tensor, " kind"]
    """Share of tokens that are of a kind: what a specificity is by chance."""
    latents: Int[Tensor, " kind"]
    """The best latent of each, on the first half of the contexts."""
    sensitivity: Float[Tensor, " kind"]
    """Its correlation with the proxy on the second half, as all that follows."""
    low: Float[Tensor, " kind"]
    high: Float[Tensor, " kind"]
    neurons: Int[Tensor, " kind"]
    neuron_sensitivity: Float[Tensor, " kind"]
    gain: Float[Tensor, "kind 3"]
    """By how much the latent is above the neuron; value, low, high."""
    shuffled: Float[Tensor, " kind"]
    twins: Float[Tensor, "twin kind"]
    chance: float
    """What the best of as many kinds exceeds once in a hundred random twins."""
    edges: Float[Tensor, "kind edge"]
    counts: Int[Tensor, "kind band bin"]
    """Active tokens by how strongly the latent is active, in each of BANDS."""
    recall: Float[Tensor, " kind"]
    """Share of the kind's tokens on which the latent is active."""
    all: Float[Tensor, "kind latent"]
    """Correlations of all latents on the first half."""
    choices: dict

    @property
    def specificity(self) -> Float[Tensor, "kind 3"]:
        """Share of active tokens that are of the kind: of all, barely on (the lowest bin), strong (the upper half)."""
        of_kind, active = self.counts[:, 1:].sum(1).double(), self.counts.sum(1).double()

        def share(bins: slice) -> Tensor:
            return of_kind[:, bins].sum(1) / active[:, bins].sum(1)

        return torch.stack([share(slice(None)), share(slice(0, 1)), share(slice(BINS // 2, None))], 1).float()

    def headlines(self) -> list[Headline]:
        rows = []
        for number, kind in enumerate(self.kinds):
            everywhere = self.specificity[number, 0].item()
            interval = (self.low[number].item(), self.high[number].item())
            note = (
                f"control: neuron {int(self.neurons[number])}, the best; random twins reach {self.chance:.2f}"
            )
            if not math.isnan(everywhere):
                note += (
                    f"; {everywhere:.0%} of its tokens are of the kind, by chance {self.shares[number]:.0%}"
                )
            rows.append(
                Headline(
                    f"sensitivity of latent {int(self.latents[number])} to {kind}",
                    self.sensitivity[number].item(),
                    self.neuron_sensitivity[number].item(),
                    interval,
                    interval[0] > self.chance and self.gain[number, 1].item() > 0,
                    note,
                )
            )
        return rows or [Headline("kinds that the text holds", 0.0, evidence=False, note="control: none")]

    def figure(self) -> Figure:
        if not self.kinds:
            return figures.table(
                ["kind"], [[kind] for kind in self.absent], title="The text has none of these"
            )
        drawn = [
            figures.bars(
                self.kinds,
                {
                    "best latent": self.sensitivity,
                    "best neuron": self.neuron_sensitivity,
                    "random twins": self.twins.amax(0),
                    "shuffled tokens": self.shuffled,
                },
                intervals={"best latent": list(zip(self.low.tolist(), self.high.tolist()))},
                title="Sensitivity: correlation of activation and proxy",
                y_label="Pearson correlation",
                caption="Chosen on half of the contexts, judged on the other half. Random twins: the best of them.",
            ),
            figures.table(
                ["kind", "of all tokens", "latent", "of its tokens", "barely on", "strong", "found"],
                [
                    [
                        kind,
                        f"{self.shares[n]:.1%}",
                        str(int(self.latents[n])),
                        *(
                            {"text": f"{one:.0%}", "value": one}
                            for one in self.specificity[n].nan_to_num().tolist()
                        ),
                        f"{self.recall[n]:.0%}",
                    ]
                    for n, kind in enumerate(self.kinds)
                ],
                title="Specificity",
                caption="Share of tokens that are of the kind: of all, of those where the latent is active, is in "
                "its lowest and in its upper bins. Found: share of the kind's tokens where it is active.",
            ),
        ]
        for number in self.sensitivity.argsort(descending=True)[:DRAWN].tolist():
            drawn += self._histograms(number)
        return figures.group(drawn, title="Latents and kinds of text")

    def _histograms(self, number: int) -> list[Figure]:
        counts, edges = self.counts[number].double(), self.edges[number]
        if not counts.sum():
            return []
        middles = (edges[1:] + edges[:-1]) / 2
        labels = [f"{low:.2g} to {high:.2g}" for low, high in zip(edges[:-1].tolist(), edges[1:].tolist())]
        name = f"latent {int(self.latents[number])}, {self.kinds[number]}"
        weighed = counts * middles
        return [
            figures.bars(
                labels,
                {band: of[place] / of.sum() for place, band in enumerate(BANDS)},
                title=f"{what}: {name}",
                y_label=y_label,
            )
            for what, of, y_label in (
                ("Activations by proxy", counts, "share of active tokens"),
                ("Weighted by activation", weighed, "share of all activation"),
            )
        ]


@method(needs=("tokens", "tokenizer"))
def feature_proxies(
    model: Model,
    dictionary: Dictionary,
    *,
    kinds: list[str] | None = None,
    text: str | None = None,
    contexts: int = 64,
    length: int = 128,
    twins: int = 3,
    seed: int = 0,
) -> FeatureProxies:
    """Which latents stand for which kinds of text, how surely they fire for them, and for how little else.

    `kinds` are names of `text_proxies` or `NAME=REGULAR EXPRESSION` (None: those that English and Python hold), and
    `text` is what is read (None: the held-out sample). A latent stands for a kind if the whole interval of its
    correlation lies above what one in a hundred random twins exceeds, and it is surely above the best neuron. Raises
    VesaliusError for fewer than four contexts, and for a kind that is not known.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    assert inputs.ids is not None and inputs.counts is not None
    if len(inputs) < 4:
        raise VesaliusError(
            f"{len(inputs)} contexts were given; expected 4 or more, to choose on half of them"
        )
    asked = list(USUAL) if kinds is None else kinds
    proxies = text_proxies(model, inputs.ids, asked)
    present = [number for number in range(len(asked)) if (proxies[number] > 0).any()]
    proxies = torch.cat([proxies[present], _shuffled(proxies[present], inputs.counts, seed=seed)])
    n = len(present)

    def latents_of(reader: Model) -> _Coder:
        return lambda part: coded(
            dictionary, rows_at(reader.value_at(reads(dictionary), part.inputs), part).rows
        )

    def neurons(part: Batch) -> Codes:
        return Codes.of(rows_at(model.value_at(dictionary.site, part.inputs), part).rows.float())

    coders = [latents_of(model), neurons]
    coders += [latents_of(model.random_twin(seed + 1 + number)) for number in range(twins)]
    half = torch.arange(len(inputs)) % 2 == 0
    chosen, correlations, top = [], [], torch.zeros(0)
    for number, coder in enumerate(progress(coders, "choosing")):
        found, maxima = _correlations(model, inputs, half, coder, proxies)
        chosen.append(found.argmax(1))
        if not number:
            correlations, top = found[:n], maxima[chosen[0][:n]]
    sums, counts = [], torch.zeros(n, len(BANDS), BINS, dtype=torch.long)
    edges = torch.linspace(0, 1, BINS + 1) * top[:, None].clamp(min=1e-6)
    recalled = torch.zeros(n)
    for number, (coder, units) in enumerate(zip(progress(coders, "judging"), chosen)):
        judged = []
        for part, values, given in _values(model, inputs, ~half, coder, units, proxies):
            judged.append(_by_context(part, values, given))
            if not number:
                _count(counts, values[:n], given[:n], edges)
                recalled += ((values[:n] > 0) & (given[:n] > 0)).sum(1)
        sums.append(torch.cat(judged))
    table = torch.stack(sums, 1)  # [context, coder, kind, sum]
    value, draws = _pearson(table.mean(0)), _pearson(resampled(table, seed=seed))
    low, high = percentiles(draws[:, 0, :n])
    gain = torch.stack([value[0, :n] - value[1, :n], *percentiles(draws[:, 0, :n] - draws[:, 1, :n])], 1)
    null = value[2:, :n]
    judged_rows = proxies[:n, ~half][:, inputs.counts[~half]]
    of_kind = (judged_rows > 0).float()
    return FeatureProxies(
        site=dictionary.site,
        kinds=[kind_name(asked[number]) for number in present],
        absent=[kind_name(kind) for number, kind in enumerate(asked) if number not in present],
        shares=of_kind.mean(1),
        latents=chosen[0][:n],
        sensitivity=value[0, :n].float(),
        low=low.float(),
        high=high.float(),
        neurons=chosen[1][:n],
        neuron_sensitivity=value[1, :n].float(),
        gain=gain.float(),
        shuffled=value[0, n:].float(),
        twins=null.float(),
        chance=family_wise(null) if n and twins else 0.0,
        edges=edges,
        counts=counts,
        recall=recalled / of_kind.sum(1).clamp(min=1),
        all=torch.as_tensor(correlations).float(),
        choices={
            "data": inputs.described,
            "data_hash": inputs.hash,
            "frequencies": "of the same text",
            "halves": "latents are chosen on even contexts and judged on odd ones",
        },
    )


def _shuffled(
    proxies: Float[Tensor, "kind row pos"], counts: Tensor, *, seed: int
) -> Float[Tensor, "kind row pos"]:
    """The proxies of other tokens, of those that count."""
    order = torch.randperm(int(counts.sum()), generator=torch.Generator().manual_seed(seed))
    mixed = proxies.clone()
    mixed[:, counts] = proxies[:, counts][:, order]
    return mixed


def _parts(inputs: Inputs, half: Tensor, *, batch: int = 16) -> Sequence[Batch]:
    """The contexts of one half, as batches."""
    assert inputs.ids is not None and inputs.counts is not None
    return [
        Batch(numbers, inputs.ids[numbers], inputs.counts[numbers])
        for numbers in half.nonzero()[:, 0].split(batch)
    ]


def _correlations(
    model: Model, inputs: Inputs, half: Tensor, coder: _Coder, proxies: Float[Tensor, "kind row pos"]
) -> tuple[Float[Tensor, "kind latent"], Float[Tensor, " latent"]]:
    """Pearson correlation of all latents with all proxies, and the largest values, from sums over sparse codes."""
    rows, total, squares, products, maxima = 0, 0.0, 0.0, torch.zeros(0), torch.zeros(0)
    given, given_squares = torch.zeros(len(proxies)).double(), torch.zeros(len(proxies)).double()
    for part in _parts(inputs, half):
        codes = coder(part)
        latents, values = codes.latents.cpu(), codes.values.double().cpu()
        proxy = proxies[:, part.examples][:, part.counts].double()
        if not rows:
            total, squares = torch.zeros(2, codes.width).double()
            products, maxima = torch.zeros(len(proxies), codes.width).double(), torch.zeros(codes.width)
        rows += len(codes)
        total = total + latents.bincount(values, minlength=codes.width)
        squares = squares + latents.bincount(values.square(), minlength=codes.width)
        products.index_add_(1, latents, proxy[:, codes.rows.cpu()] * values)
        maxima.scatter_reduce_(0, latents, values.float(), "amax")
        given += proxy.sum(1)
        given_squares += proxy.square().sum(1)
    expanded = [given[:, None], given_squares[:, None]]
    sums = torch.broadcast_tensors(torch.tensor(float(rows)).double(), total, squares, *expanded, products)
    return _pearson(torch.stack(sums, -1)), maxima


def _values(
    model: Model,
    inputs: Inputs,
    half: Tensor,
    coder: _Coder,
    units: Int[Tensor, " kind"],
    proxies: Float[Tensor, "kind row pos"],
) -> Iterator[tuple[Batch, Float[Tensor, "kind token"], Float[Tensor, "kind token"]]]:
    """Batch by batch: the batch, and of each kind the values of its unit and the proxy at the tokens that count."""
    for part in _parts(inputs, half):
        codes = coder(part)
        values = torch.zeros(len(units), len(codes))
        for kind, unit in enumerate(units.tolist()):
            active = codes.latents == unit
            values[kind, codes.rows[active].cpu()] = codes.values[active].float().cpu()
        yield part, values, proxies[:, part.examples][:, part.counts]


def _by_context(
    part: Batch, values: Float[Tensor, "kind token"], given: Float[Tensor, "kind token"]
) -> Float[Tensor, "context kind sum"]:
    """What a correlation is made of, for each context: tokens, f, f², p, p², fp."""
    assert part.counts is not None
    values, given = values.double(), given.double()
    of_token = torch.stack(
        [torch.ones_like(values), values, values.square(), given, given.square(), values * given], -1
    )
    context = part.counts.nonzero()[:, 0]
    sums = torch.zeros(len(part.examples), *of_token.shape[::2]).double()
    return sums.index_add_(0, context, of_token.movedim(1, 0))


def _pearson(sums: Float[Tensor, "*batch sum"]) -> Float[Tensor, "*batch"]:
    """Of sums of 1, f, f², p, p², fp; 0 where either is constant."""
    n, f, ff, p, pp, fp = sums.unbind(-1)
    spread = ((n * ff - f * f).clamp(min=0) * (n * pp - p * p).clamp(min=0)).sqrt()
    return torch.where(spread > 1e-9, (n * fp - f * p) / spread.clamp(min=1e-9), 0.0)


def _count(
    counts: Int[Tensor, "kind band bin"],
    values: Float[Tensor, "kind token"],
    given: Float[Tensor, "kind token"],
    edges: Float[Tensor, "kind edge"],
) -> None:
    """Add active tokens to their bins; values beyond the last edge belong to the last bin."""
    for kind in range(len(values)):
        active = values[kind] > 0
        place = (values[kind, active] / edges[kind, -1] * BINS).long().clamp(max=BINS - 1)
        band = (given[kind, active] > 0).long() + (given[kind, active] > 5)
        found = (band * BINS + place).bincount(minlength=len(BANDS) * BINS)
        counts[kind] += found.view(len(BANDS), BINS)
