"""Dream prompts: texts made to raise a feature of a language model while they stay as fluent as text.

Evolutionary prompt optimisation (Thompson, Straznickas & Sklar 2024, Fluent dreaming for language models, arXiv
2402.01702), which extends the greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043):

1. a population of prompts of one length, one for each price of fluency λ, that begins as text the model writes. Its
   objective is the feature at the last token, in standard deviations above its mean over windows of text, less λ
   times the cross-entropy of the prompt under the model in nats a token;
2. at every step each prompt has children that differ in one token: three in four draw it from the `top` that the
   gradient through the embedding promises most of, the others from all tokens; each price keeps the best of all;
3. what the tokenizer would not read back as it stands is no prompt, and is passed over;
4. restarts are independent; each also keeps the most active prompt that is no less fluent than text.

What is claimed is not that prompts can be made to raise the feature beyond what text does: any function of a text has
such prompts, an untrained one most of all. It is that text reaches more of what any prompt reaches than it would if
nothing were learnt: then the best windows of text show what the feature is for; where they do not, optimised prompts
do. The control is the same share for features of a twin whose weights are shuffled, against a single restart. Beside
it stand the best of as many random prompts and of as many windows of text as one restart tries.

A neuron is read before its nonlinearity and a latent before its threshold. Below them there is no slope to climb; and
what is cut off at a threshold stands out by any number of standard deviations for that alone.

Children that could win at no price, whatever the tokens after the changed one cost, are never carried to the logits:
in a causal model that changes no result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vesalius import figures
from vesalius.access import intervene, record, sites_of
from vesalius.data.text import sample_rows
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.generation import generate
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, percentiles, token_losses
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.site import Site

PRICES = (0.1, 1.6)
"""The least and the most that one nat a token costs, in standard deviations of the feature."""
UNIFORM = 4
"""One child in so many draws its token from all, and not by the gradient."""
SAMPLE = 256
"""Windows of text, and random prompts, whose fluency is measured and shown."""
BEST = 8
"""Windows of text that are shown as the best of all."""
REPLACEMENTS = 16
"""Random tokens that take the place of each token of a shown prompt, to see what it did."""
ROUNDING = 1e-3
"""Nats by which the same tokens may differ in two batches."""
CHUNK = 2**24
"""Logits held at once."""
ROWS = 512
"""Prompts read at once, where no logits are wanted."""


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
    limit = _each(model, windows[_spread(len(windows))]).sum(1).mean().item() / _predicted(model, length)
    allowed, generator = _allowed(model), torch.Generator().manual_seed(seed)
    costs = torch.logspace(*torch.tensor(PRICES).log10().tolist(), prices)

    def search(read: _Reading, what: str) -> _Search:
        found = _Search(model, read, allowed, costs, limit, length, generator)
        found.run(progress(range(steps), what), children=children, top=min(top, len(allowed) - 1))
        return found

    read, twin = _unbent(model, feature), model.shuffled_twin(seed + 1)
    judged = _Reading(model, [read], windows)
    own = search(_Reading(model, [read] * restarts, windows), "prompts")
    nulls = _Reading(twin, _others(twin, read, windows, untrained, generator), windows)
    null = search(nulls, "prompts for a shuffled twin")

    dreams, raised = own.ids.flatten(0, 1), nulls.of(null.ids)
    values = judged.of(dreams[None]).view_as(own.nats)
    share, low, high = _share(judged.heights[0], values.max().item(), seed=seed)
    beside = (nulls.heights.amax(1) / raised.amax(1).clamp(min=1e-6)).clamp(max=1)
    best, drawn = judged.heights[0].topk(min(BEST, len(windows))).indices, own.random((tried, length))
    active = feature.value(_last(model, feature.site, torch.cat([dreams, windows[best[:1]]])))
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


class _Reading:
    """Features of one site at the last token, in standard deviations above their means over windows of text."""

    def __init__(self, model: Model, features: list[Feature], windows: Int[Tensor, "window token"]) -> None:
        self.model, self.features = model, features
        (site,) = sites_of(model, features[0].site)
        self.site = str(site)
        acts = _last(model, self.site, windows)
        raw = torch.stack([feature.value(acts) for feature in features])
        self.mean, self.sd = raw.mean(1, keepdim=True), raw.std(1, keepdim=True)
        self.scale = self.sd.where(self.sd > 0, 1.0)
        """A feature that never varies stays in its own units."""
        self.heights = (raw - self.mean) / self.scale
        """`[feature, window]`"""

    def of(self, ids: Int[Tensor, "feature row token"]) -> Float[Tensor, "feature row"]:
        """Each feature's values of its own rows."""
        parts = _last(self.model, self.site, ids.flatten(0, 1)).split(ids.shape[1])
        raw = torch.stack([feature.value(part) for feature, part in zip(self.features, parts)])
        return (raw - self.mean) / self.scale

    def slope(
        self, ids: Int[Tensor, "row token"], which: Int[Tensor, " row"]
    ) -> Float[Tensor, "row token d_vocab"]:
        """How the value of each row's feature changes with every token at every place, to first order.

        Rows are in the order of their features.
        """

        def total() -> Tensor:
            with record(self.model, self.site, stop=True, gradients=True) as acts:
                self.model(_begun(self.model, ids))
            parts = (
                acts[self.site][:, -1].float().split(which.bincount(minlength=len(self.features)).tolist())
            )
            scaled = zip(self.features, parts, self.scale[:, 0], strict=True)
            return torch.stack([feature.value(part).sum() / scale for feature, part, scale in scaled]).sum()

        return _by_token(self.model, total)[:, -ids.shape[1] :]


