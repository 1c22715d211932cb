"""Dream prompts: texts made to raise a feature of a language model while they stay as fluent as text.

Thompson, Straznickas & Sklar 2024, Fluent dreaming for language models (arXiv 2402.01702). Prompts are made by the
search of `prompt_search`, at several prices of fluency and held to that of text, in restarts that are independent.

What is claimed is not that prompts can be made to raise the feature beyond what text does: any function of a text has
such prompts, an untrained one most of all. It is that text reaches more of what any prompt reaches than it would if
nothing were learnt: then the best windows of text show what the feature is for; where they do not, optimised prompts
do. The control is the same share for features of a twin whose weights are shuffled, against a single restart. Beside
it stand the best of as many random prompts and of as many windows of text as one restart tries.

A neuron is read before its nonlinearity and a latent before its threshold. Below them there is no slope to climb; and
what is cut off at a threshold stands out by any number of standard deviations for that alone.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vesalius import figures
from vesalius.data.text import sample_rows
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, percentiles
from vesalius.model import Model
from vesalius.prompt_search import Reading, Search, allowed_tokens, last_rows, nats_of, predicted
from vesalius.result import Headline, Result
from vesalius.site import Site

PRICES = (0.1, 1.6)
"""The least and the most that one nat a token costs, in standard deviations of the feature."""
SAMPLE = 256
"""Windows of text, and random prompts, whose fluency is measured and shown."""
BEST = 8
"""Windows of text that are shown as the best of all."""
REPLACEMENTS = 16
"""Random tokens that take the place of each token of a shown prompt, to see what it did."""


@dataclass(frozen=True)
class DreamPrompts(Result):
    """Prompts of one feature; values are in standard deviations above its mean over windows of text."""

    feature: str
    site: str
    """Where it is read: before the nonlinearity, where there is one."""
    prices: Float[Tensor, " price"]
    """Standard deviations that one nat a token costs."""
    prompts: Int[Tensor, "restart kept token"]
    """Token ids, without BOS: one for each price, and last the fluent one, held to the fluency of text."""
    strings: list
    """The same as text, a list for each restart."""
    values: Float[Tensor, "restart kept"]
    losses: Float[Tensor, "restart kept"]
    """Nats a token."""
    activations: Float[Tensor, "restart kept"]
    """The feature as it is, behind its nonlinearity."""
    interval: list
    """95% bootstrap interval of the share, over windows of text."""
    chance: float
    """The share that one in a hundred features of shuffled twins passes."""
    untrained: dict
    """`values` and `losses` `[feature, kept]` of the prompts made for the twin's features, in theirs, and `shares`."""
    text: dict
    """`values`, `losses`, `strings` of the best windows and a sample; the `best` value of all and its `activation`; the
    mean `loss`."""
    random: dict
    """The same of random prompts."""
    shown: list
    """Prompts and windows: `{"label", "tokens", "drops", "losses"}`, a number for each token."""
    share: float
    """The best window of text over the most active prompt of all restarts, above the mean; 1: text is not passed."""
    mean: float
    sd: float
    choices: dict

    @property
    def front(self) -> Bool[Tensor, "restart kept"]:
        """The prompts than which no other is both more active and more fluent."""
        values, losses = self.values.flatten(), self.losses.flatten()
        beaten = (values > values[:, None]) & (losses < losses[:, None])
        return ~beaten.any(1).view_as(self.values)

    def headlines(self) -> list[Headline]:
        fluent, losses, best = self.values[:, -1], self.losses[:, -1], self.text["best"]
        most, passed = self.values.max(1), int((self.values[:, -1] > self.text["best"]).sum())
        wild = self.losses.gather(1, most.indices[:, None]).mean().item()
        note = (
            "control: features of a shuffled twin, raised in the same way; 1: no prompt does more than text"
        )
        if not self.sd:
            note = "it never varies on this text"
        elif self.share == 1:
            note = "no prompt was found that does more than text, so that it is not known what prompts reach"
        return [
            Headline(
                "share of what optimised prompts reach that text reaches",
                self.share,
                self.chance,
                (self.interval[0], self.interval[1]),
                0 < self.share < 1 and self.interval[0] > self.chance,
                note,
            ),
            Headline("value of the best window of text, sd", best, note=f"of {self.text['tried']:,}"),
            Headline(
                "value of the best random prompt, sd",
                self.random["best"],
                note=f"of {self.random['tried']:,}",
            ),
            Headline(
                "value of prompts made to raise it, sd",
                most.values.mean().item(),
                interval=bootstrap(most.values, seed=0),
                note=f"at {wild:.3g} nats a token",
            ),
            Headline(
                "value of prompts made to raise it and as fluent as text, sd",
                fluent.mean().item(),
                interval=bootstrap(fluent, seed=0),
                note=f"{passed} of {len(fluent)} pass the best window of text",
            ),
            Headline(
                "activation of the fluent prompts, as the feature has it",
                self.activations[:, -1].mean().item(),
                interval=bootstrap(self.activations[:, -1], seed=0),
                note=f"the best window of text: {self.text['activation']:.3g}",
            ),
            Headline(
                "cross-entropy of the fluent prompts, nats a token",
                losses.mean().item(),
                self.text["loss"],
                bootstrap(losses, seed=0),
                note=f"control: text; random prompts {self.random['loss']:.3g}",
            ),
        ]

    def figure(self) -> Figure:
        strip = figures.tokens(
            self.shown[0]["tokens"],
            [
                {
                    "label": row["label"],
                    "tokens": row["tokens"],
                    "layers": {"sd lost without it": row["drops"], "nats": row["losses"]},
                }
                for row in self.shown
            ],
            title="Prompts, and what each token does",
            caption="Coloured by what the value loses, in the mean, when random tokens take a token's place; "
            "the bar under it: how surprising the model finds it.",
        )
        front = self.front.flatten().tolist()
        others = {
            "random prompts": self.random,
            "windows of text": self.text,
            "made for a shuffled twin": self.untrained,
        }
        x = [part["losses"].flatten() for part in others.values()]
        y = [part["values"].flatten() for part in others.values()]
        plane = figures.scatter(
            torch.cat([*x, self.losses.flatten()]),
            torch.cat([*y, self.values.flatten()]),
            labels=[
                *self.random["strings"],
                *self.text["strings"],
                *["a feature of the twin"] * self.untrained["values"].numel(),
                *[text for row in self.strings for text in row],
            ],
            groups=[name for name, part in zip(others, y) for _ in part]
            + ["made to raise it: the front" if best else "made to raise it" for best in front],
            x_label="cross-entropy, nats a token",
            y_label=f"value of {self.feature}, sd",
            references=[
                ("x", self.text["loss"], "text, mean"),
                ("y", self.text["best"], "best window of text"),
            ],
            title="Activation against fluency",
            caption=f"{len(self.values)} restarts at {len(self.prices)} prices of fluency, "
            f"{self.prices[0]:.3g} to {self.prices[-1]:.3g} sd a nat.",
        )
        return figures.group([strip, plane], title=f"Dream prompts of {self.feature}")


