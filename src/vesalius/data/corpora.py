"""Corpora: from a name to documents, and from documents to numbered contexts of one length.

    a text, a .txt file, a folder of them     each file a document
    .jsonl, .parquet                          each line or row a document, in the field `text`
    a Hugging Face dataset, a list            each row (a mapping) or string a document
    "heldout"                                 the sample of the zoo

The documents' tokens make one stream, with BOS between them if there is one; the stream is cut into contexts, each
begun by BOS, and what is left over is dropped. So context `i` is the same whenever and wherever it is made.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from vesalius.data.text import Reader, heldout_text
from vesalius.errors import VesaliusError, nearest

FORMATS = (".txt", ".jsonl", ".parquet")
HELDOUT = "heldout"
ROWS = 1024
"""Rows of a Parquet file that are read at once."""


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, read when they are asked for, as often as they are."""

    source: str
    read: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        return self.read()

    def __repr__(self) -> str:
        return f"Corpus({self.source})"

    def fingerprint(self, documents: int) -> str:
        """What the first documents are known by."""
        read = Fingerprint()
        for _, text in zip(range(documents), self):
            read.add(text)
        return str(read)


class Fingerprint:
    """sha256 over documents that were read, their texts and where each ends; and how many they were."""

    def __init__(self) -> None:
        self.documents = 0
        self._digest = hashlib.sha256()

    def add(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._digest.update(len(data).to_bytes(8, "little"))
        self._digest.update(data)
        self.documents += 1

    def __str__(self) -> str:
        return self._digest.hexdigest()


def open_corpus(data: str | Path | Corpus | Iterable[Any], *, field: str = "text") -> Corpus:
    """The documents that a name stands for; `field` is where a row of JSONL, Parquet or a dataset has its text.

    >>> list(open_corpus(["one", {"text": "two"}]))
    ['one', 'two']

    Raises VesaliusError for a place that is not there, or that holds no text; while reading, for a row without `field`.
    """
    if isinstance(data, Corpus):
        return data
    if data == HELDOUT:
        return Corpus(HELDOUT, lambda: iter([heldout_text()]))
    if isinstance(data, str) and "\n" in data:
        return _text(data)
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if path.exists():
            return _place(path, field)
        if isinstance(data, str) and " " in data.strip() and path.suffix not in FORMATS:
            return _text(data)
        raise VesaliusError(
            f"'{data}' does not exist; expected {', '.join(FORMATS)}, a folder of them, '{HELDOUT}' or a text"
            f"{nearest(str(data), [HELDOUT, *_siblings(path)])}"
        )
    if isinstance(data, Mapping):
        raise VesaliusError(f"{', '.join(map(str, data))} were given under their names; expected one of them")
    if isinstance(data, Iterator):
        raise VesaliusError("documents that can be read only once were given; expected a list or a dataset")
    return Corpus(type(data).__name__, lambda: _rows(data, field, type(data).__name__))


def contexts(
    reader: Reader,
    corpus: Corpus,
    *,
    length: int,
    limit: int | None = None,
    fingerprint: Fingerprint | None = None,
) -> Iterator[tuple[Int32[ndarray, "context position"], Int32[ndarray, "context position"]]]:
    """Contexts of `length` tokens, and the number of the document that each token is of; some at a time.

    `fingerprint` is given the documents that were read. Raises VesaliusError for a length that the model does not read.
    """
    bos = [] if reader.bos is None else [reader.bos]
    body = length - len(bos)
    if body < 1 or length > reader.n_ctx:
        raise VesaliusError(
            f"contexts of {length} tokens were asked for; this model reads 2 to {reader.n_ctx}"
        )
    tokens, owners = np.empty(0, np.int32), np.empty(0, np.int32)
    made = 0
    for number, text in enumerate(corpus):
        if limit is not None and made >= limit:
            return
        if fingerprint is not None:
            fingerprint.add(text)
        if not text:
            continue
        ids = reader.tokens(text)[0].cpu().numpy()[0 if len(tokens) or made else len(bos) :]
        tokens = np.concatenate([tokens, ids.astype(np.int32)])
        owners = np.concatenate([owners, np.full(len(ids), number, np.int32)])
        count = len(tokens) // body
        if limit is not None:
            count = min(count, limit - made)
        if count:
            cut = [part[: count * body].reshape(count, body) for part in (tokens, owners)]
            if bos:
                cut[0] = np.concatenate([np.full((count, 1), bos[0], np.int32), cut[0]], 1)
                cut[1] = np.concatenate([cut[1][:, :1], cut[1]], 1)
            yield cut[0], cut[1]
            tokens, owners = tokens[count * body :], owners[count * body :]
            made += count


# ------------------------------------------------------------------------------------------------------------ places


def _text(text: str) -> Corpus:
    return Corpus("a text", lambda: iter([text]))


def _siblings(path: Path) -> list[str]:
    return [str(file) for file in path.parent.iterdir()] if path.parent.is_dir() else []


def _place(path: Path, field: str) -> Corpus:
    files = sorted(file for file in path.rglob("*") if file.suffix in FORMATS) if path.is_dir() else [path]
    if not files:
        raise VesaliusError(
            f"the folder '{path}' holds no text; expected files ending in {', '.join(FORMATS)}"
        )
    if path.suffix not in FORMATS and not path.is_dir():
        raise VesaliusError(f"'{path}' is not a corpus; expected a file ending in {', '.join(FORMATS)}")
    return Corpus(str(path), lambda: (text for file in files for text in _file(file, field)))


def _file(path: Path, field: str) -> Iterator[str]:
    if path.suffix == ".txt":
        yield path.read_text(encoding="utf-8", errors="replace")
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            yield from _rows(map(json.loads, filter(str.strip, lines)), field, str(path))
    else:
        yield from _parquet(path, field)


def _parquet(path: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise VesaliusError(f"'{path}' is a Parquet file; pip install 'vesalius[store]' to read it") from None
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise VesaliusError(
                    f"'{path}' has no column '{field}'; it has {', '.join(names)}{nearest(field, names)}"
                )
            for rows in file.iter_batches(ROWS, columns=[field]):
                yield from (text or "" for text in rows.column(0).to_pylist())
    except ArrowInvalid as error:
        raise VesaliusError(f"'{path}' is not a whole Parquet file: {error}") from None


def _rows(rows: Iterable[Any], field: str, source: str) -> Iterator[str]:
    try:
        for number, row in enumerate(rows):
            text = row.get(field) if isinstance(row, Mapping) else row
            if not isinstance(text, str):
                has = (
                    f"the fields {', '.join(map(str, row))}"
                    if isinstance(row, Mapping)
                    else type(row).__name__
                )
                raise VesaliusError(
                    f"row {number} of {source} is {has}; expected a text, or a field '{field}' that is one"
                )
            yield text
    except json.JSONDecodeError as error:
        raise VesaliusError(f"'{source}' has a line that is not JSON: {error}") from None
