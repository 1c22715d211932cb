"""What a network writes while a latent is held at its largest value.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features) start from the
numbers one to ten, pin a feature at the largest value that was seen of it, and sample: if it stands for a kind of text,
that is what comes. The latent's own tokens are those it raises most directly (`logit_weights`):

1. the share of its own tokens among those sampled, pinned and as the network is, over many continuations;
2. the same with random directions as long as the latent's own, moved by the same amount, and their own tokens: any
   direction raises the tokens that it points to, so a latent must raise its own by more.

The error of the reconstruction stays as it is: (largest − f(x)) · d is added at every position.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import Edit
from vesalius.dictionaries import Dictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.generation import generate
from vesalius.latents.inputs import (
    Activity,
    activity_of,
    inputs_of,
    moved,
    named_latents,
    random_directions,
    written,
)
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.logit_weights import logit_weights

USUAL = 2
"""Latents that are pinned if none are named."""
CANDIDATES = 64
PREFIX = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"


@dataclass(frozen=True)
class PinnedSampling(Result):
    """Shares of sampled tokens, 0..1, that are among the `own` a direction raises most; one entry for each latent."""

    site: str
    prefix: list
    """The tokens that all continuations begin with."""
    latents: list
    pins: Float[Tensor, " latent"]
    """The values they were held at: the largest seen."""
    tokens: list
    """Each latent's own, those it raises most first."""
    normal: Float[Tensor, " latent"]
    """Share of a latent's own tokens in what the network writes by itself."""
    gains: Float[Tensor, " latent"]
    """By how much it grows when the latent is pinned."""
    low: Float[Tensor, " latent"]
    high: Float[Tensor, " latent"]
    random: Float[Tensor, "direction latent"]
    """The same growth of random directions and their own tokens."""
    chance: float
    """What the best of as many latents exceeds once in a hundred times, if it is a random direction."""
    samples: dict
    """Continuations as lists of tokens: `normal`, and `pinned`, a list for each latent."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows = [
            Headline(
                f"gain of latent {latent}'s own tokens when it is pinned at {self.pins[number]:.3g}",
                self.gains[number].item(),
                self.chance,
                (self.low[number].item(), self.high[number].item()),
                self.low[number].item() > self.chance,
                f"control: random directions; {self.normal[number]:.1%} of tokens without it",
            )
            for number, latent in enumerate(self.latents)
        ]
        return rows or [
            Headline("latents that are active in this text", 0.0, evidence=False, note="control: none")
        ]

    def figure(self) -> Figure:
        if not self.latents:
            return figures.table(["latent"], [], title="No latent is active in this text")
        names = [f"latent {latent}" for latent in self.latents]
        pinned = self.normal + self.gains
        table = figures.table(
            ["latent", "pinned at", "the tokens it raises most", "as it is", "pinned", "random directions"],
            [
                [
                    name,
                    self.pins[number].item(),
                    " ".join(map(repr, self.tokens[number])),
                    f"{self.normal[number]:.1%}",
                    {"text": f"{pinned[number]:.1%}", "value": self.gains[number].item()},
                    f"{self.random[:, number].mean():+.1%}",
                ]
                for number, name in enumerate(names)
            ],
            title="How many of the tokens written are its own",
            caption="Random directions: the gain of their own tokens, moved by as much.",
        )
        told = [figures.tokens(self.prefix, [{"label": "prefix", "layers": {}}], title="All begin with")]
        told.append(_texts("As the network is", self.samples["normal"], None))
        for name, own, texts in zip(names, self.tokens, self.samples["pinned"]):
            told.append(_texts(f"{name[0].upper()}{name[1:]} pinned", texts, own))
        return figures.group([table, *told], title="What the network writes with a latent pinned")


@method(needs=("tokens", "causal"))
def pinned_sampling(
    model: Model,
    dictionary: Dictionary,
    *,
    latents: list[int] | None = None,
    prefix: str | None = None,
    text: str | None = None,
    contexts: int = 32,
    length: int = 64,
    samples: int = 8,
    tokens: int = 12,
    own: int = 10,
    temperature: float = 1.0,
    directions: int = 4,
    seed: int = 0,
) -> PinnedSampling:
    """What a network writes after a prefix while a latent is held at the largest value it was seen to take.

    `latents` are numbers (None: those that move a logit most at their largest value), `prefix` is what comes first
    (None: the numbers one to ten, or for a model without tokenizer the first tokens of what it is shown), and `text` is
    where the largest values are looked for (None: the held-out sample). `samples` continuations of `tokens` tokens are
    drawn, and of each direction the `own` tokens are counted that it raises most. Raises VesaliusError if the way from
    the site to the logits is not known, or prefix and continuation do not fit the context.
    """
    inputs = inputs_of(model, text=text, contexts=contexts, length=length, seed=seed)
    assert inputs.ids is not None
    if prefix is None and "tokenizer" not in model.kinds:
        start = inputs.ids[0, : min(11, inputs.ids.shape[1])]
    else:
        start = model.tokens(prefix or PREFIX)[0].cpu()
    tokens = min(tokens, model.n_ctx - len(start))
    if tokens < 1:
        raise VesaliusError(f"the prefix has {len(start)} tokens; {model.name} reads at most {model.n_ctx}")
    activity = activity_of(model, dictionary, inputs)
    chosen = named_latents(latents, activity, usual=CANDIDATES)
    chosen = [latent for latent in chosen if activity.maxima[latent] > 0]
    if latents is None:
        chosen = _strongest(model, dictionary, chosen, activity)
    prompts = start.expand(samples, -1)

    def written_under(edits: Mapping[str, Edit]) -> Int[Tensor, "sample token"]:
        return torch.tensor(
            generate(model, prompts, tokens=tokens, edits=edits, temperature=temperature, seed=seed)
        )

    normal = written_under({})
    pinned, theirs, gains, bounds, shares, nulls = [], [], [], [], [], []
    for latent in progress(chosen, "latents"):
        along, pin = written(dictionary, latent), activity.maxima[latent].item()
        raised = _own(model, dictionary.site, along[None], own)[0]
        made = written_under(moved(dictionary, latent, lambda f, pin=pin: torch.full_like(f, pin)))
        gain = _share(made, raised) - _share(normal, raised)
        null = []
        others = random_directions(along, directions, seed=seed + 1 + latent)
        for other, favoured in zip(others, _own(model, dictionary.site, others, own)):
            edits = moved(dictionary, latent, lambda f, pin=pin: torch.full_like(f, pin), direction=other)
            null.append((_share(written_under(edits), favoured) - _share(normal, favoured)).mean().item())
        pinned.append(made)
        theirs.append(raised)
        gains.append(gain.mean().item())
        bounds.append(bootstrap(gain, seed=seed))
        shares.append(_share(normal, raised).mean().item())
        nulls.append(null)
    random = torch.tensor(nulls).T
    return PinnedSampling(
        site=dictionary.site,
        prefix=model.strings(start),
        latents=chosen,
        pins=activity.maxima[chosen],
        tokens=[model.strings(raised) for raised in theirs],
        normal=torch.tensor(shares),
        gains=torch.tensor(gains),
        low=torch.tensor([low for low, _ in bounds]),
        high=torch.tensor([high for _, high in bounds]),
        random=random,
        chance=family_wise(random) if chosen else 0.0,
        samples={
            "normal": [model.strings(row) for row in normal],
            "pinned": [[model.strings(row) for row in made] for made in pinned],
        },
        choices={
            "data": inputs.described,
            "data_hash": inputs.hash,
            "temperature": temperature,
            "pinned": "at all positions; the error of the reconstruction stays",
        },
    )


def _strongest(model: Model, dictionary: Dictionary, latents: list[int], activity: Activity) -> list[int]:
    """Of some latents those that raise a token's logit most when they are pinned."""
    if not latents:
        return []
    directions = torch.stack([written(dictionary, latent) for latent in latents])
    raises = logit_weights(model, dictionary.site, directions).amax(1).cpu() * activity.maxima[latents]
    return [latents[place] for place in raises.topk(min(USUAL, len(latents))).indices.tolist()]


def _own(
    model: Model, site: str, directions: Float[Tensor, "direction width"], n: int
) -> Int[Tensor, "direction token"]:
    """The tokens whose logits each direction raises most."""
    return logit_weights(model, site, directions).topk(min(n, model.d_vocab)).indices.cpu()


def _share(made: Int[Tensor, "sample token"], raised: Int[Tensor, " own"]) -> Float[Tensor, " sample"]:
    found: Bool[Tensor, "sample token"] = torch.isin(made, raised)
    return found.float().mean(1)


def _texts(title: str, texts: list[list[str]], own: list[str] | None, *, shown: int = 5) -> Figure:
    rows = [
        {
            "label": f"sample {number}",
            "tokens": text,
            "layers": {} if own is None else {"its own": [float(token in own) for token in text]},
        }
        for number, text in enumerate(texts[:shown])
    ]
    return figures.tokens([], rows, title=title)
