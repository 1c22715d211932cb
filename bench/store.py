"""Harvest against the bare forward stopped at the same layer, and shuffled against sequential reading.

The network is as large as is honest on two cores: four layers of width 256 with neurons, contexts of 256 tokens; the
site is what its third layer hands on. Half precision, shards of 16 MB, all of it forced out to the disk.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.store import ActivationStore, harvest

SITE, CONTEXTS, LENGTH, BATCH = "resid_post@2", 256, 256, 16
ROWS, SIZE = 524_288, 4096


@cache
def model() -> vs.Model:
    module = ToyTransformer(
        n_layers=4, d_model=256, n_heads=8, d_vocab=4096, n_ctx=LENGTH, d_mlp=1024, norm=True, seed=0
    )
    return vs.Model(module, bos=0, name="toy-256")


@cache
def ids(contexts: int = CONTEXTS) -> Tensor:
    tokens = torch.randint(1, 4096, (contexts, LENGTH), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


def our_harvest() -> Callable[[], Tensor]:
    opened, tokens = model(), ids()
    _ = opened.hash

    def run() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            store = harvest(opened, tokens, SITE, to=folder, shard_rows=32_768, batch=BATCH)
            return torch.tensor(float(store.rows))

    return run


def forward_alone() -> Callable[[], Tensor]:
    opened, tokens = model(), ids()

    def run() -> Tensor:
        for part in tokens.split(BATCH):
            with vs.record(opened, SITE, stop=True, gradients=True):
                opened(part)
        return torch.tensor(float(CONTEXTS * (LENGTH - 1)))

    return run


@cache
def store() -> ActivationStore:
    """Rows of 512 numbers, 537 MB in shards of the usual size, of a network that costs nothing."""
    module = ToyTransformer(n_layers=1, d_model=512, n_heads=1, d_vocab=4096, n_ctx=LENGTH, seed=0)
    folder = Path(tempfile.mkdtemp(prefix="vesalius-bench-"))
    return harvest(vs.Model(module, bos=0), ids(ROWS // (LENGTH - 1)), "embed", to=folder)


def shuffled() -> Callable[[], Tensor]:
    rows = store()["embed"]

    def run() -> Tensor:
        return torch.stack([rows.batch(step, SIZE)[0].sum() for step in range(len(rows) // SIZE)]).sum()

    return run


def sequential() -> Callable[[], Tensor]:
    rows = store()["embed"]

    def run() -> Tensor:
        firsts = range(0, len(rows) // SIZE * SIZE, SIZE)
        return torch.stack([rows.rows(first, first + SIZE)[0].sum() for first in firsts]).sum()

    return run
