"""Whether two dictionaries find the same features: each latent's best partner in a dictionary trained apart.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features) compare a dictionary
of one network with that of another trained from another seed, or two dictionaries of one network, on the same text:

1. the partner of a latent is the one whose values correlate most with its own, over all tokens;
2. the baseline is the same for neurons, each with its best partner among the other network's neurons;
3. partners are then compared by what they do: their logit weights, and their attributions f(t)·v of the token that
   does come next, which weigh the logits by whether the latent was there to move them.

Controls: a random dictionary in the place of the other, as large and as sparse; between two networks, random-init
twins of both seen through the same dictionaries, since any two features of the present token go together (in one
network they would say nothing: one direction is the same to two dictionaries of any network); the other's values at
other contexts; for logits and attributions, exchanged partners.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary
from vesalius.dictionaries.codes import Codes
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.figures import Figure
from vesalius.latents.co_moments import CoMoments
from vesalius.latents.inputs import Inputs, activations_of, firing, inputs_of, random_dictionary, reads
from vesalius.method import method, progress
from vesalius.metrics import family_wise, percentiles, wilson
from vesalius.model import Model, load
from vesalius.result import Headline, Result
from vesalius.weights.logit_weights import logit_weights

JUDGED = 512
"""Pairs whose logits and attributions are compared, at most."""
CHANCE = 0.01
"""The share of latents that has a partner in a random dictionary, by what a partner is."""


@dataclass(frozen=True)
class FeatureUniversality(Result):
    """Correlations from −1 to 1; tensors have one row for each of `latents`, those that fired often enough."""

    site: str
    other: str
    latents: Int[Tensor, " latent"]
    partners: Int[Tensor, " latent"]
    correlations: Float[Tensor, " latent"]
    shifted: Float[Tensor, " latent"]
    """With the best partner at other contexts."""
    random: Float[Tensor, " latent"]
    """With the best partner in a random dictionary, as large and as sparse."""
    twins: Float[Tensor, " twin"]
    """The median of the best correlations on random-init twins of two networks; none, of one network."""
    neurons: Float[Tensor, " neuron"] | None
    """Of each neuron with its best partner; None if there is one network only, where each is its own."""
    judged: Int[Tensor, " pair"]
    """Which of the rows are compared by what they do."""
    logits: Float[Tensor, "exchanged pair"] | None
    """Correlations of partners' logit weights and, below, of exchanged partners'."""
    attributions: Float[Tensor, "exchanged pair"] | None
    choices: dict

    def headlines(self) -> list[Headline]:
        if not len(self.latents):
            note = "control: none is needed"
            return [Headline("latents that fired often enough to be compared", 0, evidence=False, note=note)]
        random = self.random.median().item()
        low, high = _median_interval(self.correlations, seed=0)
        floor, note = _median_interval(self.random, seed=0)[1], "control: a random dictionary"
        if len(self.twins):
            floor, note = (
                max(floor, family_wise(self.twins)),
                f"{note}; {self.twins.max():.2f} on random twins",
            )
        floor = floor if self.neurons is None else max(floor, self.neurons.median().item())
        chance = self.random.quantile(1 - CHANCE).item()
        partnered = int((self.correlations > chance).sum())
        rows = [
            Headline(
                f"correlation of a latent with its best partner in {self.other}, median",
                self.correlations.median().item(),
                random,
                (low, high),
                low > floor,
                f"{len(self.latents)} latents; {note}",
            ),
            Headline(
                "share of latents with a partner",
                partnered / len(self.latents),
                CHANCE,
                wilson(partnered, len(self.latents), confidence=0.99),
                note=f"correlated above {chance:.2f}; control: in a random dictionary",
            ),
        ]
        if self.neurons is not None:
            interval = _median_interval(self.neurons, seed=0)
            rows.append(
                Headline("the same for neurons, median", self.neurons.median().item(), None, interval)
            )
        for name, pair in (("logit weights", self.logits), ("attributions", self.attributions)):
            if pair is not None:
                interval = _median_interval(pair[0], seed=0)
                control = pair[1].median().item()
                note = "control: exchanged partners"
                rows.append(
                    Headline(
                        f"correlation of partners' {name}, median",
                        pair[0].median().item(),
                        control,
                        interval,
                        None,
                        note,
                    )
                )
        return rows

    def figure(self) -> Figure:
        groups = {
            "latents": self.correlations,
            "random dictionary": self.random,
            "other contexts": self.shifted,
        }
        if self.neurons is not None:
            groups["neurons"] = self.neurons
        if not len(self.latents):
            return figures.table(["latents"], [[0]], title="No latent fired often enough to be compared")
        drawn = [
            figures.histogram(
                groups,
                title="The best partner",
                x_label="correlation of values",
                references=[("x", self.twins.max().item(), "random-init twins")] if len(self.twins) else [],
                caption=self.choices["data"],
            )
        ]
        compared = [("logit weights", self.logits), ("attributions", self.attributions)]
        drawn += [
            figures.scatter(
                self.correlations[self.judged],
                pair[0],
                title=f"Partners by their {name}",
                x_label="correlation of values",
                y_label=f"correlation of {name}",
                labels=[
                    f"{a} – {b}"
                    for a, b in zip(*(part[self.judged].tolist() for part in (self.latents, self.partners)))
                ],
            )
            for name, pair in compared
            if pair is not None and pair[0].isfinite().any()
        ]
        return figures.group(drawn, title=f"Latents of {self.site} and of {self.other}")


@method()
@torch.no_grad()
def feature_universality(
    model: Model,
    dictionary: Dictionary,
    *,
    other: str | Path | Dictionary = "",
    other_model: str | Model = "",
    text: str | None = None,
    images: str = "shapes",
    contexts: int = 64,
    n_images: int = 128,
    length: int = 128,
    least: int = 10,
    twins: int = 2,
    seed: int = 0,
) -> FeatureUniversality:
    """The best partner of each latent in another dictionary, by what it fires for and by what it does.

    `other` is the second dictionary, `other_model` the network it is of if that is another, which must read the same
    tokens; `text` is what both read (None: the held-out sample). Latents that fire in fewer than `least` rows are
    left out. Universality is evident if the median correlation is above that with a random dictionary and, between two
    networks, those on random-init twins and of neurons. Raises VesaliusError if the two see different numbers of rows.
    """
    if not other:
        raise Inapplicable("it compares two dictionaries; name the other one")
    second = load(other_model) if isinstance(other_model, str) and other_model else other_model or model
    assert isinstance(second, Model)
    theirs = second.dictionary(other)
    inputs = inputs_of(
        model, text=text, images=images, contexts=contexts, n_images=n_images, length=length, seed=seed
    )
    pairs, shifted, neurons = _compared((model, dictionary), (second, theirs), inputs)
    table = pairs.correlations()
    latents = (pairs.counts >= least).nonzero()[:, 0]
    best = table[latents].max(1) if len(latents) else None
    partners = latents if best is None else best.indices

    sample = next(activations_of(second, reads(theirs), inputs)).rows.float().cpu()
    drawn = random_dictionary(theirs, sample, seed=seed + 7919)
    random = _compared((model, dictionary), (second, drawn), inputs)[0].correlations()

    nulls = [table.new_zeros(0)]
    for number in progress(range(twins if second is not model else 0), "random-init twins"):
        ours, others = model.random_twin(seed + 1 + number), second.random_twin(seed + 1001 + number)
        null, _, _ = _compared((ours, dictionary), (others, theirs), inputs)
        fires = null.counts >= least
        nulls.append(null.correlations()[fires].amax(1).median()[None] if fires.any() else torch.zeros(1))
    judged = torch.arange(len(latents))[:: max(1, -(-len(latents) // JUDGED))]
    does = _done((model, dictionary), (second, theirs), inputs, latents[judged], partners[judged], seed)
    return FeatureUniversality(
        site=dictionary.site,
        other=f"another dictionary of {theirs.site}" + (f" of {second.name}" if second is not model else ""),
        latents=latents,
        partners=partners,
        correlations=table.new_zeros(0) if best is None else best.values,
        shifted=shifted.correlations()[latents].amax(1),
        random=random[latents].amax(1),
        twins=torch.cat(nulls),
        neurons=neurons.correlations()[neurons.counts >= least].amax(1) if second is not model else None,
        judged=judged,
        logits=does[0],
        attributions=does[1],
        choices={
            "data": inputs.described,
            "least": least,
            "correlation": "Pearson over all positions that count",
        },
    )


Side = tuple[Model, Dictionary]


def _compared(ours: Side, theirs: Side, inputs: Inputs) -> tuple[CoMoments, CoMoments, CoMoments]:
    """Latents with latents, the same at other contexts, and what ours reads with what theirs reads."""
    sums: list[CoMoments] = []
    for (_, _, rows), (_, _, others) in _together(ours, theirs, inputs):
        codes, dense = firing(ours[1], rows), firing(theirs[1], others).dense()
        if not sums:
            sizes = (
                (codes.width, dense.shape[1]),
                (codes.width, dense.shape[1]),
                (rows.shape[1], others.shape[1]),
            )
            sums = [CoMoments(*size) for size in sizes]
        sums[0].add(codes, dense)
        sums[1].add(codes, dense.roll(len(dense) // 2, 0))
        if ours[0] is not theirs[0]:
            sums[2].add(Codes.of(rows), others)
    return sums[0], sums[1], sums[2]


def _together(ours: Side, theirs: Side, inputs: Inputs):
    """What both read, batch by batch; once, if it is the same."""
    streams = [activations_of(model, reads(dictionary), inputs) for model, dictionary in (ours, theirs)]
    for first, second in zip(*streams, strict=True):
        if len(first.rows) != len(second.rows):
            raise VesaliusError(
                f"'{reads(ours[1])}' has {len(first.rows)} rows where '{reads(theirs[1])}' has {len(second.rows)}; "
                "expected two sites with the same positions"
            )
        yield (first._replace(rows=first.rows.float().cpu()), second._replace(rows=second.rows.float().cpu()))


def _done(
    ours: Side,
    theirs: Side,
    inputs: Inputs,
    latents: Int[Tensor, " pair"],
    partners: Int[Tensor, " pair"],
    seed: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Correlations of logit weights and of attributions, of partners and of exchanged partners; None without a way."""
    if inputs.ids is None or len(latents) < 2 or "tokens" not in ours[0].kinds:
        return None, None
    exchanged = partners[torch.randperm(len(partners), generator=torch.Generator().manual_seed(seed))]
    try:
        mine = _weights(ours, latents)
        both = [_weights(theirs, picked) for picked in (partners, exchanged)]
    except VesaliusError:  # it says so of a site whose way to the logits is not known
        return None, None
    if mine.shape[1] != both[0].shape[1]:
        return None, None
    logits = torch.stack([_correlation(mine, weights) for weights in both])
    sums = torch.zeros(2, 5, len(latents), dtype=torch.float64)
    count = 0
    for first, second in _together(ours, theirs, inputs):
        last = first.positions == inputs.ids.shape[1] - 1
        following = inputs.ids[first.examples[~last], first.positions[~last] + 1]
        codes = firing(ours[1], first.rows[~last]).dense()
        others = firing(theirs[1], second.rows[~last]).dense()
        count += len(codes)
        a = (codes[:, latents] * mine[:, following].T).double()
        for number, (picked, weights) in enumerate(zip((partners, exchanged), both)):
            b = (others[:, picked] * weights[:, following].T).double()
            sums[number] += torch.stack([part.sum(0) for part in (a, b, a * a, b * b, a * b)])
    mean_a, mean_b, square_a, square_b, product = (sums / count).unbind(1)
    spread = ((square_a - mean_a**2) * (square_b - mean_b**2)).clamp(min=0).sqrt()
    attributions = torch.where(spread > 0, (product - mean_a * mean_b) / spread, 0).clamp(-1, 1)
    return logits, attributions.float()


def _weights(side: Side, latents: Int[Tensor, " pair"]) -> Float[Tensor, "pair d_vocab"]:
    model, dictionary = side
    directions = [dictionary[i].write for i in latents.tolist()]
    known = [direction for direction in directions if direction is not None]
    if len(known) < len(directions):
        raise VesaliusError(f"{dictionary} does not say what its latents write")
    return logit_weights(model, dictionary.site, torch.stack(known).to(model.device)).float().cpu()


def _correlation(
    first: Float[Tensor, "pair token"], second: Float[Tensor, "pair token"]
) -> Float[Tensor, " pair"]:
    first, second = (part - part.mean(1, keepdim=True) for part in (first, second))
    return torch.nn.functional.cosine_similarity(first, second, dim=1)


def _median_interval(values: Float[Tensor, " sample"], *, seed: int, draws: int = 400) -> tuple[float, float]:
    """Of the median when the samples are drawn again."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(values), (draws, len(values)), generator=generator)
    low, high = percentiles(values[picked].median(1).values, confidence=0.99)
    return low.item(), high.item()
