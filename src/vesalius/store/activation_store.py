"""An activation store: what a harvest wrote, read row by row, shuffled or in order, from a disk or a URL."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError, nearest
from vesalius.site import Site
from vesalius.store.columns import Mapped, Ranged, available, open_column
from vesalius.store.folder import Folder, LocalFolder, open_folder
from vesalius.store.order import Order, one, run_of
from vesalius.store.plan import Manifest, read_manifest, shard_name
from vesalius.store.precision import SCALE, STORED, value_of
from vesalius.store.reduction import FILE as REDUCED
from vesalius.store.reduction import parts_of
from vesalius.store.shard import Column, Header, check_shard, read_columns, read_header

AHEAD = 2
"""Batches that are read while one is used."""


class Places(NamedTuple):
    """Where rows are from."""

    context: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    """The place in the context: of a token, or `row · columns + column` of a map."""
    document: Int[Tensor, " row"]
    token: Int[Tensor, " row"] | None
    """None of pictures."""


class ActivationStore:
    """The rows of several sites at the same places; `store[site]` and `store[[site, other]]` are `Rows`."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        if manifest.shards is None:
            done = len([name for name in folder.names() if name[:6].isdecimal()])
            raise VesaliusError(
                f"the harvest in '{folder.place}' was stopped after {done} of {manifest.plan.shards} shards; "
                "run it again, it goes on from there"
            )
        self.folder, self.manifest, self.plan = folder, manifest, manifest.plan
        self.shards = manifest.shards

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} ({width})" for site, width in zip(self.sites, self.widths))
        return f"ActivationStore({self.folder.place}: {self.rows:,} rows of {sites}, {self.plan.dtype})"

    @property
    def sites(self) -> tuple[str, ...]:
        return self.plan.sites

    @property
    def widths(self) -> tuple[int, ...]:
        return self.plan.widths

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def __len__(self) -> int:
        return self.rows

    @property
    def dropped(self) -> int:
        """Rows left out because they were not finite, or their picture could not be read."""
        return sum(shard.dropped for shard in self.shards)

    @property
    def about(self) -> dict:
        """Which model, which data, how they were kept."""
        plan = self.plan
        return {
            "model": plan.model, "model_hash": plan.model_hash, "data_hash": plan.data_hash, "dtype": plan.dtype,
            "contexts": plan.contexts, "per_context": plan.per_context, "seed": plan.seed, "rows": self.rows,
        }  # fmt: skip

    def __getitem__(self, sites: str | Site | Sequence[str | Site]) -> "StoredRows":
        chosen = [sites] if isinstance(sites, str | Site) else list(sites)
        return StoredRows(self, tuple(self._site(one) for one in chosen))

    def of(self, model_hash: str) -> "ActivationStore":
        """The store itself; raises VesaliusError if it is of a model with other weights."""
        if model_hash != self.plan.model_hash:
            raise VesaliusError(
                f"'{self.folder.place}' holds activations of {self.plan.model} ({self.plan.model_hash[:12]}…); "
                f"the model given has other weights ({model_hash[:12]}…)"
            )
        return self

    def places(self, first: int = 0, last: int | None = None) -> Places:
        """Where the rows from one number to another are from, as `rows` gives them."""
        last = self.rows if last is None else last
        return _places({label: column.stretch(first, last) for label, column in self._place_columns.items()})

    def places_of(self, rows: Int[np.ndarray, " row"]) -> Places:
        """Where the rows of these numbers are from."""
        return _places({label: column.take(rows) for label, column in self._place_columns.items()})

    @cached_property
    def _place_columns(self) -> dict[str, Ranged]:
        labels = [label for label in Places._fields if label in self.headers[0].columns]
        return {label: Ranged(self.folder, self._files(label)) for label in labels}

    def reduced(self, name: str, site: str | Site) -> dict[str, Tensor]:
        """The state of a reducer that was fed with this site, for `restore(Moments(512), …)`."""
        if name not in self.manifest.reducers:
            raise VesaliusError(
                f"'{self.folder.place}' has no reducer '{name}'; it has {', '.join(self.manifest.reducers) or 'none'}"
                f"{nearest(name, self.manifest.reducers)}"
            )
        return parts_of(read_columns(self.folder, REDUCED), name, self._site(site))

    def verify(self) -> list[str]:
        """Read all of it; one sentence for each file that is missing, cut off or damaged."""
        wrong = []
        for number, shard in enumerate(self.shards):
            name = shard_name(number)
            try:
                if name not in self.folder.names():
                    raise VesaliusError(f"'{name}' is missing from '{self.folder.place}'")
                if check_shard(self.folder, name).metadata["sha256"] != shard.sha256:
                    raise VesaliusError(f"'{name}' in '{self.folder.place}' is not the file of the manifest")
            except VesaliusError as error:
                wrong.append(str(error))
        return wrong

    @cached_property
    def headers(self) -> list[Header]:
        """Of each shard; raises VesaliusError for one that is missing, cut off or holds something else."""
        names, headers = self.folder.names(), []
        wanted = {site: (STORED[self.plan.dtype], (width,)) for site, width in zip(self.sites, self.widths)}
        for number, shard in enumerate(self.shards):
            name = shard_name(number)
            if name not in names:
                raise VesaliusError(
                    f"'{name}' is missing from '{self.folder.place}'; run the harvest again to make it anew"
                )
            header = read_header(self.folder, name)
            for site, (dtype, width) in wanted.items():
                column = header.columns.get(site)
                if column is None or (column.dtype, column.shape) != (dtype, (shard.rows, *width)):
                    has = "nothing" if column is None else f"{column.dtype} {list(column.shape)}"
                    raise VesaliusError(
                        f"'{name}' in '{self.folder.place}' has {has} at '{site}'; the manifest says "
                        f"{dtype} {[shard.rows, *width]}"
                    )
            headers.append(header)
        return headers

    def column(self, label: str, *, mapped: bool) -> Mapped | Ranged:
        """One column of all shards."""
        return open_column(self.folder, self._files(label), mapped=mapped)

    def _files(self, label: str) -> list[tuple[str, Column]]:
        return [(shard_name(number), header.columns[label]) for number, header in enumerate(self.headers)]

    def _site(self, site: str | Site) -> str:
        name = str(Site.parse(site))
        if name not in self.sites:
            raise VesaliusError(
                f"'{name}' is not in '{self.folder.place}'; it has {', '.join(self.sites)}{nearest(name, self.sites)}"
            )
        return name