class _Search:
    """Populations of prompts, one for each of the features that are climbed; `restart` counts them.

    Of each population a prompt is `kept` for every price, and one that is held to a limit instead.
    """

    def __init__(
        self,
        model: Model,
        climbed: _Reading,
        allowed: Int[Tensor, " allowed"],
        prices: Float[Tensor, " price"],
        limit: float,
        length: int,
        generator: torch.Generator,
    ) -> None:
        self.model, self.climbed, self.allowed = model, climbed, allowed
        self.length, self.generator = length, generator
        self.predicted = _predicted(model, length)
        self.price = F.pad(prices, (0, 1)) / self.predicted
        self.limit = F.pad(torch.full_like(prices, torch.inf), (0, 1), value=limit * self.predicted)
        self.guide = F.pad(self.price[:-1], (0, 1), value=prices.log().mean().exp().item() / self.predicted)
        """What a nat costs where the gradient is taken: of the one that is held to a limit, the middle price."""
        shape = (len(climbed.features), len(prices) + 1)
        self.best = torch.full(shape, -torch.inf)
        self.ids = self.random((*shape, length))
        self.each = torch.zeros(*shape, length)
        """Nats of every token."""

    @property
    def nats(self) -> Float[Tensor, "restart kept"]:
        """Nats a token."""
        return self.each.sum(2) / self.predicted

    def run(self, steps: Iterator[int], *, children: int, top: int) -> None:
        """Texts that the model writes, then `children` of every prompt at each step."""
        restarts, kept, length = self.ids.shape
        shape = (restarts, kept, children)
        first = self.written(restarts * kept * children).unflatten(0, (restarts, -1))
        self.offer(first, torch.zeros(first.shape[:2]))
        promised = torch.zeros((*self.ids.shape, top), dtype=torch.long)
        following = torch.zeros(*self.ids.shape, self.model.d_vocab)
        changed = torch.ones(restarts, kept, dtype=torch.bool)
        blind = (torch.arange(children) % UNIFORM == 0) & (children > 1)
        row, column = (torch.arange(size) for size in shape[:2])
        own = row[:, None, None], column[None, :, None]
        for _ in steps:
            for part in changed.nonzero().split(_room(self.model, length)) if changed.any() else ():
                at = part[:, 0], part[:, 1]
                promised[at], following[at] = self.promised(self.ids[at], *at, top)
            place = self.drawn(length, shape)
            guided = promised[(*own, place, self.drawn(top, shape))]
            token = self.random(shape).where(blind, guided)
            born = self.ids[:, :, None].expand(*shape, length)
            born = born.scatter(3, place[..., None], token[..., None])
            before = (self.each.cumsum(2) - self.each).gather(2, place) - following[(*own, place, token)]
            changed = self.offer(born.flatten(1, 2), before.flatten(1, 2))
        if self.best[:, :-1].isinf().any():
            raise VesaliusError(
                f"no prompt of {length} tokens was found that the tokenizer of {self.model.name} reads back"
            )
        over, fluent = self.best[:, -1].isinf(), self.nats[:, :-1].argmin(1)
        for state in (self.ids, self.each):
            state[over, -1] = state[over, fluent[over]]

    def offer(
        self, ids: Int[Tensor, "restart candidate token"], before: Float[Tensor, "restart candidate"]
    ) -> Bool[Tensor, "restart kept"]:
        """Every price takes the best of what it has and the candidates; which of them changed.

        `before` is what a candidate's tokens up to the changed one cost, in nats: one that could not win even if the
        rest cost nothing is not carried to the logits.
        """
        values, price, limit = self.climbed.of(ids)[:, None], self.price[:, None], self.limit[:, None]
        least = (before[:, None] - ROUNDING).clamp(min=0)
        able = ((values - price * least > self.best[..., None]) & (least <= limit)).any(1)
        able[able.clone()] = _reads_back(self.model, ids[able]) & torch.isin(ids[able], self.allowed).all(1)
        each = torch.full(ids.shape, torch.inf)
        if able.any():
            each[able] = _each(self.model, ids[able])
        nats = each.sum(2)[:, None]
        found, at = torch.where(nats <= limit, values - price * nats, -torch.inf).max(2)
        better = found > self.best
        self.best = found.where(better, self.best)
        rows = at[..., None].expand(self.ids.shape)
        self.ids = ids.gather(1, rows).where(better[..., None], self.ids)
        self.each = each.gather(1, rows).where(better[..., None], self.each)
        return better

    def promised(
        self,
        ids: Int[Tensor, "row token"],
        restart: Int[Tensor, " row"],
        price: Int[Tensor, " row"],
        top: int,
    ) -> tuple[Int[Tensor, "row token top"], Float[Tensor, "row token d_vocab"]]:
        """The tokens that the gradient promises most of at every place, and the log-probabilities of all there."""
        begun, cost = _begun(self.model, ids), self.guide[price]
        kept: list[Tensor] = []

        def total() -> Tensor:
            kept.append(self.model.logits(begun).float())
            return (token_losses(kept[0], begun.to(kept[0].device)).sum(1) * cost.to(kept[0])).sum()

        costs = _by_token(self.model, total)[:, -self.length :]
        following = kept[0].detach()[:, :-1].log_softmax(2).cpu()
        following = F.pad(following, (0, 0, self.length - self.predicted, 0))
        promise = self.climbed.slope(ids, restart) - costs + cost[:, None, None] * following
        barred = torch.ones(promise.shape[2], dtype=torch.bool)
        barred[self.allowed] = False
        promise = promise.masked_fill(barred, -torch.inf).scatter(2, ids[..., None], -torch.inf)
        return promise.topk(top, sorted=False).indices, following

    def written(self, count: int) -> Int[Tensor, "row token"]:
        """Texts drawn from the model, after BOS or after a random token."""
        first = self.random((count, 1))
        given = first if self.model.bos is None else torch.full_like(first, self.model.bos)
        seed = int(self.drawn(2**31, ()))
        made = torch.tensor(generate(self.model, given, tokens=self.predicted, temperature=1.0, seed=seed))
        return torch.cat([first, made], 1)[:, -self.length :]

    def random(self, shape: tuple[int, ...]) -> Int[Tensor, "..."]:
        """Tokens drawn from all that are allowed."""
        return self.allowed[self.drawn(len(self.allowed), shape)]

    def drawn(self, below: int, shape: tuple[int, ...]) -> Int[Tensor, "..."]:
        return torch.randint(below, shape, generator=self.generator)


