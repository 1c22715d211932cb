"""Skip-trigrams: [source] … [destination] → [out], read off the QK and OV circuits of each head.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"
(transformer-circuits.pub/2021/framework): one layer of attention is bigrams and skip-trigrams. Of each head,
the column of a source in the QK circuit says at which destination tokens it is looked for, and its row in the
OV circuit which next tokens are then raised.

1. Tables are freed of what softmax ignores and of what is not about the source: QK of its mean over sources,
   OV of its means over outs and over sources. (A source that a text always holds once looks anti-copied in
   the raw OV.)
2. The table of a head lists for a source its `top` destinations and outs; rows are ranked by the logit of the
   first out times σ of the first QK score.
3. Rows are sorted by spelling: [b] … [a] → [b] copies, [b] … [a] → [b′] a near-duplicate (case, space, a
   final s); [ab] … [a] → [b] joins what the tokenizer splits ("R … alph" for " Ralph"), [ab] … [a] → [b′]
   nearly. Counts stand beside those with sources shuffled among the rows, and beside a random-init twin's.
4. Together: at the best destination of a source, the outs of all chosen heads, weighted by σ of their QK, are
   added.
5. Bugs: a head multiplies destinations by outs, so to say "keep … in → mind" and "keep … at → bay" it must
   also say "keep … in → bay". Listed are crossings that the direct path tells apart.

Tokens that hardly occur in training keep what they were born with, and may turn up anywhere in these tables.
All of this is the direct path and content alone: exact for one attention-only layer but for positions, and in
a deep model a hint about those of its heads that read embeddings and write to the unembedding.
"""

from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.data.spelling import Spelling
from vesalius.method import method, progress
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.circuits import (
    Norm,
    direct_path,
    full_ov,
    full_qk,
    norm_handling,
    ov,
    qk,
    unembed,
    widened,
)
from vesalius.weights.factored import Factored

if TYPE_CHECKING:
    from vesalius.figures import Figure

KINDS: tuple[str, ...] = ("[b]…[a]→[b]", "[b]…[a]→[b′]", "[ab]…[a]→[b]", "[ab]…[a]→[b′]")
SHUFFLES = 499
LEVEL = 0.01
LISTED = 40
"""Rows kept as text, overall and of each kind."""


