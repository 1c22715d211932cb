"""Statistics of what a harvest writes, made shard by shard as it is written, and kept with the store.

Reducers see the rows as they are stored, shard after shard in order; an example is a row, its number
`context · places + position`. After each shard their state is written together with how far they are, so that a
harvest that was killed neither forgets a row nor counts it twice.
"""

from collections.abc import Callable, Mapping
from itertools import product

from torch import Tensor

from vesalius.store.folder import Folder
from vesalius.store.plan import Plan, shard_name
from vesalius.store.precision import SCALE, value_of
from vesalius.store.reducers import Reducer, restore, state
from vesalius.store.shard import read_columns, read_header, write_shard

FILE = "reduced.safetensors"
ROWS = 8192
"""Rows that reducers are given at once."""

Makers = Mapping[str, Callable[[int], Reducer]]
"""Name → a reducer for so many units, as in `{"moments": Moments}`."""


class Reduction:
    """The reducers of all sites, and how many shards they have seen."""

    def __init__(self, folder: Folder, plan: Plan, makers: Makers) -> None:
        self.folder, self.plan = folder, plan
        self.reducers = {
            (name, site): make(width)
            for (name, make), (site, width) in product(makers.items(), zip(plan.sites, plan.widths))
        }
        self.done = 0
        if self.reducers and FILE in folder.names():
            saved = read_columns(folder, FILE)
            known = {tuple(label.split("/", 2)[:2]) for label in saved}
            if known == {(name, site.replace("/", "|")) for name, site in self.reducers}:
                for (name, site), reducer in self.reducers.items():
                    restore(reducer, parts_of(saved, name, site))
                self.done = int(read_header(folder, FILE).metadata["shards"])

    def add(self, number: int) -> None:
        """The rows of the next shard, which is on the disk."""
        assert number == self.done
        if not self.reducers:
            self.done += 1
            return
        columns = read_columns(self.folder, shard_name(number))
        examples = columns["context"].long() * self.plan.places + columns["position"]
        order = examples.argsort()
        for rows in order.split(ROWS):
            for site in self.plan.sites:
                scales = columns.get(SCALE + site)
                values = value_of(columns[site][rows], None if scales is None else scales[rows])
                for (_, reduced), reducer in self.reducers.items():
                    if reduced == site:
                        reducer.add(values[:, :, None], examples[rows])
        self.done += 1
        parts = {
            f"{name}/{site.replace('/', '|')}/{part}": tensor
            for (name, site), reducer in self.reducers.items()
            for part, tensor in state(reducer).items()
        }
        write_shard(self.folder, FILE, parts, about={"shards": str(self.done)})


def parts_of(saved: Mapping[str, Tensor], name: str, site: str) -> dict[str, Tensor]:
    """The state of one reducer out of the file of all."""
    start = f"{name}/{site.replace('/', '|')}/"
    return {label.removeprefix(start): tensor for label, tensor in saved.items() if label.startswith(start)}