@torch.enable_grad()
def _by_token(model: Model, total: Callable[[], Tensor]) -> Float[Tensor, "row pos d_vocab"]:
    """The gradient of a total by the one-hot tokens of the forward that it runs."""
    given: list[Tensor] = []

    def leaf(value: Tensor) -> Tensor:
        given.append(value.detach().requires_grad_())
        return given[0]

    with intervene(model, {"embed": leaf}):
        (gradient,) = torch.autograd.grad(total(), given)
    return (gradient.float() @ model.weight("W_E").float().T).cpu()


def _others(
    twin: Model, read: Feature, windows: Int[Tensor, "window token"], count: int, generator: torch.Generator
) -> list[Feature]:
    """Units of the feature's site drawn at random; for a direction, random directions of its length."""
    width = _last(twin, read.site, windows[:1]).shape[1]
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


def _points(judged: _Reading, ids: Int[Tensor, "row token"], shown: Int[Tensor, " shown"]) -> dict:
    """How active the best of all rows is, and how active and how fluent some of them are."""
    values = judged.of(ids[None])[0]
    losses = _each(judged.model, ids[shown]).sum(1) / _predicted(judged.model, ids.shape[1])
    return {
        "values": values[shown],
        "losses": losses,
        "strings": _texts(judged.model, ids[shown]),
        "best": values.max().item(),
        "loss": losses.mean().item(),
        "tried": len(ids),
    }


