"""What dictionaries are asked about: texts or pictures, the rows of a site they give, and reconstructions put back.

An analysis of a dictionary is the same for a language model, a vision transformer and a convnet once activations
are rows: one for each token that counts, or each place of a map. Here is the way there and back, in a stream whose
memory does not grow with the number of contexts:

1. `inputs_of`: contexts of a text, or pictures, with the positions that count (BOS does not: it says nothing of the
   text, and at many sites it is unlike all else);
2. `activations_of` and `codes_of`: the rows of a site and what a dictionary makes of them, each with its example and
   position;
3. `spliced` and `moved`: edits that put a reconstruction in the place of the activations, or move one latent and
   leave the rest as it is.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.access import Edit
from vesalius.data.images import Images, open_images
from vesalius.data.text import sample_rows
from vesalius.dictionaries import Dictionary
from vesalius.dictionaries.codes import Codes
from vesalius.dictionaries.sparse import SparseDictionary, before_patches, rows_of, shaped_like
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.site import ATTENTION_PORTS, Site

Change = Callable[[Float[Tensor, "row latent"]], Float[Tensor, "row latent"]]
"""What becomes of codes before they are decoded."""


class Batch(NamedTuple):
    """Some examples, as the model takes them."""

    examples: Int[Tensor, " example"]
    inputs: Tensor
    """Token ids `[example, position]`, or pixels `[example, channel, row, column]`."""
    counts: Bool[Tensor, "example position"] | None
    """Which tokens count; None, of pictures: see `counted`."""

    def counted(self, value: Float[Tensor, "example *axes"]) -> Bool[Tensor, "example position"] | None:
        """Which rows of a site's value count, None: all. Of pictures, every place of a map, and every patch."""
        if self.counts is not None or value.dim() != 3:
            return self.counts
        patches = torch.arange(value.shape[1]) >= before_patches(value.shape[1])
        return patches.expand(len(value), -1)


class Rows(NamedTuple):
    """The activations of one site at the positions that count, one row each."""

    examples: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]
    """The token, or `row · columns + column` of a map."""
    rows: Float[Tensor, "row width"]


class Coded(NamedTuple):
    """Their codes, without zeros."""

    examples: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]
    codes: Codes