class StoredRows:
    """Rows of some sites of a store, to learn from: see `Rows`.

    `batch` draws from an order that is known in advance (see `order`), in runs of `run` neighbours from all over the
    store. Where the sites fit the memory they are mapped; where not they are read in ranges, and while one batch is
    used the next are read.
    """

    def __init__(self, store: ActivationStore, sites: tuple[str, ...], *, mapped: bool | None = None) -> None:
        self.store, self.sites = store, sites
        width = dict(zip(store.sites, store.widths))
        self.widths = tuple(width[site] for site in sites)
        size = store.rows * sum(self.widths) * STORED[store.plan.dtype].itemsize
        local = isinstance(store.folder, LocalFolder)
        self.mapped = local and (size < available() if mapped is None else mapped)
        """Whether rows are read as memory."""
        scales = [SCALE + site for site in sites] if store.plan.dtype == "int8" else []
        self._columns = [store.column(label, mapped=self.mapped) for label in (*sites, *scales)]
        self._readers = ThreadPoolExecutor(AHEAD)
        self._ahead: dict[tuple[Order, int, int], Future[list[Tensor]]] = {}

    def __len__(self) -> int:
        return self.store.rows

    def __repr__(self) -> str:
        return f"StoredRows({', '.join(self.sites)}: {len(self):,} rows)"

    @property
    def about(self) -> dict:
        return {**self.store.about, "sites": list(self.sites), "run": self.run}

    @property
    def run(self) -> int:
        """How many neighbours stay together."""
        return run_of(self.store.plan.contexts_per_shard)

    def batch(
        self, step: int, size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "row width"], ...]:
        """`size` rows of each site, those from `step · size` on of the endless order of this rank."""
        order = Order(len(self), seed=seed, rank=rank, world=world, run=self.run)
        if self.mapped:
            return self._values(self._read(order, step * size, size))
        wanted = [(order, number * size, size) for number in range(step, step + AHEAD + 1)]
        known, self._ahead = self._ahead, {}
        for key in wanted:
            self._ahead[key] = known.get(key) or self._readers.submit(self._read, *key)
        return self._values(self._ahead.pop(wanted[0]).result())

    def rows(self, first: int, last: int) -> tuple[Float[Tensor, "row width"], ...]:
        """The rows from one number to another, in the order in which they lie."""
        return self._values([column.floats(one(first, last)) for column in self._columns])

    def _read(self, order: Order, first: int, size: int) -> list[Tensor]:
        runs = order.runs(first, size)
        return [column.floats(runs) for column in self._columns]

    def _values(self, found: list[Tensor]) -> tuple[Float[Tensor, "row width"], ...]:
        numbers, scales = found[: len(self.sites)], found[len(self.sites) :]
        return tuple(map(value_of, numbers, scales or [None] * len(numbers)))


def open_store(place: str | Path) -> ActivationStore:
    """A store by its folder or URL. Raises VesaliusError if there is none, it is not finished, or it is damaged."""
    folder = open_folder(place)
    if isinstance(folder, LocalFolder) and not folder.path.is_dir():
        near = [str(path) for path in folder.path.parent.iterdir()] if folder.path.parent.is_dir() else []
        raise VesaliusError(
            f"'{place}' does not exist; expected an activation store{nearest(str(place), near)}"
        )
    return ActivationStore(folder, read_manifest(folder))


def _places(found: dict[str, Tensor]) -> Places:
    whole = {label: values.long() for label, values in found.items()}
    return Places(
        whole["context"], whole["position"], whole.get("document", whole["context"]), whole.get("token")
    )
