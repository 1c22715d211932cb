"""The logits of an attention-only transformer as a sum over paths, its attention patterns held as they were.

Elhage et al. 2021 (transformer-circuits.pub/2021/framework): with the patterns A frozen, the network is
linear in its embeddings, and multiplies out into

    logits = (Id ⊗ W_E W_U) + Σ_h (A^h ⊗ W_E W_OV^h W_U) + Σ_h,h' (A^h' A^h ⊗ W_E W_OV^h W_OV^h' W_U) + …

the direct path, the single heads, the virtual heads of two, and so on: one term for each sequence of heads in
rising layers. A term is asked for by its path, `terms[(0, 3), (1, 5)]` (layer, head), and computed then; the
sum over all paths of one length comes from one pass through the layers, without listing them.

A normalisation is frozen like a pattern: its gain and centring are folded into the weights, and the scale it
divided by at every position goes with the pattern. What the paths do not account for (MLPs, biases, whatever
else a model adds) is the remainder, which is printed. Positions in the residual stream are a second source
beside the token embedding; those given only to queries and keys (shortformer, rotary) act through the frozen
patterns alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import combinations, pairwise, product
from math import comb
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import Recording, record
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights.circuits import all_ov, final_gain, widened
from vesalius.weights.factored import Factored

Path = tuple[tuple[int, int], ...]
"""(layer, head) of every head that is passed, in rising layers; () is the direct path."""


class Remainder(NamedTuple):
    """What the terms leave unexplained, in logits."""

    values: Float[Tensor, "batch position token"]
    largest: float
    """The largest of them, without sign."""
    relative: float
    """Their norm over that of the logits: 0 if everything is explained, 1 if nothing is."""


@dataclass(frozen=True, eq=False, repr=False)
class PathTerms(Mapping):
    """Path -> its share of the logits, at the positions and of the tokens that were asked for."""

    model: Model
    logits: Float[Tensor, "batch position token"]
    """The model's own."""
    order: int
    """The largest number of heads in a path."""
    sources: Mapping[str, Float[Tensor, "batch pos d_model"]]
    """What paths begin with: "tokens", and "positions" where the residual stream carries them."""
    patterns: Sequence[Float[Tensor, "batch head query key"]]
    """Attention of every layer, times what its norms multiplied queries and keys' positions by."""
    circuits: Sequence[Factored]
    """OV circuits of every layer, [head, d_model, d_model]."""
    scale: Float[Tensor, "batch pos 1"]
    """What the final norm multiplied every position by."""
    positions: Int[Tensor, " position"]
    tokens: Int[Tensor, " token"] | slice

    @property
    def terms(self) -> "Mapping[Path, Tensor]":
        """This mapping itself."""
        return self

    def __getitem__(self, path: Path) -> Float[Tensor, "batch position token"]:
        stream = reduce(torch.add, self.sources.values())
        for (layer, head), pattern in zip(path, self._passed(path), strict=True):
            circuit = self.circuits[layer][head]
            stream = pattern @ (stream @ circuit.left) @ circuit.right
        return self._read(stream if path else stream[:, self.positions])

    def __iter__(self) -> Iterator[Path]:
        layers, heads = range(len(self.circuits)), range(self.model.shape.n_heads if self.circuits else 0)
        for length in range(self.order + 1):
            for passed in combinations(layers, length):
                for chosen in product(heads, repeat=length):
                    yield tuple(zip(passed, chosen, strict=True))

    def __len__(self) -> int:
        heads = self.model.shape.n_heads if self.circuits else 0
        return sum(comb(len(self.circuits), length) * heads**length for length in range(self.order + 1))

    def pattern(self, path: Path) -> Float[Tensor, "batch position source"]:
        """Where a path reads from: the product A^h' A^h of its heads' patterns, that of a virtual head."""
        length = self.scale.shape[1]
        moved = torch.eye(length, dtype=self.scale.dtype, device=self.scale.device).expand(
            len(self.scale), -1, -1
        )
        for pattern in self._passed(path):
            moved = pattern @ moved
        return moved if path else moved[:, self.positions]

    def of(self, source: str) -> "PathTerms":
        """The terms that begin with one source alone, "tokens" or "positions"."""
        if source not in self.sources:
            raise VesaliusError(
                f"Paths were asked to begin with {source!r}; here they begin with {', '.join(self.sources)}."
            )
        return replace(self, sources={source: self.sources[source]})

    @cached_property
    def by_order(self) -> list[Float[Tensor, "batch position token"]]:
        """The sum of all terms with 0 heads, with 1 head, … up to `order`."""
        start = reduce(torch.add, self.sources.values())
        streams = [start, *[torch.zeros_like(start)] * self.order]  # by the number of heads passed so far
        for layer, (pattern, circuit) in enumerate(zip(self.patterns, self.circuits, strict=True)):
            for n in range(min(layer + 1, self.order), 0, -1):
                streams[n] = streams[n] + _attend(streams[n - 1], pattern, circuit)
        return [self._read(stream[:, self.positions]) for stream in streams]

    @cached_property
    def total(self) -> Float[Tensor, "batch position token"]:
        """The sum of all terms."""
        return reduce(torch.add, self.by_order)

    @cached_property
    def remainder(self) -> Remainder:
        """The model's logits less the sum of all terms."""
        left = self.logits - self.total
        return Remainder(left, left.abs().max().item(), (left.norm() / self.logits.norm()).item())

    def __str__(self) -> str:
        frozen = "patterns" if self.model.architecture.norm == "none" else "patterns and norm scales"
        return (
            f"{len(self)} paths of up to {self.order} heads, from {' and '.join(self.sources)}, "
            f"with frozen {frozen}; unexplained: {self.remainder.relative:.2%} of the logits' norm, "
            f"at most {self.remainder.largest:.2g}"
        )

    def _passed(self, path: Path) -> Iterator[Float[Tensor, "batch query key"]]:
        """The patterns along a path, the last one only where it is asked for."""
        layers = [layer for layer, _ in path]
        heads, depth = self.model.shape.n_heads, len(self.circuits)
        if any(late <= early for early, late in pairwise(layers)):
            raise VesaliusError(f"Path {path} was asked for; its layers must rise, one head in each.")
        if any(not (0 <= layer < depth and 0 <= head < heads) for layer, head in path):
            raise VesaliusError(
                f"Path {path} was asked for; layers go from 0 to {depth - 1}, heads from 0 to {heads - 1}."
            )
        for place, (layer, head) in enumerate(path):
            pattern = self.patterns[layer][:, head]
            yield pattern[:, self.positions] if place == len(path) - 1 else pattern

    def _read(self, stream: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position token"]:
        """Logits of a part of the residual stream at the positions asked for."""
        W_U = widened(self.model.weight("W_U")[:, self.tokens])
        return (final_gain(self.model, stream) * self.scale[:, self.positions]) @ W_U


def path_expansion(
    model: Model,
    ids: Int[Tensor, "batch pos"],
    *,
    order: int | None = None,
    positions: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
) -> PathTerms:
    """Expand the logits of these texts into paths of up to `order` heads, computed as they are asked for.

    `order` None goes as deep as the model; `positions` and `tokens` choose which logits, all by default.
    Raises VesaliusError for a model that normalises its residual stream, and for what is out of range.

    >>> from vesalius.testbed import random_attn
    >>> terms = path_expansion(random_attn(), torch.tensor([[1, 2, 3]]))
    >>> len(terms), terms[(0, 3), (1, 2)].shape, terms.remainder.relative < 1e-5
    (25, torch.Size([1, 3, 50]), True)
    """
    depth = model.shape.n_layers
    order = depth if order is None else min(order, depth)
    if order < 0:
        raise VesaliusError(f"order is {order}; it is a number of heads, 0 for the direct path alone.")
    if model.architecture.residual == "post_norm":
        raise VesaliusError(
            f"{model.name} normalises the residual stream itself; paths need one that is only added to."
        )
    length = ids.shape[1]
    for name, chosen, size in (("position", positions, length), ("token", tokens, model.shape.d_vocab)):
        if chosen is not None and not all(0 <= index < size for index in chosen):
            raise VesaliusError(f"A {name} out of range was asked for; {name}s go from 0 to {size - 1}.")
    ids = ids.to(model.device)
    sources = _sources(model, ids)
    with torch.no_grad():
        if depth == 0:
            logits, patterns, last = model.logits(ids), [], reduce(torch.add, sources.values())
        else:
            with record(model, _sites(model)) as acts:
                logits = model.logits(ids)
            patterns = [_frozen(model, acts, layer) for layer in range(depth)]
            last = widened(acts[f"resid_post@{depth - 1}"])
    here = torch.tensor(range(length) if positions is None else positions, device=model.device)
    which = slice(None) if tokens is None else torch.tensor(tokens, device=model.device)
    return PathTerms(
        model=model,
        logits=widened(logits)[:, here][:, :, which],
        order=order,
        sources=sources,
        patterns=patterns,
        circuits=[all_ov(model, layer) for layer in range(depth)],
        scale=_scale(model, last) if model.has("norm_final") else torch.ones_like(last[:, :, :1]),
        positions=here,
        tokens=which,
    )


def _sources(model: Model, ids: Int[Tensor, "batch pos"]) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """Token embeddings, and positions where they are added to the residual stream."""
    sources = {"tokens": widened(model.weight("W_E"))[ids]}
    if model.architecture.positions == "residual":
        sources["positions"] = widened(model.weight("W_pos"))[: ids.shape[1]].expand_as(sources["tokens"])
    return sources


def _sites(model: Model) -> list[str]:
    """What has to be frozen: patterns, and what every norm on the way reads."""
    read = ["resid_pre@*"] if model.has("norm1") else []
    written = ["z@*"] if model.has("norm1_post") else []
    return ["pattern@*", *read, *written, f"resid_post@{model.shape.n_layers - 1}"]


def _frozen(model: Model, acts: Recording, layer: int) -> Float[Tensor, "batch head query key"]:
    """A layer's pattern, its keys times the scale of the norm before attention, queries of one after it."""
    pattern = widened(acts[f"pattern@{layer}"])
    if model.has("norm1"):
        pattern = pattern * _scale(model, widened(acts[f"resid_pre@{layer}"]))[:, None].mT
    if model.has("norm1_post"):
        W_O, b_O = (widened(model.weight(role, layer)) for role in ("W_O", "b_O"))
        z = widened(acts[f"z@{layer}"])
        out = einsum(z, W_O, "batch head pos d_head, head d_head d_model -> batch pos d_model") + b_O
        pattern = pattern * _scale(model, out)[:, None]
    return pattern


def _scale(model: Model, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos 1"]:
    """What a norm multiplies each position by, beside its gain: 1 / standard deviation, or 1 / RMS."""
    if model.architecture.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return (x.square().mean(-1, keepdim=True) + model.weight("eps").to(x)).rsqrt()


def _attend(
    stream: Float[Tensor, "batch pos d_model"],
    pattern: Float[Tensor, "batch head query key"],
    circuit: Factored,
) -> Float[Tensor, "batch pos d_model"]:
    """What a layer's heads together make of a part of the residual stream, one at a time to stay small."""
    heads = range(pattern.shape[1])
    return reduce(
        torch.add, (pattern[:, head] @ (stream @ circuit.left[head]) @ circuit.right[head] for head in heads)
    )