@method(needs=("tokens", "causal", "embedding"))
def dream_prompts(
    model: Model,
    feature: Feature,
    *,
    length: int = 12,
    steps: int = 40,
    restarts: int = 4,
    prices: int = 5,
    children: int = 8,
    top: int = 64,
    untrained: int = 8,
    text: str | None = None,
    seed: int = 0,
) -> DreamPrompts:
    """Prompts of `length` tokens made to raise a feature at their last token, at several prices of fluency.

    A prompt is kept for each of the `prices`, and one that is held to the fluency of text; each has `children` at each
    of `steps`, by the gradient among the `top` tokens. `untrained` features of a shuffled twin are raised in the same
    way. `text` is what windows are cut from (None: the held-out sample). There is evidence that the feature was learnt
    from text if the whole interval of the share that text reaches, of the best prompt of all `restarts`, is above
    what one in a hundred of the twin's features passes. Raises VesaliusError for a site that has no row for each
    token, and if no prompt was found that the tokenizer reads back as it is.
    """
    tried = steps * (prices + 1) * children
    windows, described = _windows(model, text, length, tried, seed)
    limit = nats_of(model, windows[_spread(len(windows))]).sum(1).mean().item() / predicted(model, length)
    allowed, generator = allowed_tokens(model), torch.Generator().manual_seed(seed)
    costs = torch.logspace(*torch.tensor(PRICES).log10().tolist(), prices)

    def search(read: Reading, what: str) -> Search:
        found = Search(model, read, allowed, costs, limit, length, generator)
        found.run(progress(range(steps), what), children=children, top=min(top, len(allowed) - 1))
        return found

    read, twin = _unbent(model, feature), model.shuffled_twin(seed + 1)
    judged = Reading(model, [read], windows)
    own = search(Reading(model, [read] * restarts, windows), "prompts")
    nulls = Reading(twin, _others(twin, read, windows, untrained, generator), windows)
    null = search(nulls, "prompts for a shuffled twin")

    dreams, raised = own.ids.flatten(0, 1), nulls.of(null.ids)
    values = judged.of(dreams[None]).view_as(own.nats)
    share, low, high = _share(judged.heights[0], values.max().item(), seed=seed)
    beside = (nulls.heights.amax(1) / raised.amax(1).clamp(min=1e-6)).clamp(max=1)
    best, drawn = judged.heights[0].topk(min(BEST, len(windows))).indices, own.random((tried, length))
    active = feature.value(last_rows(model, feature.site, torch.cat([dreams, windows[best[:1]]])))
    rows = {f"restart {number + 1}": row for number, row in enumerate(own.ids[:, -1])}
    rows["fluent or not"] = dreams[values.argmax()]
    rows |= {f"text, {place}": windows[at] for place, at in zip(("best", "second", "third"), best)}
    of_text = _points(judged, windows, torch.cat([best, _spread(len(windows))]))
    return DreamPrompts(
        feature=str(feature),
        site=judged.site,
        prices=costs,
        prompts=own.ids,
        strings=[_texts(model, row) for row in own.ids],
        values=values,
        losses=own.nats,
        activations=active[:-1].view_as(values),
        share=share,
        interval=[low, high],
        chance=family_wise(beside[:, None]),
        untrained={"values": raised, "losses": null.nats, "shares": beside},
        text=of_text | {"loss": limit, "activation": active[-1].item()},
        random=_points(judged, drawn, _spread(len(drawn))),
        shown=_shown(judged, rows, own.random((len(rows), REPLACEMENTS, length))),
        mean=judged.mean.item(),
        sd=judged.sd.item(),
        choices={
            "position": "the last token",
            "tried": tried,
            "text": f"{len(windows)} windows of {length} tokens in {described}",
            "fluency": "cross-entropy under the model itself" + ("" if model.bos is None else ", after BOS"),
            "prompts": "the tokenizer reads them back" if model.tokenizer else "any tokens",
            "scale": "mean and sd at the last token of windows of text",
            "control": "features of a twin whose weights are shuffled, one restart each",
        },
    )


