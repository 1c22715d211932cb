"""The feature index: where each latent of a dictionary is active, and what is active in each document.

1. Codes: the rows of a store, shard by shard, as a dictionary encodes them; without zeros (CSR: `starts`, `latents`,
   `values`), in files like those of the store.
2. Both ways as CSR arrays that are read as memory: feature → its rows, strongest first; document → its features, with
   the largest value and how often. Looking up either takes microseconds.
3. The same entries as a Parquet file sorted by feature, for any question that SQL can ask.

The sorting holds all active entries in memory, about 40 bytes for each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from vesalius.dictionaries.codes import Codes
from vesalius.dictionaries.feature import Dictionary
from vesalius.dictionaries.sparse import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.files import whole
from vesalius.store.activation_store import ActivationStore, Places
from vesalius.store.columns import Mapped
from vesalius.store.folder import LocalFolder
from vesalius.store.plan import shard_name
from vesalius.store.shard import Header, read_columns, read_header, write_shard

INDEX, PARQUET = "index.safetensors", "features.parquet"
ROWS = 4096
"""Rows that are encoded at once."""
GROUP = 65_536
"""Entries of a row group of the Parquet file: what a question about one feature reads at least."""


class Examples(NamedTuple):
    """Rows in which a feature is active, strongest first."""

    values: Float[Tensor, " example"]
    rows: Int[Tensor, " example"]
    places: Places


class Active(NamedTuple):
    """Features active in a document, strongest first."""

    features: Int[Tensor, " feature"]
    values: Float[Tensor, " feature"]
    """The largest in the document."""
    counts: Int[Tensor, " feature"]
    """In how many of its rows."""


@dataclass(frozen=True)
class FeatureIndex:
    """An index that lies in a folder, and the store whose rows it names."""

    store: ActivationStore
    folder: LocalFolder

    @cached_property
    def _header(self) -> Header:
        if INDEX not in self.folder.names():
            raise VesaliusError(
                f"'{self.folder.place}' is no feature index; expected what vs.feature_index wrote"
            )
        return read_header(self.folder, INDEX)

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        return {
            label: Mapped(self.folder, [(INDEX, column)]).parts[0]
            for label, column in self._header.columns.items()
        }

    @property
    def latents(self) -> int:
        return len(self._columns["feature starts"]) - 1

    @property
    def documents(self) -> int:
        return len(self._columns["document starts"]) - 1

    @property
    def density(self) -> Float[Tensor, " latent"]:
        """Share of the rows in which each feature is active."""
        return self._columns["feature starts"].diff() / self.store.rows

    def examples(self, feature: int, k: int = 20) -> Examples:
        """The `k` rows in which a feature is strongest."""
        first, last = self._stretch("feature", feature)
        last = min(last, first + k)
        rows = self._columns["feature rows"][first:last]
        return Examples(
            self._columns["feature values"][first:last].float(), rows, self.store.places_of(rows.numpy())
        )

    def features(self, document: int, k: int = 20) -> Active:
        """The `k` features that are strongest in a document."""
        first, last = self._stretch("document", document)
        values = self._columns["document values"][first:last].float()
        order = values.argsort(descending=True, stable=True)[:k]
        features, counts = (
            self._columns[f"document {name}"][first:last][order] for name in ("features", "counts")
        )
        return Active(features.long(), values[order], counts.long())

    def codes(self, shard: int) -> Codes:
        """The codes of the rows of one shard."""
        columns = read_columns(self.folder, shard_name(shard))
        return Codes(columns["starts"], columns["latents"].long(), columns["values"].float(), self.latents)

    def query(self, sql: str) -> list[tuple]:
        """Ask DuckDB about the table `features`: feature, value, document, context, position, token, row."""
        try:
            import duckdb
        except ImportError:
            raise VesaliusError("questions in SQL need DuckDB; pip install 'vesalius[store]'") from None
        with duckdb.connect() as connection:
            connection.execute(
                f"create view features as select * from read_parquet('{self.folder.path / PARQUET}')"
            )
            try:
                return connection.execute(sql).fetchall()
            except duckdb.Error as error:
                raise VesaliusError(f"DuckDB does not understand this: {error}") from None

    def _stretch(self, what: str, number: int) -> tuple[int, int]:
        starts = self._columns[f"{what} starts"]
        if not 0 <= number < len(starts) - 1:
            raise VesaliusError(f"{what} {number} was asked for; this index has 0 to {len(starts) - 2}")
        return int(starts[number]), int(starts[number + 1])


def feature_index(store: ActivationStore, dictionary: Dictionary, *, to: str | Path) -> FeatureIndex:
    """Encode all rows of a store with a dictionary of one of its sites, and write the index to a folder.

    Raises VesaliusError if the store has no such site, or the dictionary was trained on a model with other weights.
    """
    sparse = isinstance(dictionary, SparseDictionary)
    if sparse and "model_hash" in dictionary.about:
        store.of(dictionary.about["model_hash"])
    rows = store[dictionary.reads if sparse else dictionary.site]
    folder, first, parts = LocalFolder(Path(to)), 0, []
    for number, shard in enumerate(store.shards):
        codes = Codes.joined(list(_encoded(rows, dictionary, first, first + shard.rows)))
        write_shard(
            folder,
            shard_name(number),
            {"starts": codes.starts, "latents": codes.latents.int(), "values": codes.values.half()},
            about={"width": str(codes.width)},
        )
        parts.append(codes)
        first += shard.rows
    _write(folder, store, Codes.joined(parts))
    return FeatureIndex(store, folder)


def open_index(store: ActivationStore, folder: str | Path) -> FeatureIndex:
    """The index that `feature_index` wrote of this store."""
    return FeatureIndex(store, LocalFolder(Path(folder)))


def _encoded(rows: Any, dictionary: Dictionary, first: int, last: int) -> Iterator[Codes]:
    for start in range(first, max(last, first + 1), ROWS):
        (values,) = rows.rows(start, min(start + ROWS, last))
        sparse = isinstance(dictionary, SparseDictionary)
        yield dictionary.codes(values) if sparse else Codes.of(dictionary.encode(values))


def _write(folder: LocalFolder, store: ActivationStore, codes: Codes) -> None:
    rows, latents = codes.rows.numpy(), codes.latents.numpy()
    values = codes.values.detach().half().numpy()
    places = store.places()
    documents = places.document.numpy()

    order = np.lexsort((rows, -values, latents))
    columns = {
        "feature starts": _starts(latents, codes.width),
        "feature rows": rows[order],
        "feature values": values[order],
    }
    table = {"feature": latents.astype(np.int32)[order], "value": values.astype(np.float32)[order]}
    for label in ("document", "context", "position", "token"):
        place = getattr(places, label)
        if place is not None:
            table[label] = place.numpy().astype(np.int32)[rows[order]]
    table["row"] = rows[order]

    owner = documents[rows]
    order = np.lexsort((-values, latents, owner))
    pair = owner[order].astype(np.int64) * codes.width + latents[order]
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    columns |= {
        "document starts": _starts(owner[order][first], int(documents.max(initial=-1)) + 1),
        "document features": latents[order][first].astype(np.int32),
        "document values": values[order][first],
        "document counts": np.diff(first, append=len(pair)).astype(np.int32),
    }
    write_shard(folder, INDEX, {name: torch.from_numpy(array) for name, array in columns.items()}, about={})
    _write_parquet(folder, table)


def _write_parquet(folder: LocalFolder, table: dict[str, ndarray]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise VesaliusError("the index is also a Parquet file; pip install 'vesalius[store]'") from None
    with whole(folder.path / PARQUET) as partial:
        parquet.write_table(pyarrow.table(table), partial, row_group_size=GROUP)


def _starts(numbers: Int[ndarray, " entry"], size: int) -> Int[ndarray, " size_and_one"]:
    """Where each number's entries begin among sorted ones, and how many there are."""
    return np.concatenate([[0], np.bincount(numbers, minlength=size).cumsum()])
