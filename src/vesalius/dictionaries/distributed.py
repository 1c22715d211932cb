"""Several processes that learn one dictionary from different rows (torch.distributed, as torchrun starts them).

Where no process group was made there is one process, and nothing here does anything.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def place() -> tuple[int, int]:
    """The number of this process and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    world = place()[1]
    if world > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= world


def largest(tensor: Tensor) -> None:
    """Replace a tensor by its elementwise maximum over the processes."""
    if place()[1] > 1:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)


def wait() -> None:
    """Until all processes are here."""
    if place()[1] > 1:
        distributed.barrier()
