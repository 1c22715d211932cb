"""Shards made by the workers of a Ray cluster: core tasks over the plan, a few for each processor at a time.

A shard is a function of its number, so a task whose worker or machine dies is simply run again, elsewhere; what was
whole on the disk by then is found and kept. All machines must see the folder of the store, and what a picture or the
code is read from, under the same name.
"""

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from vesalius.errors import VesaliusError
from vesalius.store.engine import Engine, Work
from vesalius.store.plan import Shard

AHEAD = 2
"""Tasks that wait for each processor."""


def ray_engine(address: str | None = None, *, gpus: int = 0, attempts: int = 20) -> Engine:
    """Make shards on the cluster at `address`, or on one that is started on this machine.

    Each task takes a processor and `gpus`, and is tried again `attempts` times when its worker dies. What fails by
    its own fault fails at once.
    """

    def run(work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Shard]]:
        ray = _connected(address)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=attempts)(_made)
        shared, waiting = [ray.put(work)], iter(numbers)  # in a list it is not fetched anew for every task
        pending: dict[Any, int] = {}
        try:
            while True:
                room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(pending)
                for _, number in zip(range(room), waiting):
                    pending[task.remote(shared, number)] = number
                if not pending:
                    return
                (ready,), _ = ray.wait(list(pending), num_returns=1)
                yield pending.pop(ready), _result(ray, ready)
        finally:
            for reference in pending:
                ray.cancel(reference)

    return run


def _made(shared: list[Any], number: int) -> Shard:
    work = _fetched(shared[0])
    return work.known(number) or work.keep(number, work.make(number))


@lru_cache(maxsize=1)
def _fetched(reference: Any) -> Work:
    """What a worker keeps from one task to the next: the network is sent to it once."""
    import ray

    return ray.get(reference)


def _result(ray: Any, reference: Any) -> Shard:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VesaliusError):
            raise VesaliusError(str(error.cause)) from None
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise VesaliusError(f"the workers that made a shard died again and again: {error}") from None


def _connected(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise VesaliusError("the engine 'ray' was asked for; pip install 'vesalius[ray]'") from None
    if not ray.is_initialized():
        try:
            dashboard = None if address else False  # that of a cluster is not ours to say
            ray.init(address=address or "local", log_to_driver=False, include_dashboard=dashboard)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            raise VesaliusError(f"no Ray cluster answers at '{address or 'local'}': {error}") from None
    return ray
