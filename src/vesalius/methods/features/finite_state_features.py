"""Latents that call up latents: what one makes likely is what another answers to, like states of a machine.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features) find features of one
layer that work together through the text they write: a feature raises tokens which, once written, activate it again or
activate another, as one for HTML does.

1. of each latent the `own` tokens whose logits it raises most (`logit_weights`), of those that the text holds;
2. how often each latent is active on each token of the vocabulary, in a text;
3. the transition i → j: the share of i's own tokens on which j is active, each token counting alike. i → i is a latent
   that keeps itself going.

The control gives every latent the own tokens of another one, many times over: what is left is how often latents are
active on tokens that some latent raises. Beside each transition stands what the text says: how often j is active one
token after i is, and how often it is at all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary
from vesalius.figures import Figure
from vesalius.latents.inputs import Inputs, activity_of, codes_of, inputs_of, written
from vesalius.method import method
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.logit_weights import logit_weights

SHUFFLES = 1000
SEEN = 3
"""How often a token must stand in the text for it to be told what is active on it."""
WORDS = 4
"""Tokens that are shown of a latent."""


@dataclass(frozen=True)
class FiniteStateFeatures(Result):
    """Transitions, 0..1, between latents that are active in the text."""

    site: str
    latents: Int[Tensor, " latent"]
    tokens: list
    """The tokens that each raises most, as text."""
    densities: Float[Tensor, " latent"]
    itself: Float[Tensor, " latent"]
    """i → i."""
    low: float
    high: float
    """Of its mean over latents."""
    shuffled: Float[Tensor, " shuffle"]
    """Means of i → i with the own tokens of other latents."""
    edges: list
    """The strongest transitions, above a latent's density: `{"from", "to", "transition", "follows", "density"}`; the
    last two are how often the second is active in the text one token after the first, and how often it is."""
    choices: dict

    @property
    def chance(self) -> float:
        """What the mean exceeds once in a hundred shuffles."""
        return self.shuffled.quantile(0.99).item() if len(self.shuffled) else 0.0

    def headlines(self) -> list[Headline]:
        if not len(self.latents):
            return [
                Headline("latents that are active in this text", 0.0, evidence=False, note="control: none")
            ]
        mean, most = self.itself.mean().item(), int(self.itself.argmax())
        loops = int((self.itself > 0.5).sum())
        rows = [
            Headline(
                "how often a latent is active on the tokens that it raises most",
                mean,
                self.chance,
                (self.low, self.high),
                self.low > self.chance,
                "control: the tokens that other latents raise, once in a hundred shuffles",
            ),
            Headline(
                f"latent {int(self.latents[most])} on its own tokens",
                self.itself[most].item(),
                self.densities[most].item(),
                note=f"control: its density; {loops} of {len(self.latents)} latents are on at most of theirs",
            ),
        ]
        others = [edge for edge in self.edges if edge["from"] != edge["to"]]
        if others:
            best = others[0]
            rows.append(
                Headline(
                    f"latent {best['from']} to latent {best['to']}",
                    best["transition"],
                    best["density"],
                    note=f"control: its density; in the text it follows {best['follows']:.1%} of times",
                )
            )
        return rows

    def figure(self) -> Figure:
        if not len(self.latents):
            return figures.table(["latent"], [], title="No latent is active in this text")
        words = dict(zip(self.latents.tolist(), self.tokens))
        drawn = [
            figures.histogram(
                {"latents": self.itself, "how often they are active at all": self.densities},
                title="How often latents are active on the tokens that they raise most",
                x_label="share of those tokens",
                references=[
                    ("x", self.chance, "mean, 1 in 100 shuffles"),
                    ("x", self.itself.mean().item(), "mean"),
                ],
            ),
            figures.table(
                ["from", "raises", "to", "is active on", "follows in the text", "is active at all"],
                [
                    [
                        str(edge["from"]),
                        " ".join(map(repr, words[edge["from"]])),
                        "itself" if edge["to"] == edge["from"] else str(edge["to"]),
                        {"text": f"{edge['transition']:.0%}", "value": edge["transition"]},
                        {"text": f"{edge['follows']:.1%}", "value": edge["follows"]},
                        f"{edge['density']:.2%}",
                    ]
                    for edge in self.edges
                ],
                title="The strongest transitions",
            ),
        ]
        chain = [edge for edge in self.edges if edge["from"] != edge["to"]]
        if chain:
            ends = list(dict.fromkeys(edge[end] for edge in chain for end in ("from", "to")))
            raising = {edge["from"] for edge in chain}
            drawn.append(
                figures.graph(
                    [
                        {
                            "id": str(latent),
                            "label": f"{latent}: " + " ".join(map(repr, words[latent][:2])),
                            "column": 0 if latent in raising else 1,
                        }
                        for latent in ends
                    ],
                    [
                        {
                            "source": str(edge["from"]),
                            "target": str(edge["to"]),
                            "weight": edge["transition"],
                            "kind": "raises the tokens of",
                        }
                        for edge in chain
                    ],
                    title="Which latents call up which",
                )
            )
        return figures.group(drawn, title="Latents as states")


@method(needs=("tokens", "causal"))
def finite_state_features(
    model: Model,
    dictionary: Dictionary,
    *,
    text: str | None = None,
    contexts: int = 64,
    length: int = 128,
    n_latents: int = 512,
    own: int = 10,
    edges: int = 12,
    seed: int = 0,
) -> FiniteStateFeatures:
    """Latents whose likeliest next tokens activate themselves or one another.

    The `n_latents` that are most often active in `text` (None: the held-out sample) are looked at, but for those active
    at more than a tenth of all tokens. They form a machine if the whole interval of the mean transition of a latent to
    itself lies above what one in a hundred shuffles exceeds. Raises VesaliusError if the way from the site to the
    logits is not known.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    activity = activity_of(model, dictionary, inputs)
    usual = (activity.counts <= activity.rows / 10) & (activity.counts > 0)
    order = torch.where(usual, activity.counts, -1).argsort(descending=True)[:n_latents]
    latents = order[usual[order]].sort().values
    densities = activity.counts[latents] / activity.rows
    raised = _raised(model, dictionary, inputs, latents, own)
    transitions = _transitions(model, dictionary, inputs, latents, raised)
    itself = transitions.diagonal().clone()
    low, high = bootstrap(itself, seed=seed) if len(latents) else (0.0, 0.0)
    found = _strongest(transitions, densities, edges)
    follows = _follows(model, dictionary, inputs, latents[found])
    return FiniteStateFeatures(
        site=dictionary.site,
        latents=latents,
        tokens=[model.strings(row[:WORDS]) for row in raised],
        densities=densities,
        itself=itself,
        low=low,
        high=high,
        shuffled=_shuffled(transitions, seed=seed),
        edges=[
            {
                "from": int(latents[i]),
                "to": int(latents[j]),
                "transition": transitions[i, j].item(),
                "follows": share,
                "density": densities[j].item(),
            }
            for (i, j), share in zip(found.tolist(), follows)
        ],
        choices={
            "data": inputs.described,
            "data_hash": inputs.hash,
            "own tokens": own,
            "unseen tokens": "left out",
        },
    )