def _unbent(model: Model, feature: Feature) -> Feature:
    """The feature before what flattens it: the threshold of a latent, the nonlinearity of a neuron.

    A neuron that is a product of two, as in a gated MLP, stays as it is.
    """
    if feature.read is not None:
        return replace(feature, nonlinear=None)
    address = Site.parse(feature.site)
    if address.role != "neurons" or model.has("W_gate"):
        return feature
    assert model.architecture is not None and address.layers is not None  # as there is a role
    layer = model.architecture.layer_names(model.module)[int(address.layers)]
    above = Site.parse(model.architecture.sites["neurons"].format(layer)).path.rpartition(".")[0]
    plain = [
        name
        for name, part in model.module.get_submodule(above).named_children()
        if not any(True for _ in part.parameters()) and not isinstance(part, nn.Dropout | nn.Identity)
    ]
    return replace(feature, site=f"{above}.{plain[0]}:in") if len(plain) == 1 else feature


def _others(
    twin: Model, read: Feature, windows: Int[Tensor, "window token"], count: int, generator: torch.Generator
) -> list[Feature]:
    """Units of the feature's site drawn at random; for a direction, random directions of its length."""
    width = last_rows(twin, read.site, windows[:1]).shape[1]
    if read.read is None:
        units = torch.randint(width, (count,), generator=generator)
        return [replace(read, index=unit) for unit in units.tolist()]
    vectors = F.normalize(torch.randn(count, width, generator=generator), dim=1) * read.read.norm().cpu()
    return [replace(read, read=vector, label="random") for vector in vectors]


