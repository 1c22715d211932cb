"""What dashboards of all latents need, in one pass over sparse codes, against one pass for every 128 latents.

The network is zoo/mlp-1l, the dictionary 4,096 rows of its neurons as directions, TopK 32. Ours is `LatentExamples`
and the correlations with all neurons. The other side is written after SAEDashboard's way: for each batch of latents
all tokens are encoded, TopK needing all latents to know the largest, the batch's values are kept dense [prompt, token,
latent], and each latent's top, intervals, histogram and correlations are taken from there. It is timed for
`MEASURED` of the batches, each of which costs the same. Both read the same activations from memory.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.latents.co_moments import CoMoments
from vesalius.latents.examples import LatentExamples
from vesalius.latents.inputs import activations_of, inputs_of

LATENTS, BATCH, MEASURED, LENGTH, TOP, INTERVALS = 4096, 128, 1, 128, 20, 11
CONTEXTS = 1024
"""A million tokens would be 8,192; cost is linear in them, so fewer are timed."""


@cache
def activations() -> Tensor:
    """`[context, token, neuron]`, in half precision."""
    model = vs.load("zoo/mlp-1l")
    inputs = inputs_of(model, contexts=CONTEXTS, length=LENGTH + 1)
    with torch.no_grad():
        parts = [part.rows.half() for part in activations_of(model, "neurons@0", inputs)]
    return torch.cat(parts).view(-1, LENGTH, parts[0].shape[1])


@cache
def dictionary() -> SparseDictionary:
    rows = activations().flatten(0, 1)
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:LATENTS]
    mean = rows.float().mean(0)
    directions = rows[picked].float() - mean
    directions /= directions.norm(dim=1, keepdim=True)
    none = torch.zeros(LATENTS)
    return SparseDictionary(
        "neurons@0", directions.T.contiguous(), none, directions, mean, none, 32, b_in=mean
    )


def contexts(times: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """32 contexts at a time and their numbers; again and again, as if they were others, `times` over."""
    held = activations()
    for turn in range(times):
        for numbers in torch.arange(len(held)).split(32):
            yield numbers + turn * len(held), held[numbers].float()


def one_pass(times: int = 1) -> Callable[[], Tensor]:
    coder, width = dictionary(), activations().shape[2]

    def run() -> Tensor:
        examples, neurons = LatentExamples(LATENTS, top=TOP, intervals=INTERVALS), CoMoments(LATENTS, width)
        for numbers, acts in contexts(times):
            rows = acts.flatten(0, 1)
            codes = coder.codes(rows)
            examples.add(numbers.repeat_interleave(LENGTH), torch.arange(LENGTH).repeat(len(numbers)), codes)
            neurons.add(codes, rows)
        run.kept = examples.picked()
        numbers = examples.maxima, examples.counts, neurons.correlations().amax(1)
        return torch.stack([part[: BATCH * MEASURED].float() for part in numbers])

    return run


def pass_per_batch() -> Callable[[], Tensor]:
    coder = dictionary()

    def run() -> Tensor:
        found = [batch_of(coder, latents) for latents in torch.arange(BATCH * MEASURED).split(BATCH)]
        return torch.cat(found, 1)

    return run


def batch_of(coder: SparseDictionary, latents: Tensor) -> Tensor:
    """The dashboards of one batch of latents: largest value, count and best neuron of each are returned."""
    values, sums, count = [], None, 0
    for _, acts in contexts():
        some = coder.encode(acts)[..., latents]
        values.append(some)
        flat, rows = some.flatten(0, 1), acts.flatten(0, 1)
        parts = flat.T @ rows, flat.sum(0), (flat**2).sum(0), rows.sum(0), (rows**2).sum(0)
        sums = parts if sums is None else [known + part for known, part in zip(sums, parts)]
        count += len(rows)
    dense = torch.cat(values)  # [prompt, token, latent]
    generator = torch.Generator().manual_seed(0)
    for number in range(len(latents)):
        one = dense[..., number].flatten()
        one.topk(TOP)
        one[one > 0].histc(64)
        edges = torch.linspace(0, float(one.max()), INTERVALS + 1)
        for low, high in pairwise(edges):
            inside = ((one > low) & (one <= high)).nonzero()[:, 0]
            inside[torch.randperm(len(inside), generator=generator)[:5]]
    product, first, first_squares, second, second_squares = (part.double() / count for part in sums)
    spread = (first_squares - first**2).sqrt()[:, None] * (second_squares - second**2).sqrt()
    correlation = torch.where(spread > 0, (product - first[:, None] * second) / spread, 0)
    return torch.stack([dense.amax((0, 1)), (dense > 0).sum((0, 1)).float(), correlation.amax(1).float()])