@dataclass(frozen=True)
class SkipTrigrams(Result):
    """Tables of heads over sources, [head, source, rank]; rows as text for the strongest."""

    heads: list[str]
    sources: Int[Tensor, " source"]
    destinations: Int[Tensor, "head source rank"]
    queried: Float[Tensor, "head source rank"]
    """QK score of each destination on the source, less its mean over sources."""
    outs: Int[Tensor, "head source rank"]
    raised: Float[Tensor, "head source rank"]
    """Logit of each out when the source is attended to fully, doubly centred."""
    rows: list[dict]
    """The strongest rows, and the strongest of each kind, as text."""
    together: list[dict]
    """Strongest sources at their best destination: outs of all heads added, effect in logits."""
    bugs: list[dict]
    counts: dict[str, int]
    """Rows of each kind, of `heads` times `sources`."""
    shuffled: dict[str, float]
    """Their mean number when sources are shuffled among a head's rows."""
    p_values: dict[str, float]
    """Chance of so many in a shuffle, times the number of kinds."""
    twin: dict[str, int]
    choices: dict[str, str]

    def headlines(self) -> list[Headline]:
        total = len(self.heads) * len(self.sources)
        rows = []
        for kind in self.counts:
            shown = ", ".join([row["reads"] for row in self.rows if row["kind"] == kind][:3])
            stands = self.p_values[kind] < LEVEL and self.counts[kind] > self.twin[kind]
            rows.append(
                Headline(
                    f"rows {kind}",
                    f"{self.counts[kind]} of {total}",
                    f"{self.twin[kind]} of {total}",
                    evidence=stands,
                    note=f"shuffled {self.shuffled[kind]:.1f}, p {self.p_values[kind]:.2g}; {shown}",
                )
            )
        if self.together:
            best = self.together[0]
            claim = f"strongest: {best['source']!r} … {best['destination']!r} → {best['outs'][0]!r}, logits"
            rows.append(Headline(claim, best["effects"][0], note=f"all heads: {', '.join(self.heads)}"))
        return rows

    def figure(self) -> "Figure":
        from vesalius.figures import bars, group, table

        def cells(words: list[str], values: list[float]) -> list[dict]:
            return [{"text": word, "value": value} for word, value in zip(words, values)]

        k = self.outs.shape[-1]
        columns = [
            "head",
            "kind",
            "source",
            *(f"destination {i + 1}" for i in range(k)),
            *(f"out {i + 1}" for i in range(k)),
        ]

        def listed(rows: list[dict], title: str) -> "Figure":
            return table(
                columns,
                [
                    [
                        row["head"],
                        row["kind"],
                        row["source"],
                        *cells(row["destinations"], row["queried"]),
                        *cells(row["outs"], row["raised"]),
                    ]
                    for row in rows
                ],
                title=title,
            )

        drawn = [listed([row for row in self.rows if row["rank"] < LISTED], "Strongest skip-trigrams")]
        for title, kinds in (("Copying", KINDS[:2]), ("Split tokens", KINDS[2:])):
            if found := [row for row in self.rows if row["kind"] in kinds]:
                drawn.append(listed(found, title))
        sums = [[t["source"], t["destination"], *cells(t["outs"], t["effects"])] for t in self.together]
        drawn.append(table(["source", "destination", *columns[3 + k :]], sums, title="All heads together"))
        if self.bugs:
            bugs = [[b["head"], b["says"], b["also"], b["raised"], b["apart"]] for b in self.bugs]
            named = ["head", "says", "and so also", "raised", "told apart by the direct path"]
            drawn.append(table(named, bugs, title="Bugs of factorisation", caption="Logits."))
        if self.counts:
            series = {"this model": self.counts, "sources shuffled": self.shuffled, "random twin": self.twin}
            heights = {name: [counts[kind] for kind in KINDS] for name, counts in series.items()}
            drawn.insert(0, bars(KINDS, heights, title="Rows by spelling", y_label="rows"))
        caption = "; ".join(f"{key}: {value}" for key, value in self.choices.items())
        return group(drawn, title="Skip-trigrams", caption=caption)


@method(needs=("attention", "tokens"))
def skip_trigrams(
    model: Model,
    *,
    layer: int | None = None,
    heads: list[int] | None = None,
    source: str | None = None,
    top: int = 3,
    sources: int = 1024,
    norm: Norm = "fold",
    seed: int = 0,
) -> SkipTrigrams:
    """List what heads do with source tokens: destinations that look for them, outs that they then raise.

    Of the heads of one `layer`, or some `heads` of it; without `layer`, of all in an attention-only network,
    and in others of layer 0, which alone reads nothing but embeddings. For one `source`, or for the whole
    vocabulary, of which `seed` draws `sources` where it is larger. Raises for a source that is not one token.

    >>> from vesalius.testbed import handwritten_induction
    >>> [row["reads"] for row in skip_trigrams(handwritten_induction(), layer=1, heads=[0], source="#7").rows]
    ['#7 … #0 → #7']
    """
    every = range(model.n_layers if "attention_only" in model.kinds else 1)
    layers = every if layer is None else [layer]
    chosen = [(number, head) for number in layers for head in heads or range(model.n_heads)]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(model.d_vocab) if source is None else torch.tensor([model.token(source)])
    if len(ids) > sources:
        ids = torch.randperm(model.d_vocab, generator=generator)[:sources].sort().values
    words = model.strings(list(range(model.d_vocab)))
    spelling, tables = Spelling(words), _tables(model, chosen, ids, top, norm)
    wanted = _wanted(spelling, tables)
    counts, shuffled, p, twin = {}, {}, {}, {}
    if source is None:  # one source cannot be shuffled
        found = _count(wanted, spelling, ids)
        orders = [torch.randperm(len(ids), generator=generator) for _ in range(SHUFFLES)]
        null = torch.stack([_count(wanted, spelling, ids[order]) for order in progress(orders, "shuffles")])
        chance = (1 + (null >= found).sum(0)) / (1 + SHUFFLES) * len(KINDS)
        untrained = _wanted(spelling, _tables(model.random_twin(seed), chosen, ids, top, norm))
        numbers = found, null.double().mean(0), chance.clamp(max=1), _count(untrained, spelling, ids)
        counts, shuffled, p, twin = (dict(zip(KINDS, number.tolist())) for number in numbers)
    names = [f"{number}.{head}" for number, head in chosen]
    rows = _rows(names, words, ids, tables, _matches(wanted, spelling, ids))
    return SkipTrigrams(
        names,
        ids,
        *tables,
        rows=rows,
        together=_together(model, chosen, rows, tables, norm),
        bugs=_bugs(model, rows, words, tables, norm),
        counts=counts,
        shuffled=shuffled,
        p_values=p,
        twin=twin,
        choices={
            "path": "direct, content only",
            "norm": norm_handling(model, norm),
            "centring": "QK over sources, OV over outs and sources",
        },
    )


