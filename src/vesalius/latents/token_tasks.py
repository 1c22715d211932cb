"""Binary questions about tokens, and what a dictionary's latents have to do with the answers.

What SAEBench (Karvonen et al. 2025, arXiv 2503.09532) asks of dictionaries with labelled texts is asked here of any
text: of what class is this token, and of what class the next one. Methods that do so share this: the tasks, rows
drawn so that answers are as often yes as no, the network beside its twins, the latents that account for an answer, and
activations without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.data.token_classes import CLASSES, members
from vesalius.dictionaries import Dictionary, SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.latents.inputs import Inputs
from vesalius.latents.token_codes import TokenCodes, token_codes
from vesalius.metrics import resampled
from vesalius.model import Model
from vesalius.probes import Labelled, LinearProbes, logistic, splits

MOST = 2000
"""Rows that a probe is fitted on or judged by."""
PENALTY = 1e-2


@dataclass(frozen=True, eq=False)
class Subjects:
    """A network with its dictionary, and its twins with the same directions; all have read the same tokens."""

    found: list[TokenCodes]
    dictionaries: list[Dictionary]
    strings: list[str]
    """The vocabulary."""
    seed: int

    def __len__(self) -> int:
        return len(self.found)

    def require(self, ablated: int) -> None:
        """Raise VesaliusError if there are not so many latents to take away."""
        latents = self.found[0].codes.width
        if not 1 <= ablated <= latents:
            raise VesaliusError(f"{ablated} latents to take away were given; there are {latents}")

    @property
    def tokens(self) -> Int[Tensor, " row"]:
        return self.found[0].tokens

    @property
    def contexts(self) -> Int[Tensor, " row"]:
        return self.found[0].contexts

    @cached_property
    def acts(self) -> Float[Tensor, "subject row width"]:
        return torch.stack([found.acts for found in self.found if found.acts is not None])

    @cached_property
    def parts(self) -> tuple[Int[Tensor, " fitted"], Int[Tensor, " judged"]]:
        """Rows to fit on and rows to judge by, of different contexts."""
        found = splits(self.contexts, shares=(0.5, 0.1, 0.4), seed=self.seed)
        return torch.cat([found.train, found.validation]), found.test

    @cached_property
    def directions(self) -> list[Float[Tensor, "latent width"]]:
        """What the latents of each subject's dictionary write."""
        width = self.acts.shape[2]
        return [_directions(dictionary, width) for dictionary in self.dictionaries]

    def tasks(self, *, least: int) -> dict[str, Bool[Tensor, " row"]]:
        """Questions that have `least` rows of both answers to fit on and to judge by.

        Raises VesaliusError if there are none.
        """
        table = members(list(CLASSES), self.strings)
        following = self.found[0].following
        asked = {name: table[number][self.tokens] for number, name in enumerate(CLASSES)}
        asked |= {
            f"next {name}": table[number][following.clamp(min=0)] & (following >= 0)
            for number, name in enumerate(CLASSES)
        }
        kept = {
            name: yes
            for name, yes in asked.items()
            if all(min(int(yes[part].sum()), int((~yes[part]).sum())) >= least for part in self.parts)
        }
        if not kept:
            raise VesaliusError(
                f"no class of tokens is on {least} tokens of {len(self.tokens)}; give more text"
            )
        return kept

    def balanced(self, cells: Int[Tensor, " row"], part: int) -> Int[Tensor, " some"]:
        """Of one of `parts`, as many rows of each cell, 0 and up; rows of -1 are left out."""
        rows = self.parts[part]
        known = cells[rows]
        sizes = known[known >= 0].bincount()
        count = min(int(sizes.min()), MOST // len(sizes))
        generator = torch.Generator().manual_seed(self.seed + 7 * part)
        drawn = rows[torch.randperm(len(rows), generator=generator)]
        return torch.cat([drawn[cells[drawn] == cell][:count] for cell in range(len(sizes))])

    def probes(self, rows: Int[Tensor, " some"], yes: Bool[Tensor, " row"]) -> LinearProbes:
        """For each subject a logistic regression on its activations."""
        return logistic(Labelled.of(self.acts[:, rows], yes[rows].long()), penalty=PENALTY, iterations=30)

    def hits(
        self, right: Bool[Tensor, "condition some"], rows: Int[Tensor, " some"]
    ) -> Float[Tensor, "context condition two"]:
        """By context, how many answers are right and how many there are."""
        table = torch.zeros(len(self.found[0].ids), len(right), 2)
        answers = torch.stack([right.float(), torch.ones(right.shape)], 2)
        return table.index_add_(0, self.contexts[rows], answers.transpose(0, 1))

    def accounting(
        self, subject: int, probes: LinearProbes, rows: Int[Tensor, " some"], yes: Bool[Tensor, " row"]
    ) -> Float[Tensor, " latent"]:
        """How much of a probe's answer each latent accounts for: difference of its mean codes times its effect."""
        direction = probes.direction(subject, 0, of=1, less=0)
        mean, _ = moments_of(self.found[subject], rows, yes)
        return (mean[:, 1] - mean[:, 0]) * (self.directions[subject] @ direction)

    def without(
        self, subject: int, latents: Sequence[int], rows: Int[Tensor, " some"]
    ) -> Float[Tensor, "some width"]:
        """Activations with some latents held at their mean over these rows."""
        codes = self.found[subject].columns(latents)[rows]
        return self.acts[subject, rows] - (codes - codes.mean(0)) @ self.directions[subject][list(latents)]

    def drawn(self, count: int, number: int) -> list[int]:
        """Latents of the network at random, likelier the oftener they are active, as those are that account."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + number)
        active = self.found[0].active
        return (
            active.float().clamp(min=1e-9).multinomial(min(count, len(active)), generator=generator).tolist()
        )


def subjects_of(model: Model, dictionary: Dictionary, inputs: Inputs, *, twins: int, seed: int) -> Subjects:
    """The network and `twins` whose weights are shuffled. Raises VesaliusError for a transcoder."""
    if isinstance(dictionary, SparseDictionary) and dictionary.source:
        raise VesaliusError(
            f"{dictionary} writes elsewhere than it reads; expected a dictionary of one site's own activations"
        )
    found = [token_codes(model, dictionary, inputs, with_acts=True)]
    k = round(found[0].active.sum().item() / len(found[0].codes))
    plain = untrained(dictionary, k)
    for number in range(twins):
        twin = model.shuffled_twin(seed + 1 + number)
        found.append(token_codes(twin, plain, inputs, with_acts=True))
    dictionaries = [dictionary, *[plain] * twins]
    return Subjects(found, dictionaries, model.strings(list(range(model.d_vocab))), seed)


def untrained(dictionary: Dictionary, k: int) -> Dictionary:
    """The same directions, `k` of them active, without what was fitted to the trained network's activations."""
    if not isinstance(dictionary, SparseDictionary):
        return dictionary
    nothing = torch.zeros_like(dictionary.b_enc)
    return replace(
        dictionary, b_enc=nothing, threshold=nothing, b_in=None, k=min(max(k, 1), dictionary.latents)
    )


def moments_of(
    found: TokenCodes, rows: Int[Tensor, " some"], yes: Bool[Tensor, " row"]
) -> tuple[Float[Tensor, "latent answer"], Float[Tensor, "latent answer"]]:
    """Of every latent's codes the mean and the variance over the rows of each answer, no and yes."""
    of_answer = torch.zeros(len(yes), 2)
    of_answer[rows, yes[rows].long()] = 1
    of_answer /= of_answer.sum(0).clamp(min=1)
    mean, square = found.sums(of_answer), found.sums(of_answer, power=2)
    return mean, (square - mean.square()).clamp(min=0)


def separation(
    mean: Float[Tensor, "unit answer"], variance: Float[Tensor, "unit answer"]
) -> Float[Tensor, " unit"]:
    """How far apart the means of both answers are, in standard deviations."""
    return (mean[:, 1] - mean[:, 0]).abs() / (variance.mean(1).sqrt() + 1e-6)


def shares(
    hits: Float[Tensor, "context *rest two"], *, seed: int
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "draw *rest"]]:
    """Shares of right answers, and the same with contexts drawn again."""
    mean, draws = hits.mean(0), resampled(hits, seed=seed)
    return tuple(part[..., 0] / part[..., 1].clamp(min=1e-9) for part in (mean, draws))  # pyright: ignore[reportReturnType]


def _directions(dictionary: Dictionary, width: int) -> Float[Tensor, "latent width"]:
    if isinstance(dictionary, SparseDictionary):
        return dictionary.W_dec.float()
    count = dictionary.encode(torch.zeros(1, width)).shape[1]
    return torch.stack([dictionary[latent].written(width) for latent in range(count)])
