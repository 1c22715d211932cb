"""What latents do on every token of some contexts, with what the tokens are.

Methods that ask what a latent means in terms of tokens share this: one pass over the contexts, in which codes are
kept without their zeros, and tables `[context, position]` of the latents that are asked about.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.dictionaries import Codes, Dictionary
from vesalius.errors import VesaliusError
from vesalius.latents.inputs import Inputs, activations_of, coded, reads
from vesalius.metrics import require_finite
from vesalius.model import Model


@dataclass(frozen=True, eq=False)
class TokenCodes:
    """Rows are the tokens that count, context after context."""

    ids: Int[Tensor, "context pos"]
    counts: Bool[Tensor, "context pos"]
    codes: Codes
    acts: Float[Tensor, "row width"] | None
    """What was encoded, if it was asked for."""

    @property
    def tokens(self) -> Int[Tensor, " row"]:
        return self.ids[self.counts]

    @property
    def contexts(self) -> Int[Tensor, " row"]:
        """The context of each row."""
        return self.counts.nonzero()[:, 0]

    @property
    def following(self) -> Int[Tensor, " row"]:
        """The token after each, -1 at the end of a context."""
        after = torch.nn.functional.pad(self.ids[:, 1:], (0, 1), value=-1)
        return after[self.counts]

    @cached_property
    def active(self) -> Int[Tensor, " latent"]:
        """On how many tokens each latent is above 0."""
        return self.codes.latents[self.codes.values > 0].bincount(minlength=self.codes.width)

    def columns(self, latents: Sequence[int]) -> Float[Tensor, "row latent"]:
        """The codes of some latents, with zeros."""
        slot = torch.full((self.codes.width,), -1)
        slot[torch.tensor(latents, dtype=torch.long)] = torch.arange(len(latents))
        mine = slot[self.codes.latents] >= 0
        full = torch.zeros(len(self.codes), len(latents))
        full[self.codes.rows[mine], slot[self.codes.latents[mine]]] = self.codes.values[mine].float()
        return full

    def tables(self, latents: Sequence[int]) -> Float[Tensor, "latent context pos"]:
        """The same by context and position, 0 where a token does not count."""
        full = torch.zeros(len(latents), *self.ids.shape)
        full[:, self.counts] = self.columns(latents).T
        return full

    def sums(self, weights: Float[Tensor, "row class"], *, power: int = 1) -> Float[Tensor, "latent class"]:
        """Of every latent's codes to a power, weighted over the rows, however many latents there are."""
        summed = torch.zeros(self.codes.width, weights.shape[1])
        values = self.codes.values.float() ** power
        return summed.index_add_(0, self.codes.latents, values[:, None] * weights[self.codes.rows])


def token_codes(
    model: Model, dictionary: Dictionary, inputs: Inputs, *, with_acts: bool = False
) -> TokenCodes:
    """One pass. Raises VesaliusError for pictures, and for activations that are not finite."""
    if inputs.ids is None or inputs.counts is None:
        raise VesaliusError(f"{model.name} reads pictures; this is asked of networks that read text")
    found, kept = [], []
    for part in activations_of(model, reads(dictionary), inputs):
        rows = require_finite(part.rows, reads(dictionary)).float()
        found.append(_on_cpu(coded(dictionary, rows)))
        if with_acts:
            kept.append(rows.cpu())
    return TokenCodes(inputs.ids, inputs.counts, Codes.joined(found), torch.cat(kept) if kept else None)


def _on_cpu(codes: Codes) -> Codes:
    return Codes(codes.starts.cpu(), codes.latents.cpu(), codes.values.cpu(), codes.width)