def _share(
    heights: Float[Tensor, " window"], reached: float, *, seed: int, draws: int = 400
) -> tuple[float, float, float]:
    """The best window over what was reached, at most 1, and its interval when windows are drawn again."""
    generator = torch.Generator().manual_seed(seed)
    again = heights[torch.randint(len(heights), (draws, len(heights)), generator=generator)].amax(1)
    low, high = percentiles((again / max(reached, 1e-6)).clamp(0, 1))
    return min(max(heights.max().item() / max(reached, 1e-6), 0.0), 1.0), low.item(), high.item()


def _points(judged: Reading, ids: Int[Tensor, "row token"], shown: Int[Tensor, " shown"]) -> dict:
    """How active the best of all rows is, and how active and how fluent some of them are."""
    values = judged.of(ids[None])[0]
    losses = nats_of(judged.model, ids[shown]).sum(1) / predicted(judged.model, ids.shape[1])
    return {
        "values": values[shown],
        "losses": losses,
        "strings": _texts(judged.model, ids[shown]),
        "best": values.max().item(),
        "loss": losses.mean().item(),
        "tried": len(ids),
    }


def _shown(
    judged: Reading,
    prompts: dict[str, Int[Tensor, " token"]],
    random: Int[Tensor, "row draw token"],
) -> list[dict]:
    """What every token of some prompts does, by random ones that take its place, and what it costs."""
    ids = torch.stack(list(prompts.values()))
    changed = repeat(
        ids, "row token -> row place draw token", place=ids.shape[1], draw=random.shape[1]
    ).clone()
    changed.diagonal(dim1=1, dim2=3).copy_(random)
    values = judged.of(ids[None])[0]
    left = judged.of(changed.flatten(0, 2)[None]).view(changed.shape[:3]).mean(2)
    losses = nats_of(judged.model, ids)
    return [
        {
            "label": f"{label}: {values[number]:.3g} sd",
            "tokens": judged.model.strings(ids[number]),
            "drops": values[number] - left[number],
            "losses": losses[number],
        }
        for number, label in enumerate(prompts)
    ]


def _windows(
    model: Model, text: str | None, length: int, count: int, seed: int
) -> tuple[Int[Tensor, "window token"], str]:
    """Up to `count` windows spread evenly over a text, and what the text is in words."""
    begin = int(model.bos is not None)
    if not 2 <= length <= model.n_ctx - begin:
        raise VesaliusError(
            f"prompts of {length} tokens were asked for; {model.name} reads 2 to {model.n_ctx - begin}"
        )
    row = min(model.n_ctx, max(128, 2 * length + begin))
    limit = count // max(1, row // 2 - length) + 1
    rows, described = sample_rows(model, text, length=row, limit=limit, seed=seed)
    windows = rows[:, begin:].cpu().unfold(1, length, 1).flatten(0, 1)
    return windows[_spread(len(windows), count)], described


def _spread(rows: int, count: int = SAMPLE) -> Int[Tensor, " shown"]:
    """Up to `count` of the rows, evenly."""
    return torch.linspace(0, rows - 1, min(rows, count)).round().long()


def _texts(model: Model, ids: Int[Tensor, "row token"]) -> list[str]:
    if model.tokenizer is None:
        return [" ".join(model.strings(row)) for row in ids]
    return model.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=False)
