"""How well a dictionary stands in for the activations it was trained on, beside what needs no training.

The table that Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features) keep
of each dictionary:

1. the activations are replaced by their reconstruction, and the network goes on from there. Of what an ablation costs,
   to zero or to the mean, how much is recovered: 1 − (loss spliced − loss) / (loss ablated − loss). A classifier of
   pictures has no next token, so its cost is the divergence of its output from what it was;
2. the same of three stand-ins with as many active numbers: the neurons farthest from their mean, the first principal
   components, and random directions, as many as there are latents, scaled to fit;
3. how often each latent is active, and how many never are: in a sample of n rows nothing below 1/n can be seen;
4. how encoder and decoder directions, norms and biases lie, since latents that almost never fire are a cluster of
   their own there.

Only tokens that count are replaced, and only their losses are taken: BOS stays as it is. Intervals are over contexts
drawn again; a dictionary is better than a stand-in if the interval of their difference is above 0.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.data.images import Images
from vesalius.dictionaries import Dictionary, SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.latents.inputs import inputs_of, reads
from vesalius.latents.reconstructions import (
    BASELINES,
    QUANTITIES,
    measured,
    predicts,
    replacements_of,
    survey_of,
)
from vesalius.method import method, progress
from vesalius.metrics import percentiles, resampled
from vesalius.model import Model
from vesalius.result import Headline, Result

LABELS = {
    "neurons": "as many neurons",
    "components": "as many principal components",
    "random": "random directions",
    "mean": "mean ablation",
    "zero": "zero ablation",
}
SHARES = {
    "explained": "variance explained",
    "recovered_zero": "recovered of what zero ablation costs",
    "recovered_mean": "recovered of what mean ablation costs",
}
ULTRALOW = 1e-6


@dataclass(frozen=True)
class DictionaryMetrics(Result):
    """Scores of a dictionary and of what stands beside it; losses and divergences in nats."""

    dictionary: str
    site: str
    scores: dict
    """Score → condition → `[value, low, high]`. SHARES are 0 for the mean, or the ablation, and 1 for the original;
    below 0 is worse than that. `above` is the cost in nats above the original's; `loss`, `kl`, `agreement` (of the
    likeliest output) and `active` (numbers that are not 0, in a row) are means."""
    gains: dict
    """Share → `[best of the baselines, difference to it, low, high]`."""
    rows: int
    """In how many rows the latents were looked for."""
    densities: Float[Tensor, " latent"]
    """Share of rows in which a latent is active."""
    geometry: dict
    """Of each latent its `norm` as it writes, its `bias`, the `cosine` of what it reads and writes and of what it reads
    and another `shuffled` one writes; the cosines are left out of a transcoder, all of what is no sparse dictionary."""
    choices: dict

    @property
    def dead(self) -> int:
        """Latents that were not active in any row."""
        return int((self.densities == 0).sum())

    @property
    def census(self) -> dict[str, int | str]:
        """How many latents are how rarely active; in words where the sample is too small to tell."""

        def rare(below: float) -> int | str:
            seen = (self.densities > 0) & (self.densities < below)
            return int(seen.sum()) if self.rows * below > 1 else f"not to be told in {self.rows:,} rows"

        return {
            "latents": len(self.densities),
            "never active": self.dead,
            f"active in less than {ULTRALOW:g}": rare(ULTRALOW),
            "active in less than 0.1%": rare(1e-3),
            "active in more than 1%": int((self.densities > 1e-2).sum()),
            "active in more than 10%": int((self.densities > 0.1).sum()),
        }

    def headlines(self) -> list[Headline]:
        rows = [self._share(score) for score in ("recovered_zero", "recovered_mean", "explained")]
        best = min(BASELINES, key=lambda name: self.scores["kl"][name][0])
        rows += [
            self._mean("kl", "divergence of the output, nats", control=best),
            self._mean("active", "active latents in a row (L0)", note=f"of {len(self.densities)}"),
            Headline(
                "share of latents never active",
                self.dead / len(self.densities),
                note=f"in {self.rows:,} rows: a density below {3 / self.rows:.1g} may not be seen",
            ),
        ]
        seen = self.densities[self.densities > 0]
        if len(seen):
            rows.append(
                Headline("median density of a latent that was seen, log10", seen.log10().median().item())
            )
        if "cosine" in self.geometry:
            own, other = (self.geometry[name].median().item() for name in ("cosine", "shuffled"))
            claim = "median cosine of read and written direction"
            rows.append(Headline(claim, own, other, note="control: of different latents"))
        return rows

    def figure(self) -> Figure:
        shown = [name for name in self.scores["kl"] if name not in ("original", "mean", "zero")]
        names = [LABELS.get(name, name) for name in shown]
        parts = {label: [self.scores[score][name] for name in shown] for score, label in SHARES.items()}
        raw = [score for score in ("loss", "kl", "agreement") if score in self.scores]
        drawn = [
            figures.bars(
                names,
                {label: [part[0] for part in of] for label, of in parts.items()},
                intervals={label: [(low, high) for _, low, high in of] for label, of in parts.items()},
                title="What is kept when it stands in for the activations",
                y_label="share kept, 1 = all",
                caption=f"Baselines have {self.choices['k']} active numbers. Intervals over {self.choices['data']}.",
            ),
            figures.table(
                ["in the place of the activations", *raw],
                [
                    [LABELS.get(name, name), *(self.scores[s][name][0] for s in raw)]
                    for name in self.scores["kl"]
                ],
                title="Raw numbers",
                caption="Loss, and divergence of the output (kl), in nats; agreement: share of one likeliest output.",
            ),
            figures.table(
                ["latents", "number"],
                [[name, number] for name, number in self.census.items()],
                title="Census",
                caption=f"In {self.rows:,} rows. A latent that is not seen may be active in up to {3 / self.rows:.1g} "
                "of all rows (95%).",
            ),
        ]
        if len(shown) > 1 + len(BASELINES):
            drawn.insert(1, self._frontier(shown))
        if (self.densities > 0).any():
            drawn += self._latents(self.densities > 0)
        return figures.group(drawn, title=f"{self.dictionary}: how well it stands in")

    def _share(self, score: str) -> Headline:
        claim, (value, low, high) = f"{SHARES[score]} at {self.site}", self.scores[score]["dictionary"]
        best, _, least, _ = self.gains[score]
        note = f"control: {LABELS[best]}"
        if score != "explained":
            ablation, cost = score.removeprefix("recovered_"), self.choices["cost"]
            if self.scores["above"][ablation][1] <= 0:
                return Headline(
                    claim, "undefined", evidence=False, note="control: the ablation costs nothing here"
                )
            raw = [self.scores[cost][name][0] for name in ("original", "dictionary", ablation)]
            note += "; {} {:.4g} original, {:.4g} spliced, {:.4g} ablated".format(cost, *raw)
        return Headline(claim, value, self.scores[score][best][0], (low, high), least > 0, note)

    def _mean(self, score: str, claim: str, *, control: str = "", note: str = "") -> Headline:
        value, low, high = self.scores[score]["dictionary"]
        other = self.scores[score][control][0] if control else None
        return Headline(claim, value, other, (low, high), note=note or f"control: {LABELS[control]}")

    def _frontier(self, shown: list[str]) -> Figure:
        return figures.scatter(
            [self.scores["active"][name][0] for name in shown],
            [self.scores["recovered_zero"][name][0] for name in shown],
            groups=[LABELS.get(name, "dictionaries") for name in shown],
            labels=[LABELS.get(name, name) for name in shown],
            title="Sparsity, and what is kept",
            x_label="active numbers in a row (L0)",
            y_label="recovered, zero ablation",
            caption="Towards the upper left is better.",
        )

    def _latents(self, alive: Tensor) -> list[Figure]:
        density = self.densities[alive].log10()
        drawn = [
            figures.histogram(
                {"latents": density},
                title="How often latents are active",
                x_label="log10 of the share of rows",
                references=[("x", torch.tensor(1 / self.rows).log10().item(), "one row of the sample")],
                caption=f"Left out because never active: {self.dead}.",
            )
        ]
        if "cosine" not in self.geometry:
            return drawn
        cosine, bias = self.geometry["cosine"], self.geometry["bias"]
        above = "bias of the encoder above its median"
        drawn += [
            figures.scatter(
                density,
                cosine[alive],
                groups=[above if one > bias.median() else "below" for one in bias[alive]],
                labels=alive.nonzero()[:, 0].tolist(),
                title="Do rare latents form a cluster?",
                x_label="log10 of the share of rows",
                y_label="cosine of read and written direction",
            ),
            figures.histogram(
                {"of a latent": cosine, "of different latents": self.geometry["shuffled"]},
                title="What is read and what is written",
                x_label="cosine",
            ),
        ]
        return drawn


@method()
def dictionary_metrics(
    model: Model,
    dictionary: Dictionary,
    *,
    text: str | None = None,
    images: str | Path | Images = "shapes",
    others: list[str | Path | Dictionary] | None = None,
    contexts: int = 32,
    n_images: int = 256,
    length: int = 128,
    seed: int = 0,
) -> DictionaryMetrics:
    """How much of a network's work survives a dictionary, how sparse it is, and how many latents are dead.

    `text` is cut into contexts of `length` tokens (None: the held-out sample). Memory does not grow with their number.
    `others` are files of dictionaries of the same site, scored on the same contexts (None: none). Raises VesaliusError
    if a dictionary does not fit the site, or anything is not finite.
    """
    dictionaries = {"dictionary": dictionary} | {
        str(opened): opened for opened in map(model.dictionary, others or [])
    }
    elsewhere = [one for one in dictionaries.values() if one.site != dictionary.site]
    if elsewhere:
        raise VesaliusError(
            f"{elsewhere[0]} was given beside a dictionary of '{dictionary.site}', not of its site"
        )
    inputs = inputs_of(
        model, text=text, images=images, contexts=contexts, n_images=n_images, length=length, seed=seed
    )
    survey = survey_of(model, dictionary, inputs)
    replacements = replacements_of(model, dictionaries, inputs, survey, seed=seed)
    sites = {dictionary.site} | {reads(one) for one in dictionaries.values()}
    quantities = torch.cat(
        [
            measured(model, part, sites, dictionary.site, replacements)
            for part in progress(inputs.batches(model, batch=8), "contexts")
        ]
    )
    conditions, cost = ("original", *replacements), "loss" if predicts(model) else "kl"
    values = _scores(quantities.mean(0), conditions, cost)
    draws = _scores(resampled(quantities, seed=seed), conditions, cost)
    scores = {
        score: {
            name: _with_interval(values[score][number], draws[score][:, number])
            for number, name in enumerate(conditions)
        }
        for score in values
        if score != "loss" or cost == "loss"
    }
    return DictionaryMetrics(
        str(dictionary),
        dictionary.site,
        scores,
        gains={score: _gain(values[score], draws[score], conditions) for score in SHARES},
        rows=survey.rows,
        densities=survey.active / survey.rows,
        geometry=_geometry(dictionary, seed=seed) if isinstance(dictionary, SparseDictionary) else {},
        choices={
            "data": inputs.described,
            "data_hash": inputs.hash,
            "cost": cost,
            "k": survey.k,
            "positions": "all places" if inputs.ids is None else "all tokens but BOS are replaced and scored",
        },
    )


def _scores(
    means: Float[Tensor, "*draw condition quantity"], conditions: tuple[str, ...], cost: str
) -> dict[str, Float[Tensor, "*draw condition"]]:
    """Everything that is made of the means of the quantities."""
    raw = {name: means[..., number] for number, name in enumerate(QUANTITIES)}
    above = raw[cost] - raw[cost][..., :1]

    def share(costs: Tensor, ablation: str) -> Tensor:
        """1 where the cost is none, 0 where it is that of the ablation."""
        whole = costs[..., conditions.index(ablation), None]
        return 1 - costs / torch.where(whole.abs() < 1e-12, 1e-12, whole)

    shares = {"explained": share(raw.pop("error"), "mean")}
    shares |= {f"recovered_{name}": share(above, name) for name in ("zero", "mean")}
    return {**shares, "above": above, **raw}


def _gain(
    value: Float[Tensor, " condition"], draws: Float[Tensor, "draw condition"], conditions: tuple[str, ...]
) -> list:
    """How much the dictionary is above the best of the baselines."""
    own, numbers = conditions.index("dictionary"), [conditions.index(name) for name in BASELINES]
    best = max(numbers, key=lambda number: value[number].item())
    return [conditions[best], *_with_interval(value[own] - value[best], draws[:, own] - draws[:, best])]


def _with_interval(value: Float[Tensor, ""], draws: Float[Tensor, " draw"]) -> list[float]:
    low, high = percentiles(draws)
    return [value.item(), low.item(), high.item()]


def _geometry(dictionary: SparseDictionary, *, seed: int) -> dict[str, Float[Tensor, " latent"]]:
    """Norms of what is written, biases, and cosines of what is read with what is written, here or by another."""
    found = {"norm": dictionary.W_dec.norm(dim=1), "bias": dictionary.b_enc}
    if dictionary.source:
        return found
    others = torch.randperm(dictionary.latents, generator=torch.Generator().manual_seed(seed))
    read, written = dictionary.W_enc.T, dictionary.W_dec
    cosines = (torch.cosine_similarity(read, other) for other in (written, written[others]))
    return found | dict(zip(("cosine", "shuffled"), cosines))