def _tables(
    model: Model, heads: list[tuple[int, int]], ids: Int[Tensor, " source"], top: int, norm: Norm
) -> tuple[Tensor, ...]:
    """Destinations, their QK scores, outs, their OV logits: each [head, source, rank]."""
    found = []
    for layer, head in progress(heads, "heads"):
        looks = full_qk(model, layer, head, norm=norm).centred("columns")  # [destination, source]
        moves = full_ov(model, layer, head, norm=norm).centred("both")  # [source, out]
        at = ids.to(model.device)
        queried, destinations = Factored(looks.right.mT[at], looks.left.mT).top_k(top, centre=None)
        raised, outs = Factored(moves.left[at], moves.right).top_k(top, centre=None)
        found.append([part.cpu() for part in (destinations, queried, outs, raised)])
    return tuple(torch.stack(parts) for parts in zip(*found))


def _wanted(spelling: Spelling, tables: tuple[Tensor, ...]) -> list[Int[Tensor, "head source combination"]]:
    """For each kind, what the source of a row would have to be; -1: none would do, or nothing is raised."""
    destinations, queried, outs, raised = tables
    k = outs.shape[-1]
    pairs = destinations.repeat_interleave(k, -1), outs.repeat(1, 1, k)
    both = (queried > 0).repeat_interleave(k, -1) & (raised > 0).repeat(1, 1, k)
    found = [outs, spelling.loose[outs], spelling.joined(*pairs), spelling.joined_loosely(*pairs)]
    return [tokens.where(real, -1) for tokens, real in zip(found, (raised > 0, raised > 0, both, both))]


def _matches(
    wanted: list[Tensor], spelling: Spelling, ids: Int[Tensor, " source"]
) -> list[Bool[Tensor, "head source combination"]]:
    """Where rows are of each kind, for these sources; what is exactly so is not also nearly so."""
    are = ids, spelling.loose[ids], spelling.exact[ids], spelling.loose[ids]
    same, near, split, nearly_split = ((w == s[:, None]) & (w >= 0) for w, s in zip(wanted, are))
    return [same, near & ~same, split, nearly_split & ~split]


def _count(wanted: list[Tensor], spelling: Spelling, ids: Int[Tensor, " source"]) -> Int[Tensor, " kind"]:
    return torch.stack([hits.any(-1).sum() for hits in _matches(wanted, spelling, ids)])


