"""Harvest: the activations of many sites of a network, over a corpus or over pictures, to disk.

1. The data become numbered contexts; a shard is a stretch of them, known before anything is run.
2. A shard is made by itself: its contexts run through the network in batches, each forward ends at the last site,
   the positions that count are kept (`per_context` of them, drawn by a hash of seed, context and position), and the
   rows are permuted among themselves on their way into the shard.
3. It is written under another name, forced to the disk and renamed; its header holds its sha256.

So a shard is a function of the network, the plan and its number. A harvest that is killed and started again finds
the shards that are whole, makes the others, and ends with the same bytes; so do workers in whatever order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vesalius.access import record, sites_of
from vesalius.dictionaries.sparse import before_patches, rows_of
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.site import ATTENTION_PORTS, Site
from vesalius.store.activation_store import ActivationStore, open_store
from vesalius.store.contexts import FILE, Contexts, Data, open_contexts
from vesalius.store.engine import Engine, local
from vesalius.store.folder import Folder, open_folder
from vesalius.store.plan import MANIFEST, Manifest, NonFinite, Plan, Shard, read_manifest, shard_name
from vesalius.store.precision import LARGEST, SCALE, STORED, Precision, kept, named
from vesalius.store.ray_engine import ray_engine
from vesalius.store.reducers import EMPTY, hashed
from vesalius.store.reduction import Makers, Reduction
from vesalius.store.shard import check_shard, write_shard

SHARD_ROWS = 131_072


def harvest(
    model: Model,
    data: Data,
    sites: str | Site | Sequence[str | Site],
    *,
    to: str | Path,
    dtype: Precision = "float16",
    length: int | None = None,
    per_context: int | None = None,
    include_special: bool = False,
    nonfinite: NonFinite = "refuse",
    limit: int | None = None,
    field: str = "text",
    shard_rows: int = SHARD_ROWS,
    batch: int = 16,
    seed: int = 0,
    reducers: Makers | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> ActivationStore:
    """Write the activations of `sites` over `data` to the folder or URL `to`, and open them as a store.

    `data` is a corpus (see `open_corpus`), token ids `[context, position]`, or pictures. `length` is the tokens of a
    context, by default 256 or as many as the model reads; `limit` is how many contexts (or pictures) are read;
    `per_context` how many of the positions of each are kept. Tokens that a tokenizer adds (BOS, CLS, padding), and
    those that a vision transformer has before its patches ([CLS], registers), are left out unless `include_special`.
    `reducers` are fed with what is written (`store.reduced`). The engine `ray` makes shards on the cluster at
    `address`. `watch` is told how many shards of how many are done.

    Called again it goes on where it was stopped, and makes anew what is missing or damaged, and only that. Raises
    VesaliusError for another model, other data or another plan than those of what lies in `to`, for a site that does
    not give one row for each position, for activations that are not finite (or `nonfinite="drop"` them, which is
    counted), and for a full disk.
    """
    folder = open_folder(to)
    contexts = _contexts(model, data, folder, length=length, limit=limit, field=field)
    if min(contexts.count, batch, shard_rows, 1 if per_context is None else per_context) < 1:
        raise VesaliusError(
            f"{contexts.count} contexts in batches of {batch} and shards of {shard_rows} rows were asked for; "
            "expected at least 1 of each"
        )
    names = [str(one) for site in _listed(sites) for one in sites_of(model, site)]
    places, leading, widths = _shapes(model, contexts, names)
    counted = min(places, per_context or places)
    plan = Plan(
        model=model.name,
        model_hash=model.hash,
        data_hash=contexts.hash,
        sites=tuple(names),
        widths=widths,
        dtype=named(dtype),
        contexts=contexts.count,
        contexts_per_shard=max(1, shard_rows // counted),
        places=places,
        leading=0 if include_special else leading,
        per_context=per_context,
        include_special=include_special,
        nonfinite=nonfinite,
        batch=batch,
        seed=seed,
        threads=torch.get_num_threads(),
    )
    plan = _settled(folder, plan)
    work = Harvest(model, contexts, plan, folder)
    reduction = Reduction(folder, plan, reducers or {})
    run: Engine = {"local": local, "ray": ray_engine(address, gpus=int(model.device.type == "cuda"))}[engine]
    made: dict[int, Shard] = {}
    for number, shard in run(work, range(plan.shards)):
        made[number] = shard
        while reduction.done in made:
            reduction.add(reduction.done)
        if watch is not None:
            watch(len(made), plan.shards)
    Manifest(plan, tuple(made[number] for number in range(plan.shards)), tuple(reducers or ())).write(folder)
    return open_store(to)


@dataclass(frozen=True)
class Harvest:
    """What is done for a shard: a function of the network, the contexts, the plan and the shard's number."""

    model: Model
    contexts: Contexts
    plan: Plan
    folder: Folder

    def known(self, number: int) -> Shard | None:
        """The shard that lies there already, if it is whole."""
        if shard_name(number) not in self.folder.names():
            return None
        try:
            header = check_shard(self.folder, shard_name(number))
        except VesaliusError:  # damaged: it is made anew
            return None
        rows = header.columns["position"].shape[0]
        return Shard(rows, int(header.metadata["dropped"]), header.metadata["sha256"])

    def make(self, number: int) -> dict[str, Tensor]:
        """The columns of a shard: for each site the rows, and what and where each row is."""
        plan, (first, last) = self.plan, self.plan.stretch(number)
        stretch = self.contexts.stretch(first, last)
        counts = self._counts(first, last, stretch.special)
        context, position = counts.nonzero(as_tuple=True)
        starts = [0, *counts.sum(1).cumsum(0).tolist()]
        generator = torch.Generator().manual_seed(int(hashed(plan.seed, torch.tensor([number]))))
        target = torch.randperm(len(context), generator=generator)

        columns = {"context": (context + first).int(), "position": position.int()}
        if stretch.tokens is not None and stretch.documents is not None:
            columns |= {"token": stretch.tokens[counts], "document": stretch.documents[counts]}
        columns = {
            label: torch.empty_like(values).index_copy_(0, target, values)
            for label, values in columns.items()
        }
        for site, width in zip(plan.sites, plan.widths):
            columns[site] = torch.zeros(len(target), width, dtype=STORED[plan.dtype])
            if plan.dtype == "int8":
                columns[SCALE + site] = torch.zeros(len(target))

        good = torch.zeros(len(target), dtype=torch.bool)
        with _threads(plan.threads):
            for start in range(first, last, plan.batch):
                stop = min(start + plan.batch, last)
                read, inputs = self.contexts.inputs(self.model, start, stop)
                chosen = torch.zeros(stop - start, dtype=torch.bool)
                chosen[[context - start for context in read]] = True
                among = counts[start - first : stop - first]
                places = target[starts[start - first] : starts[stop - first]]
                places = places[chosen.repeat_interleave(among.sum(1))]
                index = among[chosen].flatten().nonzero()[:, 0]
                good[places] = True
                for site, value in self._values(inputs).items() if read else ():
                    rows = rows_of(value).index_select(0, index.to(value.device))
                    good[places] &= self._finite(site, rows, start)
                    numbers, scales = kept(rows, plan.dtype)
                    columns[site].index_copy_(0, places, numbers.cpu())
                    if scales is not None:
                        columns[SCALE + site].index_copy_(0, places, scales.cpu())
        return columns if good.all() else {label: values[good] for label, values in columns.items()}

    def keep(self, number: int, columns: dict[str, Tensor]) -> Shard:
        """Write a shard; it is there when this returns."""
        first, last = self.plan.stretch(number)
        wanted = int(self._counts(first, last, self.contexts.stretch(first, last).special).sum())
        rows = len(columns["position"])
        about = {"dropped": str(wanted - rows)}
        return Shard(rows, wanted - rows, write_shard(self.folder, shard_name(number), columns, about=about))

    def _counts(
        self, first: int, last: int, special: Bool[Tensor, "context position"] | None
    ) -> Bool[Tensor, "context position"]:
        """Which positions are kept."""
        plan = self.plan
        counts = torch.ones(last - first, plan.places, dtype=torch.bool)
        counts[:, : plan.leading] = False
        if special is not None and not plan.include_special:
            counts &= ~special
        if plan.per_context is None or plan.per_context >= plan.places:
            return counts
        keys = hashed(plan.seed + 1, torch.arange(first, last)[:, None], torch.arange(plan.places))
        drawn = torch.where(counts, keys, EMPTY).argsort(1)[:, : plan.per_context]
        return counts & torch.zeros_like(counts).scatter_(1, drawn, True)

    @torch.no_grad()
    def _values(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the sites hold. One alone is read without a copy: the forward ends there, nothing writes into it."""
        sites = self.plan.sites
        with record(self.model, sites, stop=True, gradients=len(sites) == 1) as acts:
            self.model(inputs)
        return dict(acts)

    def _finite(self, site: str, rows: Float[Tensor, "row width"], start: int) -> Bool[Tensor, " row"]:
        """Which rows are finite; refuses what half precision cannot hold, and all if the plan says so."""
        bound = LARGEST if self.plan.dtype == "float16" else torch.finfo(rows.dtype).max
        low, high = rows.aminmax() if rows.numel() else (rows.new_zeros(()), rows.new_zeros(()))
        if bool((low >= -bound) & (high <= bound)):
            return torch.ones(len(rows), dtype=torch.bool)
        finite = rows.isfinite().all(1).cpu()
        where = f"'{site}' of {self.model.name} in the {self.plan.batch} contexts from {start} on"
        if self.plan.nonfinite == "refuse" and not finite.all():
            raise VesaliusError(
                f"{int((~finite).sum())} rows of {where} are NaN or infinite; expected finite numbers, "
                "or nonfinite='drop' to leave such rows out and count them"
            )
        largest = rows[finite.to(rows.device)].abs().max() if finite.any() else rows.new_zeros(())
        if largest > bound:
            raise VesaliusError(
                f"{where} reaches {float(largest):.4g}, beyond the {bound:,.0f} of float16; expected dtype='bfloat16'"
            )
        return finite


def _contexts(
    model: Model, data: Data, folder: Folder, *, length: int | None, limit: int | None, field: str
) -> Contexts:
    """Raises VesaliusError where `to` is a folder of other things."""
    names = folder.names()
    foreign = sorted(name for name in names if not name.startswith(".") and name not in (FILE, MANIFEST))
    if foreign and MANIFEST not in names:
        raise VesaliusError(
            f"'{folder.place}' holds '{foreign[0]}' and is no activation store; expected a new or empty folder"
        )
    folder.clear()
    if MANIFEST in names:
        _same(folder, {"model": model.name, "model_hash": model.hash})
    return open_contexts(model, data, folder, length=length, limit=limit, field=field)


def _shapes(model: Model, contexts: Contexts, sites: list[str]) -> tuple[int, int, tuple[int, ...]]:
    """Positions in a context, how many of them lead and are no part of a picture, and the width of each site.

    The patches of a picture are a square; what a vision transformer has before them are [CLS] and registers.
    """
    parsed = [Site.parse(site) for site in sites]
    heads = [
        s for s in parsed if s.index is None and (s.role in ATTENTION_PORTS or s.port in ATTENTION_PORTS)
    ]
    if heads:
        raise VesaliusError(
            f"'{heads[0]}' has a value for each head; rows are harvested, as of 'attn_out@0' or '{heads[0]}[0]'"
        )
    _, inputs = contexts.inputs(model, 0, 1)
    with torch.no_grad(), record(model, sites, stop=True) as acts:
        model(inputs)
    shapes = {site: (rows_of(acts[site]).shape, acts[site].dim()) for site in sites}
    places = {shape[0] for shape, _ in shapes.values()}
    if len(places) > 1 or ("images" not in model.kinds and places != {inputs.shape[1]}):
        has = ", ".join(f"'{site}' {shape[0]}" for site, (shape, _) in shapes.items())
        raise VesaliusError(
            f"sites have different numbers of positions ({has}); expected those of one harvest to have the same, "
            "one for each token of a text"
        )
    tokens_of_a_picture = "images" in model.kinds and any(dim == 3 for _, dim in shapes.values())
    count = places.pop()
    leading = before_patches(count) if tokens_of_a_picture else 0
    return count, leading, tuple(shape[1] for shape, _ in shapes.values())


def _same(folder: Folder, plan: dict) -> Plan:
    """The plan that lies in a folder; raises VesaliusError if it is not what is wanted now."""
    known = read_manifest(folder).plan
    for name, wanted in plan.items():
        found = getattr(known, name)
        if found != wanted and name not in ("threads", "model"):
            raise VesaliusError(
                f"'{folder.place}' holds a harvest with {name} {_short(found)}, and {_short(wanted)} was asked for; "
                "expected the same, or another folder"
            )
    return known


def _settled(folder: Folder, plan: Plan) -> Plan:
    """The plan that lies there already, or this one, written before anything is made."""
    if MANIFEST in folder.names():
        return _same(folder, {field.name: getattr(plan, field.name) for field in fields(Plan)})
    Manifest(plan).write(folder)
    return plan


def _short(value: object) -> str:
    return value[:12] + "…" if isinstance(value, str) and len(value) == 64 else str(value)


def _listed(sites: str | Site | Sequence[str | Site]) -> list[str | Site]:
    return [sites] if isinstance(sites, str | Site) else list(sites)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
