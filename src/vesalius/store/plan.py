"""The plan of a harvest, fixed before anything is run, and the manifest that keeps it and what came of it."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from vesalius.errors import VesaliusError
from vesalius.store.folder import Folder
from vesalius.store.precision import RULES, Precision

MANIFEST = "manifest.json"
SCHEMA = 1
NonFinite = Literal["refuse", "drop"]


@dataclass(frozen=True)
class Plan:
    """All that a shard is a function of; weights and data stand in it by their hashes."""

    model: str
    model_hash: str
    data_hash: str
    sites: tuple[str, ...]
    widths: tuple[int, ...]
    dtype: Precision
    contexts: int
    contexts_per_shard: int
    places: int
    """Positions that every site has in a context."""
    leading: int
    """Positions that come first and are no part of a picture: a class token."""
    per_context: int | None
    include_special: bool
    nonfinite: NonFinite
    batch: int
    seed: int
    threads: int
    """With which torch computes: another number may round otherwise."""

    @property
    def shards(self) -> int:
        return -(-self.contexts // self.contexts_per_shard)

    def stretch(self, shard: int) -> tuple[int, int]:
        """The contexts of a shard."""
        first = shard * self.contexts_per_shard
        return first, min(first + self.contexts_per_shard, self.contexts)


@dataclass(frozen=True)
class Shard:
    """What came of one shard: its rows, those left out because they were not finite or not there, its sha256."""

    rows: int
    dropped: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A plan, and its shards once all of them are made."""

    plan: Plan
    shards: tuple[Shard, ...] | None = None
    reducers: tuple[str, ...] = ()

    def write(self, folder: Folder) -> None:
        document = {
            "schema": SCHEMA,
            "plan": asdict(self.plan),
            "stored": RULES[self.plan.dtype],
            "rows": None if self.shards is None else sum(shard.rows for shard in self.shards),
            "reducers": list(self.reducers),
            "shards": None if self.shards is None else [asdict(shard) for shard in self.shards],
        }
        folder.write(MANIFEST, [json.dumps(document, indent=1).encode()])


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"{number:06d}.safetensors"


def read_manifest(folder: Folder) -> Manifest:
    """Raises VesaliusError if the folder holds no store, or one of pickles, or a damaged one."""
    names = folder.names()
    if MANIFEST not in names:
        pickles = sorted(name for name in names if name.endswith((".pt", ".pth", ".pkl", ".pickle", ".bin")))
        why = f"it holds pickles ('{pickles[0]}'), which can run code and are not opened" if pickles else ""
        raise VesaliusError(
            f"'{folder.place}' is not an activation store: {why or f'it has no {MANIFEST}'}; "
            "expected a folder that vs.harvest wrote"
        )
    (text,) = folder.ranges([(MANIFEST, 0, folder.size(MANIFEST))])
    try:
        document = json.loads(text)
        plan = {field.name: document["plan"][field.name] for field in fields(Plan)}
        plan |= {name: tuple(plan[name]) for name in ("sites", "widths")}
        shards = document["shards"]
        return Manifest(
            Plan(**plan),
            None if shards is None else tuple(Shard(**shard) for shard in shards),
            tuple(document["reducers"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise VesaliusError(
            f"the manifest of '{folder.place}' is damaged or of another version: {error}"
        ) from None
