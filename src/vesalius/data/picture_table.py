"""Pictures in the rows of a table: Parquet as Hugging Face stores them, and its datasets.

A cell holds the bytes of a file (binary), or `{"bytes": …, "path": …}`, of which one may be missing. Nothing is decoded
here, and of a Parquet file no more than one row group is held at a time.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vesalius.data.picture_file import PictureFile, reason
from vesalius.errors import VesaliusError

SUFFIX = ".parquet"


@dataclass(frozen=True)
class PictureCell(PictureFile):
    """A picture in a cell of a table."""

    read: Callable[[], Any] = bytes

    def bytes(self) -> bytes:
        cell = self.read()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None and path:
            return PictureFile(self.name, Path(path)).bytes()
        if not isinstance(data, bytes):
            raise VesaliusError(f"'{self.name}' holds {type(data).__name__}; expected the bytes of a picture")
        return data


def parquet_pictures(path: Path, *, name: str) -> list[PictureFile]:
    """The rows of a Parquet file, of its one column of pictures."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise VesaliusError(f"'{path}' is a Parquet file; pip install 'vesalius[store]' to read it") from None
    try:
        with ParquetFile(path) as file:
            column = _column({field.name: str(field.type) for field in file.schema_arrow}, str(path))
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (ArrowInvalid, OSError) as error:
        raise VesaliusError(f"'{path}' is not a whole Parquet file ({reason(error)})") from None
    places = [(group, row) for group, count in enumerate(counts) for row in range(count)]
    return [
        PictureCell(
            f"{name} row {number}", path, read=lambda at=at: _group(path, column, at[0])[at[1]].as_py()
        )
        for number, at in enumerate(places)
    ]


def dataset_pictures(data: Any) -> list[PictureFile] | None:
    """The rows of a Hugging Face dataset; None if it is something else."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return None
    if isinstance(data, datasets.IterableDataset):
        raise VesaliusError("a streamed dataset of pictures was given; expected one whose rows have numbers")
    pictures = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    for name in pictures:
        data = data.cast_column(name, datasets.Image(decode=False))
    schema = {field.name: str(field.type) for field in data.features.arrow_schema}
    column = _column(schema, "the dataset")
    cells = data.select_columns([column]).with_format(None)
    return [
        PictureCell(f"row {number}", Path(), read=lambda number=number: cells[number][column])
        for number in range(len(cells))
    ]


def _column(types: dict[str, str], source: str) -> str:
    """The column that holds pictures: binary, or a struct with `bytes`."""
    found = [name for name, kind in types.items() if "binary" in kind]
    if len(found) != 1:
        has = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise VesaliusError(f"{source} has the columns {has}; expected exactly one of pictures, as bytes")
    return found[0]


@lru_cache(maxsize=1)
def _group(path: Path, column: str, group: int) -> Any:
    """A column of a row group."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)
