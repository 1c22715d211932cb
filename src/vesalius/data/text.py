"""Text as rows of tokens: the sample that ships with the zoo, or any text of the reader's own."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from vesalius.data.repeated import repeated_random_tokens
from vesalius.errors import VesaliusError

HELDOUT = Path(__file__).parent.parent / "zoo" / "heldout.txt"


@runtime_checkable
class Reader(Protocol):
    """Anything that turns a text into one row of token ids, beginning with `bos` if there is one."""

    @property
    def n_ctx(self) -> int: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def kinds(self) -> frozenset[str]: ...

    def tokens(self, text: str) -> Int[Tensor, "batch pos"]: ...


def heldout_text() -> str:
    """The sample of text that no network of the zoo was trained on."""
    if not HELDOUT.exists():
        raise VesaliusError("the zoo's held-out text is not in this installation; give a text instead.")
    return HELDOUT.read_text(encoding="utf-8")


def token_chunks(
    model: Reader, text: str | Path, *, length: int, limit: int | None = None
) -> Int[Tensor, "chunk pos"]:
    """A text, or what a file holds, cut into rows of `length` tokens, each begun by BOS if there is one.

    What is left over at the end is dropped; `limit` keeps that many rows, spread evenly over the text.
    """
    source = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    ids = model.tokens(source)[0]
    body = length if model.bos is None else length - 1
    if body < 1 or length > model.n_ctx:
        raise VesaliusError(f"rows of {length} tokens were asked for; this model reads 2 to {model.n_ctx}.")
    stream = ids if model.bos is None else ids[1:]
    count = len(stream) // body
    if count == 0:
        raise VesaliusError(f"the text has {len(stream)} tokens, fewer than one row of {body}; give more.")
    rows = stream[: count * body].reshape(count, body)
    if limit is not None and limit < count:
        rows = rows[torch.linspace(0, count - 1, limit).round().long()]
    return rows if model.bos is None else torch.nn.functional.pad(rows, (1, 0), value=model.bos)


def sample_rows(
    model: Reader, text: str | None, *, length: int, limit: int, seed: int = 0
) -> tuple[Int[Tensor, "row pos"], str]:
    """Rows to take losses on, and what they are in words: a text, the held-out sample, or random tokens
    repeated.

    Without a text: the held-out sample if the model has a tokenizer, else random tokens of which every second
    half repeats the first, the one regularity that any vocabulary has.
    """
    if text is not None or "tokenizer" in model.kinds:
        rows = token_chunks(model, heldout_text() if text is None else text, length=length, limit=limit)
        return (
            rows,
            f"{len(rows)} rows of {length} tokens of the {'held-out' if text is None else 'given'} text",
        )
    body = (length - (model.bos is not None)) // 2
    rows = repeated_random_tokens(model, length=body, batch=limit, seed=seed)
    return rows, f"{limit} rows of {body} random tokens, repeated"
