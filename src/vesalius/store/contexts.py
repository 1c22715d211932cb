"""What a harvest reads, numbered: contexts of tokens that lie in a file of the store, or pictures.

Those of a corpus are permuted when they are written there; token ids and pictures keep the order they are given in.
Any stretch of them can be had without the others, which is what makes a shard a function of its number.
"""

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from vesalius.data.corpora import Corpus, Fingerprint, contexts, open_corpus
from vesalius.data.images import Images, open_images
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.store.folder import Folder
from vesalius.store.order import permuted
from vesalius.store.shard import Header, read_header, write_shard

FILE = "contexts.safetensors"
MIXED = 4096
"""Contexts that are put in their places at once."""

Data = str | Path | Tensor | Images | Corpus | Iterable[Any]
"""A corpus by whatever `open_corpus` takes, token ids `[context, position]`, or pictures: see `open_images`."""


class Stretch(NamedTuple):
    """Some contexts, before any is run."""

    tokens: Int[Tensor, "context position"] | None
    documents: Int[Tensor, "context position"] | None
    special: Bool[Tensor, "context position"] | None
    """Where a token is none of the text's: BOS and what else the tokenizer adds. None: nowhere."""


@runtime_checkable
class Contexts(Protocol):
    """Numbered inputs of a model."""

    @property
    def count(self) -> int: ...
    @property
    def hash(self) -> str: ...
    def stretch(self, first: int, last: int) -> Stretch: ...
    def inputs(self, model: Model, first: int, last: int) -> tuple[list[int], Tensor]:
        """The inputs of some contexts, and which of them could be read."""
        ...


@dataclass(frozen=True)
class TokenContexts:
    """Contexts of tokens, in a file of the store."""

    folder: Folder
    special: frozenset[int]

    @cached_property
    def _header(self) -> Header:
        return read_header(self.folder, FILE)

    @property
    def count(self) -> int:
        return self._header.columns["token"].shape[0]

    @property
    def length(self) -> int:
        return self._header.columns["token"].shape[1]

    @property
    def documents(self) -> int:
        """How many documents were read for them; 0 where token ids were given."""
        return int(self._header.metadata["documents"])

    @property
    def hash(self) -> str:
        return self._header.metadata["sha256"]

    def stretch(self, first: int, last: int) -> Stretch:
        tokens, documents = self._read("token", first, last), self._read("document", first, last)
        return Stretch(
            tokens, documents, torch.isin(tokens, torch.tensor(sorted(self.special), dtype=torch.int32))
        )

    def inputs(self, model: Model, first: int, last: int) -> tuple[list[int], Tensor]:
        return list(range(first, last)), self._read("token", first, last).long().to(model.device)

    def _read(self, name: str, first: int, last: int) -> Int[Tensor, "context position"]:
        column, row = self._header.columns[name], 4 * self.length
        (data,) = self.folder.ranges([(FILE, column.first + first * row, column.first + last * row)])
        return torch.frombuffer(bytearray(data), dtype=torch.int32).view(last - first, self.length)


@dataclass(frozen=True)
class PictureContexts:
    """Pictures, each a context; its number is that of its document."""

    pictures: Images
    count: int

    @property
    def hash(self) -> str:
        return self.pictures.hash

    def stretch(self, first: int, last: int) -> Stretch:
        return Stretch(None, None, None)

    def inputs(self, model: Model, first: int, last: int) -> tuple[list[int], Tensor]:
        numbers, fitted = [], []
        for number in range(first, last):
            try:
                fitted.append(self.pictures.fitted(number, model.pictures))
            except VesaliusError as error:
                self.pictures.skipped[self.pictures.names[number]] = str(error)
            else:
                numbers.append(number)
        none = torch.empty(0, model.pictures.channels, *model.pictures.size)
        pixels = torch.stack(fitted) if fitted else none
        return numbers, pixels.to(device=model.device, dtype=model.dtype)


def open_contexts(
    model: Model, data: Data, folder: Folder, *, length: int | None, limit: int | None, field: str
) -> Contexts:
    """The contexts of some data. Tokens are written to the store, unless those of the same data lie there."""
    if "images" in model.kinds:
        pictures = open_images(data)  # type: ignore[arg-type]
        return PictureContexts(pictures, len(pictures) if limit is None else min(limit, len(pictures)))
    if isinstance(data, Images):
        raise VesaliusError(
            f"pictures were given, and {model.name} reads tokens; expected a corpus or token ids"
        )
    found = TokenContexts(folder, special_tokens(model))
    if isinstance(data, Tensor):
        ids = _checked(data[:limit])
        digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        if FILE not in folder.names() or read_header(folder, FILE).metadata["source"] != digest:
            owner = torch.arange(len(ids), dtype=torch.int32)[:, None].expand_as(ids)
            write_shard(folder, FILE, {"token": ids, "document": owner}, about=_about(digest, 0, limit))
        return found
    corpus, length = open_corpus(data, field=field), min(model.n_ctx, 256) if length is None else length
    if FILE in folder.names() and found.length == length:
        known = found._header.metadata
        if known["limit"] == str(limit) and known["source"] == corpus.fingerprint(found.documents):
            return found
    _write(model, corpus, folder, length, limit)
    return found


def special_tokens(model: Model) -> frozenset[int]:
    """What a tokenizer adds to a text: BOS, CLS, padding."""
    own = set() if model.bos is None else {model.bos}
    if model.tokenizer is None:
        return frozenset(own)
    added = model.tokenizer.get_added_tokens_decoder()
    return frozenset(own | {number for number, token in added.items() if token.special})


def _write(model: Model, corpus: Corpus, folder: Folder, length: int, limit: int | None) -> None:
    """Tokens go through unnamed files, so that memory does not grow with the corpus.

    The contexts are permuted among themselves, so that a shard is a sample of the whole corpus.
    """
    read, count = Fingerprint(), 0
    with tempfile.TemporaryFile() as tokens, tempfile.TemporaryFile() as owners:
        for ids, numbers in contexts(model, corpus, length=length, limit=limit, fingerprint=read):
            tokens.write(ids.tobytes())
            owners.write(numbers.tobytes())
            count += len(ids)
        if not count:
            raise VesaliusError(f"{corpus.source} has fewer tokens than one context of {length}; give more")
        order = permuted(np.arange(count), count, key=0)
        columns = {"token": _mixed(tokens, order, length), "document": _mixed(owners, order, length)}
        write_shard(folder, FILE, columns, about=_about(str(read), read.documents, limit))


def _mixed(file: IO[bytes], order: Int[ndarray, " context"], length: int) -> Int[Tensor, "context position"]:
    """The contexts of a file in another order, in an unnamed file."""
    lying = np.memmap(file, np.int32, "r", shape=(len(order), length))
    with tempfile.TemporaryFile() as mixed:
        for some in np.array_split(order, -(-len(order) // MIXED)):
            mixed.write(lying[some].tobytes())
        return torch.from_numpy(np.memmap(mixed, np.int32, "r+", shape=(len(order), length)))


def _about(source: str, documents: int, limit: int | None) -> dict[str, str]:
    return {"source": source, "documents": str(documents), "limit": str(limit)}


def _checked(ids: Tensor) -> Int[Tensor, "context position"]:
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise VesaliusError(
            f"a {ids.dtype} tensor of shape {tuple(ids.shape)} was given; expected token ids [context, position]"
        )
    return ids.to("cpu", torch.int32).contiguous()
