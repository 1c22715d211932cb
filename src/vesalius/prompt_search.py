"""A search for prompts: populations that climb features and pay for every nat that the model finds them surprising.

Evolutionary prompt optimisation (Thompson, Straznickas & Sklar 2024, arXiv 2402.01702), which extends the greedy
coordinate gradient (Zou et al. 2023, arXiv 2307.15043):

1. a population of prompts of one length, one for each price of fluency λ, that begins as text the model writes. Its
   objective is the feature at the last token, in standard deviations above its mean over windows of text, less λ
   times the cross-entropy of the prompt under the model in nats a token;
2. at every step each prompt has children that differ in one token: three in four draw it from the `top` that the
   gradient through the embedding promises most of, the others from all tokens; each price keeps the best of all;
3. what the tokenizer would not read back as it stands is no prompt, and is passed over.

Children that could win at no price, whatever the tokens after the changed one cost, are never carried to the logits:
in a causal model that changes no result.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.access import intervene, record, sites_of
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError
from vesalius.generation import generate
from vesalius.metrics import token_losses
from vesalius.model import Model

UNIFORM = 4
"""One child in so many draws its token from all, and not by the gradient."""

ROUNDING = 1e-3
"""Nats by which the same tokens may differ in two batches."""

CHUNK = 2**24
"""Logits held at once."""

ROWS = 512
"""Prompts read at once, where no logits are wanted."""


class Reading:
    """Features of one site at the last token, in standard deviations above their means over windows of text."""

    def __init__(self, model: Model, features: list[Feature], windows: Int[Tensor, "window token"]) -> None:
        self.model, self.features = model, features
        (site,) = sites_of(model, features[0].site)
        self.site = str(site)
        acts = last_rows(model, self.site, windows)
        raw = torch.stack([feature.value(acts) for feature in features])
        self.mean, self.sd = raw.mean(1, keepdim=True), raw.std(1, keepdim=True)
        self.scale = self.sd.where(self.sd > 0, 1.0)
        """A feature that never varies stays in its own units."""
        self.heights = (raw - self.mean) / self.scale
        """`[feature, window]`"""

    def of(self, ids: Int[Tensor, "feature row token"]) -> Float[Tensor, "feature row"]:
        """Each feature's values of its own rows."""
        parts = last_rows(self.model, self.site, ids.flatten(0, 1)).split(ids.shape[1])
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


class Search:
    """Populations of prompts, one for each of the features that are climbed; `restart` counts them.

    Of each population a prompt is `kept` for every price, and one that is held to a limit instead.
    """

    def __init__(
        self,
        model: Model,
        climbed: Reading,
        allowed: Int[Tensor, " allowed"],
        prices: Float[Tensor, " price"],
        limit: float,
        length: int,
        generator: torch.Generator,
    ) -> None:
        self.model, self.climbed, self.allowed = model, climbed, allowed
        self.length, self.generator = length, generator
        self.predicted = predicted(model, length)
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
            each[able] = nats_of(self.model, ids[able])
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


@torch.no_grad()
def last_rows(model: Model, site: str, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row width"]:
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


def nats_of(model: Model, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row token"]:
    """Nats of every token; 0 of a first one that nothing goes before."""
    parts = _begun(model, ids).split(_room(model, ids.shape[1]))
    found = [token_losses(model.logits(part), part.to(model.device)).float().cpu() for part in parts]
    return F.pad(torch.cat(found), (int(model.bos is None), 0))


def predicted(model: Model, length: int) -> int:
    """How many tokens have a cross-entropy: all after a BOS, all but the first without."""
    return length - (model.bos is None)


def _room(model: Model, length: int) -> int:
    """Prompts whose logits are held at once."""
    return max(1, CHUNK // ((length + 1) * model.d_vocab))


def _begun(model: Model, ids: Int[Tensor, "row token"]) -> Int[Tensor, "row pos"]:
    return ids if model.bos is None else F.pad(ids, (1, 0), value=model.bos)


def allowed_tokens(model: Model) -> Int[Tensor, " allowed"]:
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