def _raised(
    model: Model, dictionary: Dictionary, inputs: Inputs, latents: Tensor, own: int
) -> Int[Tensor, "latent own"]:
    """The tokens whose logits each latent raises most, of those that the text holds."""
    assert inputs.ids is not None and inputs.counts is not None
    held = (inputs.ids[inputs.counts].bincount(minlength=model.d_vocab) >= SEEN).nonzero()[:, 0]
    if not len(latents) or not len(held):
        return torch.zeros(len(latents), 0, dtype=torch.long)
    directions = torch.stack([written(dictionary, latent) for latent in latents.tolist()])
    weights = logit_weights(model, dictionary.site, directions).cpu()[:, held]
    return held[weights.topk(min(own, len(held))).indices]


def _transitions(
    model: Model, dictionary: Dictionary, inputs: Inputs, latents: Tensor, raised: Int[Tensor, "latent own"]
) -> Float[Tensor, "latent latent"]:
    """The share of the tokens that i raises on which j is active, each of its tokens counting alike."""
    assert inputs.ids is not None
    if not raised.numel():
        return torch.zeros(len(latents), len(latents))
    tokens, place = raised.unique(return_inverse=True)
    of_token = torch.full((model.d_vocab,), -1)
    of_token[tokens] = torch.arange(len(tokens))
    active, seen = torch.zeros(len(tokens) * len(latents)), torch.zeros(len(tokens))
    number = _numbers(latents)
    for examples, positions, codes in codes_of(model, dictionary, inputs):
        token = of_token[inputs.ids[examples, positions]]
        seen += token[token >= 0].bincount(minlength=len(tokens))
        row, latent = token[codes.rows.cpu()], number(codes.latents.cpu())
        kept = (row >= 0) & (latent >= 0)
        active += (row[kept] * len(latents) + latent[kept]).bincount(minlength=len(active))
    shares = active.view(len(tokens), -1) / seen.clamp(min=1)[:, None]
    weight = torch.zeros(len(latents), len(tokens)).scatter_add_(1, place, torch.ones(place.shape))
    return weight @ shares / max(place.shape[1], 1)


