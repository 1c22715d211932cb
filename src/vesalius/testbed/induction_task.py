"""A network that learns induction in a minute, while we watch.

Blocks of random tokens, repeated: nothing else can be predicted, so two layers of attention go through the
phase change of Olsson et al. 2022 (arXiv 2209.11895) within three hundred steps, and one layer never does.
Positions are learned and shown to queries and keys alone, which leaves K-composition as the only way (Elhage
et al. 2021).
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from vesalius.architectures.toy import ToyTransformer
from vesalius.model import Model

D_VOCAB, LENGTH = 33, 32


def induction_task(*, n_layers: int = 2, steps: int = 1500, seed: int = 0) -> Model:
    """The network after `steps` steps; after 1500, two layers get 99 of 100 repeated tokens right."""
    return induction_checkpoints((steps,), n_layers=n_layers, seed=seed)[steps]


def induction_checkpoints(steps: Iterable[int], *, n_layers: int = 2, seed: int = 0) -> dict[int, Model]:
    """The same training seen at several steps (0: before the first), in rising order."""
    steps = sorted(steps)
    module = ToyTransformer(
        n_layers=n_layers, d_model=64, n_heads=4, d_vocab=D_VOCAB, n_ctx=LENGTH + 1, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    assert module.positions is not None
    for table in (module.embed.weight, module.positions):  # from noise, one as loud as the other
        torch.nn.init.normal_(table, generator=generator)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    kept = {}
    for step in range(steps[-1] + 1):
        if step in steps:
            name = f"induction-task-{n_layers}l-seed-{seed}-step-{step}"
            kept[step] = Model(copy.deepcopy(module).requires_grad_(False), bos=0, name=name)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50)
        ids = repeated_blocks(64, generator)
        loss = F.cross_entropy(module(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return kept


def repeated_blocks(batch: int, generator: torch.Generator) -> Int[Tensor, "batch pos"]:
    """Rows [0, b, b, …]: a block of 6 to 16 random tokens, repeated until the row is full; 0 is BOS."""
    period = torch.randint(6, 17, (batch, 1), generator=generator)
    block = torch.randint(1, D_VOCAB, (batch, 16), generator=generator)
    return F.pad(block.gather(1, torch.arange(LENGTH) % period), (1, 0))
