"""Labels for what lies in a store, of every document (or picture) or of every row: from a file, or as given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vesalius.data.corpora import Fingerprint
from vesalius.data.labelled_texts import read_labels
from vesalius.errors import VesaliusError, nearest
from vesalius.questions.asked import OF_TOKENS
from vesalius.store import ActivationStore

Labels = str | Path | Tensor | list[str] | list[int]
FILES = (".csv", ".jsonl", ".parquet", ".npy")


@dataclass(frozen=True, eq=False)
class Given:
    """The class of every document or of every row of a store; -1 where it is not known."""

    name: str
    classes: tuple[str, ...]
    labels: Int[Tensor, " item"]
    of_rows: bool
    groups: Int[Tensor, " item"] | None = None
    """Where the file names them."""


def given_labels(given: Labels, store: ActivationStore, *, documents: int, source: str | None) -> Given:
    """As many labels as the store has documents, or else rows; words, or whole numbers of which -1 is unknown.

    A file that has the documents' texts is compared with what was harvested, by its fingerprint `source`. Raises
    VesaliusError for another number of labels, for other texts, and for one class only.
    """
    if not isinstance(given, str | Path):
        return _aligned("given labels", given, store, documents)
    path = Path(given).expanduser()
    if path.suffix not in FILES:
        known = (*OF_TOKENS, "image_class")
        raise VesaliusError(
            f"'{given}' is no question; expected {', '.join(known)} or a file of labels ending in {', '.join(FILES)}"
            f"{nearest(str(given), known)}"
        )
    if path.suffix == ".npy":
        return _aligned(path.stem, _array(path), store, documents)
    labels, groups, texts = read_labels(path)
    if texts is not None and source is not None:
        read = Fingerprint()
        for text in texts[:documents]:
            read.add(text)
        if str(read) != source:
            raise VesaliusError(
                f"the texts in '{path}' are not those that '{store.folder.place}' was harvested from; expected the "
                "same in the same order, or a file with labels alone"
            )
        labels, groups = labels[:documents], groups and groups[:documents]
    return _aligned(path.stem, labels, store, documents, groups)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise VesaliusError(f"'{path}' is no array of labels: {error}") from None


def _aligned(
    name: str,
    given: Tensor | np.ndarray | Sequence[str | int],
    store: ActivationStore,
    documents: int,
    groups: Sequence[str] | None = None,
) -> Given:
    values = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    if values.ndim != 1 or len(values) not in (documents, store.rows):
        raise VesaliusError(
            f"{name}: {'×'.join(map(str, values.shape))} labels; expected one for each of the {documents} documents "
            f"or of the {store.rows} rows of '{store.folder.place}'"
        )
    if values.dtype.kind == "f" and (values == np.floor(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "iubU":
        raise VesaliusError(f"{name} are of the type {values.dtype}; expected whole numbers or words")
    names, numbers = np.unique(values, return_inverse=True)
    unknown = int((names < 0).sum()) if values.dtype.kind == "i" else 0
    names = names[unknown:]
    if len(names) < 2:
        only = f"'{names[0]}'" if len(names) else "unknown"
        raise VesaliusError(f"{name}: every label is {only}; expected two classes or more")
    of_group = None if groups is None else torch.from_numpy(np.unique(groups, return_inverse=True)[1])
    labels = torch.from_numpy(numbers.astype(np.int64) - unknown).clamp(min=-1)
    return Given(name, tuple(map(str, names)), labels, len(values) != documents, of_group)