def _rows(
    names: list[str], words: list[str], ids: Tensor, tables: tuple[Tensor, ...], matches: list[Tensor]
) -> list[dict]:
    """The strongest rows, and the strongest of each kind, in order of strength."""
    destinations, queried, outs, raised = tables
    strength = (queried[..., 0].sigmoid() * raised[..., 0]).flatten()
    order = strength.argsort(descending=True).tolist()
    kinds = [hits.any(-1).flatten().tolist() for hits in matches]
    shown = set(order[:LISTED]).union(*([n for n in order if kind[n]][:LISTED] for kind in kinds))
    rows = []
    for rank, number in enumerate(order):
        if number in shown:
            head, place = divmod(number, len(ids))
            kind = next((k for k in range(len(KINDS)) if kinds[k][number]), None)
            match = 0 if kind is None else int(matches[kind][head, place].int().argmax())
            at, out = divmod(match, outs.shape[-1])
            rows.append(
                {
                    "head": names[head],
                    "source": words[ids[place]],
                    "kind": "" if kind is None else KINDS[kind],
                    "destinations": [words[d] for d in destinations[head, place]],
                    "queried": queried[head, place].tolist(),
                    "outs": [words[o] for o in outs[head, place]],
                    "raised": raised[head, place].tolist(),
                    "reads": _reads(words, ids[place], destinations[head, place, at], outs[head, place, out]),
                    "strength": strength[number].item(),
                    "rank": rank,
                    "at": [head, place],
                    "id": ids[place].item(),
                }
            )
    return rows


def _reads(words: list[str], source: int | Tensor, destination: Tensor, out: Tensor) -> str:
    shown = [words[token].replace(" ", "␣").replace("\n", "↵") for token in (source, destination, out)]
    return "{} … {} → {}".format(*shown)


def _together(
    model: Model, heads: list[tuple[int, int]], rows: list[dict], tables: tuple[Tensor, ...], norm: Norm
) -> list[dict]:
    """The sources of the strongest rows, each at its first destination there: what all heads add up to."""
    strongest = {row["id"]: row["at"] for row in reversed(rows)}
    sources = list(dict.fromkeys(row["id"] for row in rows))[:LISTED]
    destinations = [int(tables[0][*strongest[source], 0]) for source in sources]
    W_E = widened(model.weight("W_E"))
    at, seen, unit = W_E[destinations], W_E[sources] - W_E.mean(0), torch.eye(model.d_model).to(W_E)
    written = torch.zeros_like(seen)
    for layer, head in heads:
        looks, moves = qk(model, layer, head, norm=norm), ov(model, layer, head, norm=norm)
        score = (at @ looks.left * (seen @ looks.right.mT)).sum(-1)
        written += score.sigmoid()[:, None] * (seen @ moves.left @ moves.right)
    logits = unembed(model, Factored(written, unit), norm=norm).centred("columns").dense()
    effects, outs = logits.cpu().topk(tables[0].shape[-1])
    named = zip(
        model.strings(sources), model.strings(destinations), map(model.strings, outs), effects.tolist()
    )
    found = [{"source": s, "destination": d, "outs": o, "effects": e} for s, d, o, e in named]
    return sorted(found, key=lambda row: -row["effects"][0])


def _bugs(
    model: Model, rows: list[dict], words: list[str], tables: tuple[Tensor, ...], norm: Norm
) -> list[dict]:
    """Rows with two destinations and two outs that the direct path would pair one way only."""
    direct, found = direct_path(model, norm=norm), []
    for row in rows:
        destinations, queried, outs, raised = (table[*row["at"]] for table in tables)
        follows = (direct.left[destinations] @ direct.right[:, outs]).cpu()  # [destination, out]
        crossings = []
        for (a, b), (o, p) in product(permutations(range(len(outs)), 2), combinations(range(len(outs)), 2)):
            apart = follows[a, o] + follows[b, p] - follows[a, p] - follows[b, o]
            effect = torch.minimum(queried[a].sigmoid() * raised[p], queried[b].sigmoid() * raised[o])
            crossings.append((torch.minimum(apart, effect).item(), apart.item(), effect.item(), (a, b, o, p)))
        size, apart, effect, (a, b, o, p) = max(crossings, default=(0.0, 0.0, 0.0, (0, 0, 0, 0)))
        if size > 0:
            ao, bp, ap, bo = (
                _reads(words, row["id"], destinations[d], outs[out])
                for d, out in ((a, o), (b, p), (a, p), (b, o))
            )
            bug = {"head": row["head"], "says": f"{ao}; {bp}", "also": f"{ap}; {bo}"}
            found.append((size, bug | {"raised": effect, "apart": apart}))
    return [bug for _, bug in sorted(found, key=lambda pair: -pair[0])][:LISTED]
