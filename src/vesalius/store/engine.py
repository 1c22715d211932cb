"""Who makes the shards of a plan: by default this process, one after the other."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from torch import Tensor

from vesalius.store.plan import Shard


@runtime_checkable
class Work(Protocol):
    """What there is to do for a shard, by its number."""

    def known(self, number: int) -> Shard | None:
        """What is there already, if it is whole."""
        ...

    def make(self, number: int) -> dict[str, Tensor]: ...
    def keep(self, number: int, columns: dict[str, Tensor]) -> Shard: ...


Engine = Callable[[Work, Iterable[int]], Iterator[tuple[int, Shard]]]
"""Makes shards that are not there, in any order, and tells of each when it is on the disk."""


def local(work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Shard]]:
    """In this process and in order; while one shard is written, the next is computed."""
    with ThreadPoolExecutor(1) as writer:
        before = None
        for number in numbers:
            known = work.known(number)
            writing = writer.submit(work.keep, number, work.make(number)) if known is None else None
            if before is not None:
                yield before[0], before[1].result()
            before = None if writing is None else (number, writing)
            if known is not None:
                yield number, known
        if before is not None:
            yield before[0], before[1].result()
