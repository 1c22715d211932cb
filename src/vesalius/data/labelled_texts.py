"""Texts with a label each, from a file of the reader's own: CSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesalius.errors import VesaliusError, nearest

FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, the class of each by name, and the group that it must not be parted from."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    """What the column `group` says; without one, the text itself, so that copies of it stay together."""

    @property
    def classes(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(sorted(set(self.labels)))


def read_labelled_texts(path: str | Path) -> LabelledTexts:
    """Rows with the columns `text` and `label`, and perhaps `group`.

    Raises VesaliusError if there is no such file, it is damaged, a row lacks a column, or only one class occurs.
    """
    labels, groups, texts = read_labels(path, needed=("text", "label"))
    assert texts is not None
    if len(set(labels)) < 2:
        raise VesaliusError(f"every label in '{path}' is '{labels[0]}'; expected two classes or more")
    return LabelledTexts(texts, labels, groups or tuple(text.strip() for text in texts))


def read_labels(
    path: str | Path, *, needed: Sequence[str] = ("label",)
) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[str, ...] | None]:
    """The columns `label`, `group` and `text`, the last two if there are any. Raises as `read_labelled_texts` does."""
    path = Path(path).expanduser()
    if path.suffix not in FORMATS or not path.is_file():
        raise VesaliusError(
            f"'{path}' is no file of labelled texts; expected one ending in {', '.join(FORMATS)}"
        )
    rows = _rows(path)
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise VesaliusError(f"'{path}' holds no rows; expected one label each")
    for column in needed:
        if column not in rows[0]:
            raise VesaliusError(
                f"'{path}' has no column '{column}'; it has {', '.join(rows[0])}{nearest(column, rows[0])}"
            )
    for number, row in enumerate(rows, 1):
        lacking = [name for name in rows[0] if row.get(name) is None or str(row[name]).strip() == ""]
        if lacking:
            raise VesaliusError(f"row {number} of '{path}' has no {', '.join(lacking)}; the first row has")
    labels = tuple(str(row["label"]).strip() for row in rows)
    groups = tuple(str(row["group"]).strip() for row in rows) if "group" in rows[0] else None
    return labels, groups, tuple(str(row["text"]) for row in rows) if "text" in rows[0] else None


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return list(csv.DictReader(file))
            return [json.loads(line) for line in file if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise VesaliusError(f"'{path}' is damaged: {error}") from None


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table
    except ImportError:
        raise VesaliusError(f"'{path}' is a Parquet file; pip install 'vesalius[store]' to read it") from None
    try:
        return read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise VesaliusError(f"'{path}' is not a whole Parquet file: {error}") from None
