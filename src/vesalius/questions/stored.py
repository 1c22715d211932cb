"""Questions to an activation store: its rows where a question is asked, with the answers.

What a store knows answers for it: the classes of its tokens, the classes of the pictures it was harvested from, or
labels for its documents or rows. A store that is larger than `rows` is sampled by whole contexts, or, where a document
is read at one place or from its mean, by whole documents; it is gone through in blocks, so that memory holds the sample
alone, as precise as it is stored.

A store has no random-init twins. They read what the store was harvested from: tokens lie in it, pictures must be given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.access import record
from vesalius.data.images import Images, open_images
from vesalius.dictionaries.sparse import rows_of
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.questions.answered import Answered, where_asked
from vesalius.questions.asked import BATCH, OF_TOKENS, TOKEN_CLASSES, checked, of_pictures, token_answers
from vesalius.questions.labels import Given, Labels, given_labels
from vesalius.store import ActivationStore, open_store
from vesalius.store.activation_store import Places
from vesalius.store.contexts import FILE, Contexts, PictureContexts, TokenContexts, special_tokens
from vesalius.store.precision import STORED, kept, value_of
from vesalius.store.shard import read_header

BLOCK = 1 << 18
"""Rows whose places are looked at together."""
CHUNK = 8192
"""Rows that are read together."""

Piece = tuple[Int[Tensor, " read"], dict[str, Float[Tensor, "read width"]]]


@dataclass(frozen=True, eq=False)
class Stored:
    """The rows of a store that are asked something, in the order of their contexts, and the answers."""

    store: ActivationStore
    source: Contexts | None
    """What was harvested; None if it is not at hand."""
    name: str
    classes: tuple[str, ...]
    where: str | int
    grouped: str
    """What rows of one group share."""
    rows: Int[Tensor, " read"]
    """Their numbers in the store."""
    contexts: Int[Tensor, " read"]
    places: Int[Tensor, " read"]
    of: Int[Tensor, " read"]
    """The number of the answer that a row is read for; several share one where it is read from a mean."""
    labels: Int[Tensor, " answer"]
    inputs: Int[Tensor, " answer"]
    groups: Int[Tensor, " answer"]

    @property
    def about(self) -> dict:
        """What was read of which store."""
        known = {key: self.store.about[key] for key in ("data_hash", "dtype")}
        known |= {"rows_read": len(self.rows), "rows_of_store": self.store.rows, "parted_by": self.grouped}
        return {"store": str(self.store.folder.place), **known}

    def answered(self, network: Model, sites: list[str]) -> Answered:
        """Of the network that the store is of, what lies in it; of another, what it makes of the same inputs."""
        own = network.hash == self.store.plan.model_hash
        pieces = self._read(sites) if own else self._run(network, sites)
        precision = STORED[self.store.plan.dtype]
        held = precision if precision.is_floating_point and self.where != "mean" else torch.float32
        width = dict(zip(self.store.sites, self.store.widths))
        acts = {site: torch.zeros(len(self.labels), width[site], dtype=held) for site in sites}
        for index, values in pieces:
            for site, value in values.items():
                acts[site].index_add_(0, self.of[index], value.to(held))
        if self.where == "mean":
            counts = self.of.bincount()[:, None]
            acts = {site: value / counts for site, value in acts.items()}
        places = torch.full_like(self.labels, -1) if self.where in ("mean", "last") else self.places
        return Answered(acts, self.labels, self.inputs, places, self.groups, self.where)

    def _read(self, sites: list[str]) -> Iterator[Piece]:
        rows, order = self.rows.sort()
        kept_rows = self.store[sites]
        for first in range(0, self.store.rows, CHUNK):
            last = min(first + CHUNK, self.store.rows)
            begin, end = torch.searchsorted(rows, torch.tensor([first, last])).tolist()
            if begin < end:
                values = kept_rows.rows(first, last)
                yield order[begin:end], {s: value[rows[begin:end] - first] for s, value in zip(sites, values)}

    @torch.no_grad()
    def _run(self, network: Model, sites: list[str]) -> Iterator[Piece]:
        """Kept as the store keeps its own."""
        assert self.source is not None
        chosen, local = self.contexts.unique(return_inverse=True)
        for batch in range(0, len(chosen), BATCH):
            numbers = chosen[batch : batch + BATCH].tolist()
            given = torch.cat([self.source.inputs(network, number, number + 1)[1] for number in numbers])
            first, last = torch.searchsorted(local, torch.tensor([batch, batch + BATCH])).tolist()
            index = torch.arange(first, last)
            place = (local[index] - batch) * self.store.plan.places + self.places[index]
            with record(network, sites, stop=True) as acts:
                network(given)
            precision = self.store.plan.dtype
            rows = {site: rows_of(acts[site]).cpu()[place] for site in sites}
            yield index, {site: value_of(*kept(value, precision)) for site, value in rows.items()}


def stored(
    model: Model,
    store: str | Path | ActivationStore,
    labels: Labels,
    *,
    position: str | int = "auto",
    rows: int = 65_536,
    images: str | Path | Images = "shapes",
    seed: int = 0,
) -> Stored:
    """The rows of a store that are asked something, at most `rows` of them, drawn with a seed.

    `labels` is the name of a question, or labels: see `given_labels`. Raises VesaliusError for a store of a network
    with other weights, labels that do not fit, or a position that is not there.
    """
    opened = (store if isinstance(store, ActivationStore) else open_store(store)).of(model.hash)
    source = _source(model, opened, images)
    special = torch.tensor(sorted(special_tokens(model)), dtype=torch.long)
    count = opened.plan.contexts
    documents, fingerprint = count, None
    if isinstance(source, TokenContexts) and source.documents:
        documents, fingerprint = source.documents, read_header(opened.folder, FILE).metadata["source"]
    given, name = None, "labels"
    if isinstance(labels, str | Path) and str(labels) in (*OF_TOKENS, "image_class", "auto"):
        name = checked(model, labels)
    if name == "image_class":
        if not isinstance(source, PictureContexts):
            raise VesaliusError(
                f"'{opened.folder.place}' was harvested from other pictures than {open_images(images).source}; "
                "expected images= those, for their classes"
            )
        asked = of_pictures(source.pictures)
        answers = torch.stack(asked.answers)[:count]
        given = Given(name, asked.classes, answers, of_rows=False)
    elif name == "labels":
        given = given_labels(labels, opened, documents=documents, source=fingerprint)
        name = given.name
    where = where_asked(
        position, name=name, of_tokens=given is None or given.of_rows, of_pictures="images" in model.kinds
    )
    number, places = _drawn(opened, given, where, special, documents, rows, seed)
    order = (places.context * opened.plan.places + places.position).argsort()
    number, places = number[order], _at(places, order)

    if given is None:
        assert isinstance(source, TokenContexts)
        truth = _of_tokens(model, name, source, places)
        classes = ("new", "repeated") if name == "repeated" else TOKEN_CLASSES
        known = truth >= 0
        truth, number = truth[known], number[known]
        places = _at(places, known)
    else:
        truth, classes = given.labels[number if given.of_rows else places.document], given.classes
    grouped, groups = "document", places.document
    if given is not None and given.groups is not None:
        grouped, groups = "group of the file", given.groups[number if given.of_rows else places.document]
    elif len(places.document.unique()) < 3:
        grouped, groups = "context", places.context
    inputs, of = places.document, torch.arange(len(number))
    if where in ("last", "mean"):
        inputs, of = places.document.unique(return_inverse=True)
        one = torch.zeros_like(inputs).scatter_(0, of, torch.arange(len(of)))
        truth, groups = truth[one], groups[one]
    return Stored(
        opened, source, name, classes, where, grouped, number, places.context, places.position, of, truth, inputs,
        groups,
    )  # fmt: skip


def _source(model: Model, store: ActivationStore, images: str | Path | Images) -> Contexts | None:
    """What a store was harvested from, if it is at hand."""
    if "images" not in model.kinds:
        return TokenContexts(store.folder, special_tokens(model))
    pictures = open_images(images)
    return PictureContexts(pictures, store.plan.contexts) if pictures.hash == store.plan.data_hash else None


def _drawn(
    store: ActivationStore,
    given: Given | None,
    where: str | int,
    special: Int[Tensor, " token"],
    documents: int,
    rows: int,
    seed: int,
) -> tuple[Int[Tensor, " drawn"], Places]:
    """Whole contexts or documents in an order of chance, as many as have `rows` rows that are asked about."""

    def known(first: int, places: Places) -> Bool[Tensor, " row"]:
        mask = torch.ones_like(places.context, dtype=torch.bool)
        if places.token is not None:
            mask &= ~torch.isin(places.token, special)
        if given is not None:
            item = torch.arange(first, first + len(mask)) if given.of_rows else places.document
            mask &= given.labels[item] >= 0
        return mask & (places.position == where) if isinstance(where, int) else mask

    def key(places: Places) -> Int[Tensor, " row"]:
        return places.context * store.plan.places + places.position

    ends = torch.full((documents,), -1)
    if where == "last":
        for first, places in _blocks(store):
            mask = known(first, places)
            ends.scatter_reduce_(0, places.document[mask], key(places)[mask], "amax")

    def asked(first: int, places: Places) -> Bool[Tensor, " row"]:
        mask = known(first, places)
        return mask & (key(places) == ends[places.document]) if where == "last" else mask

    whole = where in ("last", "mean")
    counts = torch.zeros(documents if whole else store.plan.contexts, dtype=torch.long)
    for first, places in _blocks(store):
        unit = places.document if whole else places.context
        counts += unit[asked(first, places)].bincount(minlength=len(counts))
    present = counts.nonzero()[:, 0]
    order = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))]
    if not len(present):
        raise VesaliusError(
            f"'{store.folder.place}' has no row at position {where}; its contexts have {store.plan.places} positions"
        )
    chosen = torch.zeros(len(counts), dtype=torch.bool)
    chosen[order[counts[order].cumsum(0) <= rows]] = True
    if not chosen.any():
        unit = "document" if whole else "context"
        raise VesaliusError(
            f"{rows} rows were asked for; a {unit} of '{store.folder.place}' has {int(counts[order[0]])}"
        )
    drawn: list[tuple[Tensor, Places]] = []
    for first, places in _blocks(store):
        mask = asked(first, places) & chosen[places.document if whole else places.context]
        drawn.append((first + mask.nonzero()[:, 0], _at(places, mask)))
    numbers, columns = zip(*drawn)
    context, position, document = (torch.cat([one[column] for one in columns]) for column in range(3))
    return torch.cat(numbers), Places(context, position, document, None)


def _at(places: Places, index: Tensor) -> Places:
    return Places(places.context[index], places.position[index], places.document[index], None)


def _blocks(store: ActivationStore) -> Iterator[tuple[int, Places]]:
    for first in range(0, store.rows, BLOCK):
        yield first, store.places(first, min(first + BLOCK, store.rows))


def _of_tokens(model: Model, name: str, source: TokenContexts, places: Places) -> Int[Tensor, " row"]:
    """The answers of tokens; those that the harvest left out are asked nothing."""
    chosen, local = places.context.unique(return_inverse=True)
    stretches = [source.stretch(number, number + 1) for number in chosen.tolist()]
    tokens, documents, special = (torch.cat(column) for column in zip(*stretches))
    return token_answers(model, name, tokens, special, documents)[local, places.position]