class Activity(NamedTuple):
    """How often each latent is active, and how strongly at most."""

    rows: int
    counts: Int[Tensor, " latent"]
    maxima: Float[Tensor, " latent"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Contexts of a text (`ids`), or `pictures`; exactly one of them is there."""

    names: list[str]
    described: str
    """What they are, in words."""
    ids: Int[Tensor, "example position"] | None = None
    bos: int | None = None
    pictures: Images | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Inputs({self.described})"

    @property
    def counts(self) -> Bool[Tensor, "example position"] | None:
        """Which tokens count: all but BOS."""
        return None if self.ids is None else self.ids != (-1 if self.bos is None else self.bos)

    @property
    def hash(self) -> str:
        """sha256 over the token ids, or the pictures."""
        if self.ids is None:
            assert self.pictures is not None
            return self.pictures.hash
        return hashlib.sha256(self.ids.contiguous().numpy().tobytes()).hexdigest()

    def batches(self, model: Model, *, batch: int = 16) -> Iterator[Batch]:
        """In order; a picture that turns out to be damaged is left out."""
        if self.ids is not None:
            assert self.counts is not None
            numbers = torch.arange(len(self)).split(batch)
            yield from map(Batch, numbers, self.ids.split(batch), self.counts.split(batch))
            return
        assert self.pictures is not None
        for numbers, pixels in self.pictures.batches(model.pictures, batch=batch):
            yield Batch(torch.tensor(numbers), pixels.to(device=model.device, dtype=model.dtype), None)


def inputs_of(
    model: Model,
    *,
    text: str | None = None,
    images: str | Path | Images = "shapes",
    contexts: int = 64,
    n_images: int = 256,
    length: int = 128,
    seed: int = 0,
) -> Inputs:
    """What a model is shown: `contexts` rows of `length` tokens of a text, or `n_images` pictures.

    Without a text, the held-out sample; random tokens repeated, for a model without tokenizer. Contexts longer than the
    model reads are cut to what it reads.

    >>> from vesalius.testbed import random_attn
    >>> inputs_of(random_attn(d_vocab=41, n_ctx=49), contexts=3)
    Inputs(3 rows of 24 random tokens, repeated)
    """
    if "images" in model.kinds:
        pictures = open_images(images).take(n_images, seed=seed)
        return Inputs(pictures.names, f"{len(pictures)} pictures of {pictures.source}", pictures=pictures)
    if contexts < 1:
        raise VesaliusError(f"{contexts} contexts were asked for; expected at least 1")
    ids, described = sample_rows(model, text, length=min(length, model.n_ctx), limit=contexts, seed=seed)
    return Inputs([f"context {number}" for number in range(len(ids))], described, ids.cpu(), model.bos)


def activations_of(model: Model, site: str, inputs: Inputs, *, batch: int = 16) -> Iterator[Rows]:
    """The rows of a site, batch by batch; the forward ends there. Raises VesaliusError for a port inside attention."""
    address = Site.parse(site)
    if address.port in ATTENTION_PORTS or address.role in ATTENTION_PORTS:
        raise VesaliusError(
            f"'{site}' has a value for each head; a dictionary reads rows, as of 'attn_out@0'"
        )
    for part in inputs.batches(model, batch=batch):
        yield rows_at(model.value_at(site, part.inputs), part)


def codes_of(model: Model, dictionary: Dictionary, inputs: Inputs, *, batch: int = 16) -> Iterator[Coded]:
    """What a dictionary makes of all that counts, batch by batch."""
    for examples, positions, rows in activations_of(model, reads(dictionary), inputs, batch=batch):
        yield Coded(examples, positions, coded(dictionary, rows))


def activity_of(model: Model, dictionary: Dictionary, inputs: Inputs, *, batch: int = 16) -> Activity:
    """One pass over the codes of all that counts."""
    rows, counts, maxima = 0, torch.zeros(0), torch.zeros(0)
    for _, _, codes in codes_of(model, dictionary, inputs, batch=batch):
        if not rows:
            counts, maxima = torch.zeros(codes.width, dtype=torch.long), torch.zeros(codes.width)
        rows += len(codes)
        latents = codes.latents.cpu()
        counts += latents.bincount(minlength=codes.width)
        maxima.scatter_reduce_(0, latents, codes.values.float().cpu(), "amax")
    return Activity(rows, counts, maxima)


def named_latents(given: list[int] | None, activity: Activity, *, usual: int) -> list[int]:
    """The latents that were asked for, or those with the largest values. Raises VesaliusError for one there is not."""
    width = len(activity.counts)
    if given is None:
        found = activity.maxima.topk(min(usual, width))
        return found.indices[found.values > 0].tolist()
    wrong = [latent for latent in given if not 0 <= latent < width]
    if wrong or not given:
        raise VesaliusError(f"latents {wrong or given} were asked for; this dictionary has 0 to {width - 1}")
    return list(given)


def rows_at(value: Float[Tensor, "example *axes"], batch: Batch) -> Rows:
    """The rows of a recorded value that count, with their places."""
    rows = rows_of(value)
    places = len(rows) // len(value)
    examples = batch.examples.repeat_interleave(places)
    positions = torch.arange(places).repeat(len(value))
    counts = batch.counted(value)
    if counts is None:
        return Rows(examples, positions, rows)
    kept = _kept(counts, value)
    return Rows(examples[kept], positions[kept], rows[kept.to(rows.device)])


def coded(dictionary: Dictionary, rows: Float[Tensor, "row width"]) -> Codes:
    """The codes of rows, without zeros, of any kind of dictionary."""
    return (
        dictionary.codes(rows)
        if isinstance(dictionary, SparseDictionary)
        else Codes.of(dictionary.encode(rows))
    )


def firing(dictionary: Dictionary, rows: Float[Tensor, "row width"]) -> Codes:
    """The codes above 0; negative ones, which components may have, do not fire."""
    codes = coded(dictionary, rows)
    kept = codes.values > 0
    starts = torch.nn.functional.pad(kept.cumsum(0), (1, 0))[codes.starts]
    return Codes(starts, codes.latents[kept], codes.values[kept].float(), codes.width)


def reads(dictionary: Dictionary) -> str:
    """The site whose activations a dictionary encodes: another than it writes to, of a transcoder."""
    return dictionary.reads if isinstance(dictionary, SparseDictionary) else dictionary.site


def reconstructed(
    dictionary: Dictionary, rows: Float[Tensor, "row width_in"], *, change: Change | None = None
) -> Float[Tensor, "row width"]:
    """What a dictionary makes of rows, if `change` is given of codes that it has changed."""
    if not isinstance(dictionary, SparseDictionary):
        codes = dictionary.encode(rows)
        return dictionary.decode(codes if change is None else change(codes))
    made = dictionary.reconstruct(rows)
    if change is None:
        return made
    codes = dictionary.encode(rows)
    return made + dictionary.decode(change(codes)) - dictionary.decode(codes)


def spliced(
    dictionary: Dictionary,
    *,
    change: Change | None = None,
    counts: Bool[Tensor, "example position"] | None = None,
) -> dict[str, Edit]:
    """Edits that replace the activations by the dictionary's reconstruction: `intervene(model, spliced(sae))`.

    `change` is applied to the codes in between; where `counts` is False the activations stay. A transcoder reads one
    site and replaces another.
    """
    return _edits(
        dictionary,
        lambda source, value: shaped_like(reconstructed(dictionary, rows_of(source), change=change), value),
        counts,
    )


def moved(
    dictionary: Dictionary,
    latent: int,
    change: Callable[[Tensor], Tensor],
    *,
    counts: Bool[Tensor, "example position"] | None = None,
    direction: Float[Tensor, " width"] | None = None,
) -> dict[str, Edit]:
    """Edits that change the value of one latent and leave all else, what the dictionary does not explain included.

    With f the latent's values and d its direction, (change(f) − f) · d is added; along another `direction` if one is
    given, as controls want.
    """
    feature = dictionary[latent]

    def move(source: Tensor, value: Tensor) -> Tensor:
        codes = feature.value(rows_of(source).to(torch.float32))
        width = value.shape[1] if value.dim() == 4 else value.shape[-1]
        along = (feature.written(width) if direction is None else direction).to(codes)
        return value + shaped_like((change(codes) - codes)[:, None] * along, value).to(value)

    return _edits(dictionary, move, counts)


def written(dictionary: Dictionary, latent: int) -> Float[Tensor, " width"]:
    """The direction a latent writes."""
    feature = dictionary[latent]
    vector = feature.read if feature.write is None else feature.write
    if vector is None:
        raise VesaliusError(
            f"{feature} is a unit without a direction; expected a latent of a dictionary of directions"
        )
    return vector


def random_directions(
    along: Float[Tensor, " width"], n: int, *, seed: int
) -> Float[Tensor, "direction width"]:
    """Controls: directions drawn at random, as long as the given one."""
    drawn = torch.randn(n, len(along), generator=torch.Generator().manual_seed(seed))
    return (drawn / drawn.norm(dim=1, keepdim=True) * along.float().norm().cpu()).to(along.device)


def random_dictionary(
    dictionary: Dictionary, rows: Float[Tensor, "row width"], *, seed: int
) -> SparseDictionary:
    """A control: random directions about the mean of `rows`, as many as a dictionary has and as many active."""
    codes = firing(dictionary, rows)
    active = max(1, round(len(codes.values) / len(codes)))
    drawn = torch.randn(codes.width, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    directions = torch.nn.functional.normalize(drawn)
    made = SparseDictionary.of_directions(reads(dictionary), directions, k=active, name="random")
    return replace(made, b_in=rows.mean(0))


def where(counts: Bool[Tensor, "example position"] | None, edit: Edit) -> Edit:
    """An edit at the positions that count only."""
    if counts is None:
        return edit
    return lambda value: torch.where(_mask(counts, value), edit(value), value)


def _edits(
    dictionary: Dictionary,
    change: Callable[[Tensor, Tensor], Tensor],
    counts: Bool[Tensor, "example position"] | None,
) -> dict[str, Edit]:
    """`change(source, value)` of what is read and what is written, at one site or, of a transcoder, at two."""
    source = reads(dictionary)
    if source == dictionary.site:
        return {source: where(counts, lambda value: change(value, value).to(value))}
    held: list[Tensor] = []

    def hold(value: Tensor) -> Tensor:
        held[:] = [value]
        return value

    return {source: hold, dictionary.site: where(counts, lambda value: change(held[0], value).to(value))}


def _kept(counts: Bool[Tensor, "example position"], value: Tensor) -> Bool[Tensor, " row"]:
    if value.shape[:-1] != counts.shape:
        raise VesaliusError(
            f"a site of shape {list(value.shape)} has no row for each of {counts.shape[1]} tokens; "
            "expected [batch, position, width]"
        )
    return counts.flatten()


def _mask(counts: Bool[Tensor, "example position"], value: Tensor) -> Tensor:
    _kept(counts, value)
    return counts.to(value.device)[..., None]
