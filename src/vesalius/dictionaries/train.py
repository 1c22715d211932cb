"""Learn sparse dictionaries from rows of activations: one loop for every kind (see `variants`).

1. The rows of a step, the first weights and the draws of resampling are functions of the seed and the step alone, so
   a run that was killed goes on from its last state to the same bits.
2. A step is one dense product, to know which latents are active; everything after it touches only those (`kernels`).
3. Nothing is read back from the device within a step, but where the number of active latents is not known in advance
   (all kinds other than `topk`); losses are looked at every `log_every` steps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from vesalius.dictionaries import distributed
from vesalius.dictionaries.rows import Rows
from vesalius.dictionaries.sparse import SparseDictionary
from vesalius.dictionaries.stream import Stream
from vesalius.dictionaries.training import Plan, Training
from vesalius.dictionaries.variants import Variant
from vesalius.errors import VesaliusError

Watch = Callable[[dict], None]
"""Told each entry of the log."""


def fit_sae(
    rows: Rows,
    *,
    latents: int,
    activation: str | Variant = "topk(k=32)",
    steps: int,
    batch: int = 4096,
    lr: float | None = None,
    warmup: float | None = None,
    decay: float | None = None,
    seed: int = 0,
    to: str | Path | None = None,
    save_every: int = 1000,
    log_every: int = 100,
    device: str = "cpu",
    product: Literal["float32", "bfloat16"] = "float32",
    watch: Watch | None = None,
) -> SparseDictionary:
    """A sparse autoencoder of the rows' site, learned in `steps` batches.

    `activation` says which kind, as in "topk(32)" or "relu_l1(0.004)" (`variants` has all, with their sources).
    With `to`, the log, the state to go on from and the dictionary are kept in that folder; the same call finishes a
    run that was stopped. `product`: the precision of the dense product that chooses the active latents; all else is
    in single precision.

    Raises VesaliusError if the folder holds another run, if there are too few rows for a batch or too many latents
    for the memory, and if the loss diverges.
    """
    plan = Plan(latents, activation, lr, warmup, decay, seed)
    return fit_many(
        rows, {"": plan}, steps=steps, batch=batch, seed=seed, to=to, save_every=save_every, log_every=log_every,
        device=device, product=product, watch=watch,
    )[""]  # fmt: skip


def fit_many(
    rows: Rows,
    plans: Mapping[str, Plan],
    *,
    steps: int,
    batch: int = 4096,
    seed: int = 0,
    to: str | Path | None = None,
    save_every: int = 1000,
    log_every: int = 100,
    device: str = "cpu",
    product: Literal["float32", "bfloat16"] = "float32",
    watch: Watch | None = None,
    stop_at: int | None = None,
) -> dict[str, SparseDictionary]:
    """Several dictionaries on one stream of rows, each as if it were alone; with `to`, each in a folder of its name.

    `batch` is shared out among the processes where there are several (`distributed`). `stop_at` ends early, as a
    kill would.
    """
    rank, world = distributed.place()
    if batch % world:
        raise VesaliusError(f"a batch of {batch} rows cannot be shared by {world} processes")
    stream = Stream(rows, batch, seed, device)
    trainings = {
        name: Training(
            stream,
            plan,
            steps=steps,
            folder=None if to is None else Path(to) / name,
            product=product,
            name=name,
        )
        for name, plan in plans.items()
    }
    for step in range(min(training.step for training in trainings.values()), steps):
        if step == stop_at:
            break
        sites = stream.batch(step, rank=rank, world=world)
        for training in trainings.values():
            if training.step == step:
                training.advance(sites)
                done = training.step
                if done % log_every == 0 or done % save_every == 0 or done == steps:
                    entry = training.log()
                    if watch is not None and rank == 0:
                        watch(entry)
                if done % save_every == 0 or done == steps:
                    training.save()
    return {name: training.dictionary() for name, training in trainings.items()}
