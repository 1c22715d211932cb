"""The frequencies by which a network adds modulo p, read off its logits for all pairs of numbers.

Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217):
trained on a + b mod p, small transformers turn numbers into rotations of a few key frequencies k and answer
with Σ_k cos(2πk(a + b - c)/p).

1. The logits of all pairs (a, b) and answers c, without their mean over answers, are projected on
   cos(2πk(a + b - c)/p) for every k from 1 to (p - 1)/2; these directions are orthogonal.
2. The share of a frequency is that of the logits' variance; it is a key frequency if its share is at least
   `least` and passes what the largest share of a random-init twin passes once in a hundred times.
3. Excluded loss: the loss without that one frequency. Restricted loss: with the key frequencies alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.errors import Inapplicable, VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import family_wise
from vesalius.model import Model
from vesalius.result import Headline, Result


@dataclass(frozen=True)
class FourierFrequencies(Result):
    """For k = 1, 2, …: its share of the logits' variance in 0..1 and the loss without it; losses in nats."""

    p: int
    shares: Float[Tensor, " frequency"]
    excluded: Float[Tensor, " frequency"]
    key: list
    """Key frequencies, the largest share first."""
    chance: float
    twin_shares: Float[Tensor, "twin frequency"]
    loss: float
    restricted: float
    accuracy: float
    """Share of pairs whose largest logit is at a + b mod p."""
    choices: dict

    def headlines(self) -> list[Headline]:
        explained = sum(self.shares[k - 1].item() for k in self.key)
        named = ", ".join(map(str, sorted(self.key))) or "none"
        control = self.twin_shares.sum(1).mean().item()
        return [
            Headline(
                f"variance of the logits at the key frequencies ({named})",
                explained,
                control,
                evidence=bool(self.key),
                note=f"p = {self.p}; control: all frequencies of random-init twins",
            ),
            Headline(
                "loss with the key frequencies alone, nats",
                self.restricted,
                self.loss,
                note="control: all logits",
            ),
            Headline("sums that are right", self.accuracy, 1 / self.p, note="control: a guess"),
        ]

    def figure(self) -> Figure:
        frequencies = list(range(1, len(self.shares) + 1))
        twin = self.twin_shares.mean(0)
        return figures.group(
            [
                figures.lines(
                    frequencies,
                    {"this model": self.shares, "random twin": twin},
                    title="Share of the logits' variance",
                    x_label="frequency",
                    y_label="share",
                    marks=[(k, str(k)) for k in self.key],
                ),
                figures.lines(
                    frequencies,
                    {"without one": self.excluded, "with all": torch.full_like(self.excluded, self.loss)},
                    title="Excluded loss",
                    x_label="frequency",
                    y_label="loss, nats",
                ),
            ],
            title=f"Addition modulo {self.p}: {len(self.key)} key frequencies",
        )


@method()
@torch.no_grad()
def fourier_frequencies(
    model: Model,
    *,
    p: int | None = None,
    suffix: list[int] | None = None,
    least: float = 0.01,
    twins: int = 5,
    seed: int = 0,
) -> FourierFrequencies:
    """Key frequencies of addition modulo `p`, their shares of the logits, and the loss without each of them.

    The model reads a, b and the tokens of `suffix` (None: nothing, often a token for "="), and its last
    position is taken; tokens 0 to p - 1 are the numbers. `p` None: as many as there are logits, at most 113.
    Raises VesaliusError for a p below 3 or above the number of logits.

    >>> from vesalius.testbed import modular_addition
    >>> fourier_frequencies(modular_addition([3, 5], p=13)).key
    [3, 5]
    """
    if p is None and "tokenizer" in model.kinds:
        raise Inapplicable(f"{model.name} reads text; give p to a network that adds modulo p")
    if "images" in model.kinds:
        raise Inapplicable(f"{model.name} reads pictures; this is about networks that add two numbers")
    outputs = model.logits(torch.tensor([[0, 0, *(suffix or [])]])).shape[-1]
    p = min(outputs, 113) if p is None else p
    if not 3 <= p <= outputs:
        raise VesaliusError(f"p is {p}; it must lie between 3 and the number of logits, {outputs}")
    logits, sums = _logits(model, p, suffix or [])
    amplitudes, shares = _amplitudes(logits, sums)
    nulls = [model.random_twin(seed + 1 + number) for number in range(twins)]
    null = torch.stack(
        [_amplitudes(*_logits(twin, p, suffix or []))[1] for twin in progress(nulls, "random-init twins")]
    )
    chance = family_wise(null)
    key = [int(k) + 1 for k in shares.argsort(descending=True, stable=True) if shares[k] > max(chance, least)]
    waves = _waves(p)
    without = [logits - amplitude * wave[_off(sums, p)] for amplitude, wave in zip(amplitudes, waves)]
    only = sum((amplitudes[k - 1] * waves[k - 1][_off(sums, p)] for k in key), torch.zeros_like(logits))
    return FourierFrequencies(
        p=p,
        shares=shares,
        excluded=torch.stack([F.cross_entropy(changed, sums) for changed in without]),
        key=key,
        chance=chance,
        twin_shares=null,
        loss=F.cross_entropy(logits, sums).item(),
        restricted=F.cross_entropy(only, sums).item(),
        accuracy=(logits.argmax(-1) == sums).float().mean().item(),
        choices={"suffix": suffix or [], "least": least, "centring": "over answers", "pairs": "all"},
    )


def _logits(model: Model, p: int, suffix: list[int]) -> tuple[Float[Tensor, "pair answer"], Tensor]:
    """Logits of the answers 0 to p - 1 for every pair, without their mean, and the sums."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    ids = torch.cat([pairs, torch.tensor(suffix, dtype=torch.long).expand(len(pairs), -1)], 1)
    logits = torch.cat([model.logits(part)[:, -1, :p].double().cpu() for part in ids.split(1024)])
    return logits - logits.mean(1, keepdim=True), pairs.sum(1) % p


def _amplitudes(
    logits: Float[Tensor, "pair answer"], sums: Tensor
) -> tuple[Float[Tensor, " frequency"], Float[Tensor, " frequency"]]:
    """Of each cos(2πk(a + b - c)/p): its amplitude, and its share of the squared logits."""
    p = logits.shape[1]
    by_distance = torch.zeros(p, dtype=logits.dtype).index_add_(0, _off(sums, p).flatten(), logits.flatten())
    amplitudes = _waves(p) @ by_distance * 2 / p**3
    return amplitudes, amplitudes.square() * p**3 / 2 / logits.square().sum().clamp(min=1e-30)


def _off(sums: Tensor, p: int) -> Tensor:
    """a + b - c modulo p, for every pair and every answer c."""
    return (sums[:, None] - torch.arange(p)) % p


def _waves(p: int) -> Float[Tensor, "frequency distance"]:
    """cos(2πkd/p) for every frequency k and distance d."""
    return (2 * math.pi * torch.outer(torch.arange(1, (p + 1) // 2), torch.arange(p)).double() / p).cos()
