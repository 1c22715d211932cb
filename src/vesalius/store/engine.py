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
        waiting = None
        for number in numbers:
            known = work.known(number)
            columns = None if known is not None else work.make(number)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = None
            if known is not None:
                yield number, known
            else:
                waiting = number, writer.submit(work.keep, number, columns)
        if waiting is not None:
            yield waiting[0], waiting[1].result()
