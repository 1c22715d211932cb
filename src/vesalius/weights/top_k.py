"""The k largest entries of every row of a huge product, exactly, without ever holding the product.

Tables of a circuit over the vocabulary (top destinations of a source, top outputs of a source: Elhage et al.
2021, transformer-circuits.pub/2021/framework) rank entries of a matrix with 2.5e9 of them. The cost should be
that of the matrix multiplication alone, so nothing else may pass over all entries one by one:

1. multiply a block of lines into one buffer [entry, line], tile by tile, and while a tile is still in the
   cache take the maximum of every group of entries (a vectorised maximum over a strided axis);
2. the k largest entries of a line lie in its k groups of largest maximum, so only those are looked up and
   ranked.

Means that softmax ignores are removed from the factors before, which costs nothing.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError

if TYPE_CHECKING:
    from vesalius.weights.factored import Factored

Centre = Literal["rows", "columns", "both"]

TILE = 1024
"""Entries multiplied at a time: a tile of 128 lines is half a megabyte and stays in the cache."""
GROUP = 16
"""Entries that share one maximum."""
FEW = 8
"""Maxima that share one again, where there are many."""


class Ranked(NamedTuple):
    """Largest first; equal values in the order of their index."""

    values: Float[Tensor, "line k"]
    indices: Int[Tensor, "line k"]


def top_k(
    matrix: "Factored",
    k: int,
    *,
    along: Literal["rows", "columns"] = "rows",
    centre: Centre | None = "columns",
    block: int = 128,
) -> Ranked:
    """The k largest entries of every row (`along="rows"`) or of every column of a matrix that is factors.

    `centre` says which means are taken out first, see `Factored.centred`; for the most negative entries rank
    `-matrix`. `block` lines are multiplied at a time and hold `block` x (number of entries) floats. Raises
    VesaliusError for a batch of matrices, a k that is not there, or factors that are not finite.

    >>> from vesalius.weights.factored import Factored
    >>> steps = Factored(torch.ones(2, 1), torch.arange(5.0)[None])
    >>> top_k(steps, 2, centre=None).indices
    tensor([[4, 3],
            [4, 3]])
    """
    if len(matrix.shape) != 2:
        raise VesaliusError(
            f"top_k ranks one matrix at a time; this is a batch of shape {list(matrix.shape)}."
        )
    matrix = matrix.centred(centre)
    lines, entries = (matrix.left, matrix.right.mT) if along == "rows" else (matrix.right.mT, matrix.left)
    if not 1 <= k <= len(entries):
        raise VesaliusError(f"k is {k}; every line has {len(entries)} entries to choose from.")
    if not (lines.isfinite().all() and entries.isfinite().all()):
        raise VesaliusError("top_k was given factors that hold NaN or infinity; entries have no order then.")
    return _ranked(lines.contiguous(), entries.contiguous(), k, block)


@torch.no_grad()
def _ranked(lines: Float[Tensor, "line r"], entries: Float[Tensor, "entry r"], k: int, block: int) -> Ranked:
    """Blocks of lines through one buffer; the last block overlaps the one before to be of one size."""
    n = len(entries)
    block = min(block, len(lines))
    tiles = -(-n // TILE)
    wanted = min(k + 1, n)  # one more than asked for, to see whether the last place is shared
    group = GROUP if wanted * GROUP <= n else 1
    buffer = lines.new_full((tiles * TILE, block), -torch.inf)
    members = rearrange(
        buffer, "(tile member group) line -> tile member group line", tile=tiles, member=group
    )
    maxima = lines.new_empty((tiles, TILE // group, block))
    values = lines.new_empty((len(lines), k))
    indices = torch.empty((len(lines), k), dtype=torch.long, device=lines.device)
    for start in range(0, len(lines), block):
        here = slice(min(start, len(lines) - block), min(start, len(lines) - block) + block)
        _fill(members, maxima, lines[here], entries)
        groups = _largest(rearrange(maxima, "tile group line -> (tile group) line"), wanted)
        tile, within = groups // (TILE // group), groups % (TILE // group)
        best, chosen = _best_of(buffer, tile * TILE + within, wanted, members=group, apart=TILE // group)
        if wanted > k:
            tied = (best[:, k - 1] == best[:, k]).nonzero()[:, 0]
            if len(tied):
                chosen[tied, :k] = _first_of_equals(buffer[:n, tied], best[tied, :k], chosen[tied, :k])
        values[here], indices[here] = best[:, :k], chosen[:, :k]
    indices, order = indices.sort(1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return Ranked(values, indices.gather(1, order))


def _fill(
    buffer: Float[Tensor, "tile member group line"],
    maxima: Float[Tensor, "tile group line"],
    lines: Float[Tensor, "line r"],
    entries: Float[Tensor, "entry r"],
) -> None:
    """All entries of these lines, and the largest of every group, one tile at a time."""
    flat = rearrange(buffer, "tile member group line -> (tile member group) line")
    for tile, start in enumerate(range(0, len(entries), TILE)):
        end = min(start + TILE, len(entries))
        torch.matmul(entries[start:end], lines.mT, out=flat[start:end])
        torch.amax(buffer[tile], 0, out=maxima[tile])


def _largest(values: Float[Tensor, "entry line"], wanted: int) -> Int[Tensor, "line wanted"]:
    """Where the largest values of every line are, by maxima of groups again while there are many."""
    if len(values) % FEW or len(values) // FEW < max(wanted, 64):
        return values.mT.contiguous().topk(wanted).indices
    groups = rearrange(values, "(member group) line -> member group line", member=FEW).amax(0)
    return _best_of(values, _largest(groups, wanted), wanted, members=FEW, apart=len(groups)).indices


def _best_of(
    values: Float[Tensor, "entry line"],
    first: Int[Tensor, "line group"],
    wanted: int,
    *,
    members: int,
    apart: int,
) -> Ranked:
    """The largest values of every line among groups that begin at `first`, members `apart` entries apart."""
    steps = torch.arange(members, device=values.device) * apart
    candidates = rearrange(first[:, :, None] + steps, "line group member -> line (group member)")
    best, place = values.mT.gather(1, candidates).topk(wanted)
    return Ranked(best, candidates.gather(1, place))


def _first_of_equals(
    entries: Float[Tensor, "entry line"], best: Float[Tensor, "line k"], chosen: Int[Tensor, "line k"]
) -> Int[Tensor, "line k"]:
    """Where several entries share the last place, those of lowest index, so that the answer is one."""
    k = best.shape[1]
    last = best[:, -1]
    index = torch.arange(len(entries), device=entries.device)[:, None]
    equals = (
        torch.where(entries == last, index, len(entries)).topk(k, dim=0, largest=False, sorted=True).values.mT
    )
    above = (best > last[:, None]).sum(1, keepdim=True)
    slot = torch.arange(k, device=entries.device)[None]
    return torch.where(slot < above, chosen, equals.gather(1, (slot - above).clamp(min=0)))
