"""Random tokens, repeated: the input on which an induction head has the only useful thing to say.

Olsson et al. 2022 (arXiv 2209.11895): nothing in the first copy is predictable, everything in the second one
is, and only by looking back. No tokenizer is needed.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from vesalius.errors import VesaliusError


@runtime_checkable
class Vocabulary(Protocol):
    """Anything that knows how many tokens it has, and which of them begins a text."""

    @property
    def d_vocab(self) -> int: ...
    @property
    def bos(self) -> int | None: ...


def repeated_random_tokens(
    vocabulary: Vocabulary | int,
    *,
    length: int,
    batch: int,
    repeats: int = 2,
    bos: int | None = None,
    exclude: Sequence[int] = (),
    seed: int = 0,
) -> Int[Tensor, "batch pos"]:
    """Rows [BOS, r, r, …]: `length` random tokens, drawn uniformly, `repeats` times over.

    The tokens within r differ while the vocabulary is large enough, so that each has exactly one previous
    occurrence. BOS is left out if neither `bos` nor the vocabulary names one, and is never one of the r.

    >>> repeated_random_tokens(9, length=3, batch=1, bos=0, seed=1).shape
    torch.Size([1, 7])
    """
    if isinstance(vocabulary, int):
        d_vocab = vocabulary
    else:
        d_vocab, bos = vocabulary.d_vocab, vocabulary.bos if bos is None else bos
    if length < 2 or repeats < 1 or batch < 1:
        raise VesaliusError(
            f"repeated tokens need length >= 2, repeats >= 1, batch >= 1; given {length}, {repeats}, {batch}."
        )
    usable = torch.ones(d_vocab, dtype=torch.bool)
    usable[[*exclude, *([] if bos is None else [bos])]] = False
    choices = usable.nonzero()[:, 0]
    if len(choices) < 2:
        raise VesaliusError(f"only {len(choices)} of {d_vocab} tokens are left to draw from; two are needed.")
    generator = torch.Generator().manual_seed(seed)
    if len(choices) >= length:
        shuffles = [torch.randperm(len(choices), generator=generator) for _ in range(batch)]
        order = torch.stack(shuffles)[:, :length]
    else:
        order = torch.randint(len(choices), (batch, length), generator=generator)
    rows = choices[order].repeat(1, repeats)
    return rows if bos is None else torch.nn.functional.pad(rows, (1, 0), value=bos)