def _numbers(latents: Int[Tensor, " chosen"]):
    """Where latents stand among the chosen, -1 for the others."""
    place = torch.full((int(latents.max()) + 2 if len(latents) else 1,), -1)
    place[latents] = torch.arange(len(latents))
    return lambda given: place[given.clamp(max=len(place) - 1)]


def _shuffled(transitions: Float[Tensor, "latent latent"], *, seed: int) -> Float[Tensor, " shuffle"]:
    generator = torch.Generator().manual_seed(seed)
    n = len(transitions)
    if n < 2:
        return torch.zeros(0)
    orders = (torch.randperm(n, generator=generator) for _ in range(SHUFFLES))
    return torch.stack([transitions[torch.arange(n), order].mean() for order in orders])


def _strongest(
    transitions: Float[Tensor, "latent latent"], densities: Float[Tensor, " latent"], n: int
) -> Int[Tensor, "edge end"]:
    """Half to themselves and half to others, those farthest above the density of the second."""
    if not len(transitions):
        return torch.zeros(0, 2, dtype=torch.long)
    above = transitions - densities
    loops = above.diagonal().topk(min(n // 2, len(above))).indices
    others = above.clone().fill_diagonal_(-1.0)
    best = others.flatten().topk(min(n - n // 2, others.numel())).indices
    pairs = torch.stack([best // len(above), best % len(above)], 1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return torch.cat([loops[:, None].expand(-1, 2), pairs])


def _follows(
    model: Model, dictionary: Dictionary, inputs: Inputs, edges: Int[Tensor, "edge end"]
) -> list[float]:
    """How often the second latent of an edge is active one token after the first."""
    assert inputs.ids is not None and inputs.counts is not None
    ends, place = edges.unique(return_inverse=True)
    number = _numbers(ends)
    both, first = torch.zeros(len(edges)), torch.zeros(len(edges))
    for examples, positions, codes in codes_of(model, dictionary, inputs):
        low = int(examples.min())
        active = torch.zeros(int(examples.max()) - low + 1, inputs.ids.shape[1], len(ends))
        row, latent = codes.rows.cpu(), number(codes.latents.cpu())
        kept = latent >= 0
        active[examples[row[kept]] - low, positions[row[kept]], latent[kept]] = 1.0
        before, after = active[:, :-1, place[:, 0]], active[:, 1:, place[:, 1]]
        first += before.sum((0, 1))
        both += (before * after).sum((0, 1))
    return (both / first.clamp(min=1)).tolist()