def _shown(
    judged: _Reading,
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
    losses = _each(judged.model, ids)
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


@torch.no_grad()
def _last(model: Model, site: str, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row width"]:
    """A site's rows at the last token. Raises VesaliusError if it has no row for each token."""
    (address,) = sites_of(model, site)
    rows = []
    for part in _begun(model, ids).split(ROWS):
        value = model.value_at(str(address), part)
        if value.dim() != 3:
            raise VesaliusError(
                f"'{site}' is of shape {list(value.shape)}; expected a row for each token, as of 'neurons@0'"
            )
        rows.append(value[:, -1].float().cpu())
    return torch.cat(rows)


def _each(model: Model, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row token"]:
    """Nats of every token; 0 of a first one that nothing goes before."""
    parts = _begun(model, ids).split(_room(model, ids.shape[1]))
    found = [token_losses(model.logits(part), part.to(model.device)).float().cpu() for part in parts]
    return F.pad(torch.cat(found), (int(model.bos is None), 0))


def _predicted(model: Model, length: int) -> int:
    """How many tokens have a cross-entropy: all after a BOS, all but the first without."""
    return length - (model.bos is None)


def _room(model: Model, length: int) -> int:
    """Prompts whose logits are held at once."""
    return max(1, CHUNK // ((length + 1) * model.d_vocab))


def _begun(model: Model, ids: Int[Tensor, "row token"]) -> Int[Tensor, "row pos"]:
    return ids if model.bos is None else F.pad(ids, (1, 0), value=model.bos)


def _texts(model: Model, ids: Int[Tensor, "row token"]) -> list[str]:
    if model.tokenizer is None:
        return [" ".join(model.strings(row)) for row in ids]
    return model.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=False)


def _allowed(model: Model) -> Int[Tensor, " allowed"]:
    """All tokens but BOS, special ones, and those that the tokenizer does not read back even alone."""
    ids = torch.arange(model.d_vocab)
    special = set() if model.bos is None else {model.bos}
    if model.tokenizer is not None:
        added = model.tokenizer.get_added_tokens_decoder()
        special |= {number for number, token in added.items() if token.special}
    return ids[
        _reads_back(model, ids[:, None]) & ~torch.isin(ids, torch.tensor(sorted(special), dtype=torch.long))
    ]


def _reads_back(model: Model, ids: Int[Tensor, "row token"]) -> Bool[Tensor, " row"]:
    """Whether the tokenizer makes the same tokens of what they say; True of all without one."""
    if model.tokenizer is None:
        return torch.ones(len(ids), dtype=torch.bool)
    texts = model.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=False)
    read = model.tokenizer.encode_batch(texts, add_special_tokens=False)
    return torch.tensor([one.ids == row for one, row in zip(read, ids.tolist())], dtype=torch.bool)
