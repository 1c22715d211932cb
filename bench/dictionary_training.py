"""Learning sparse dictionaries: seconds of a step against SAELens, dictionary_learning and the one dense product.

    python -m bench.dictionary_training [topk-512 topk-24576 relu-512 equal-ev]

One process, the same batches for all, the sides in turn, one after another step by step; what counts is the least CPU
time of a step, so that a busy machine does not matter, after steps that warm up. The activations are sparse sums of
random directions, of mean length √n. `equal-ev` trains all on the same rows with the same k, rate and batch, from
several seeds, to see that the faster one learns no less. A peer that is not installed is left out, and the row says so.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vesalius.dictionaries.rows import TensorRows
from vesalius.dictionaries.stream import Stream
from vesalius.dictionaries.training import Plan, Training

RESULTS = Path(__file__).parent / "dictionary_training.json"
SEEDS = 4
Step = Callable[[Tensor], None]
Explained = Callable[[Tensor], float]


@dataclass(frozen=True)
class Work:
    """One size of one kind of dictionary."""

    title: str
    kind: str
    width: int
    latents: int
    batch: int
    steps: int
    faster: float
    """What the fastest peer must take, in our steps."""
    floor: float | None = None
    """Least share of our step that is the one dense product."""
    k: int = 32
    shift: float = 0.0
    """Of the encoder's biases at the start, so that few latents are active as they are once trained."""
    lr: float = 1e-3


WORKS = {
    "topk-512": Work("TopK 512→4,096, k = 32, batch 4,096", "topk", 512, 4096, 4096, 6, 5.0, floor=0.6),
    "topk-24576": Work("TopK 768→24,576, k = 32, batch 1,024", "topk", 768, 24576, 1024, 3, 5.0),
    "relu-512": Work(
        "ReLU+L1 512→4,096, batch 4,096, 1% of the latents active",
        "relu",
        512,
        4096,
        4096,
        5,
        2.0,
        shift=-1.4,
    ),
    "relu-512-start": Work("ReLU+L1 512→4,096, batch 4,096, first steps", "relu", 512, 4096, 4096, 4, 1.0),
}
EQUAL = Work("TopK 64→512, k = 8, 1,000 steps of 512 rows", "topk", 64, 512, 512, 1000, 0.0, k=8)


def rows(work: Work, count: int) -> TensorRows:
    """Sparse sums of twice as many directions as there are units."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(2 * work.width, work.width, generator=generator))
    present = torch.rand(count, 2 * work.width, generator=generator) < work.k / (2 * work.width)
    acts = (present * (0.5 + torch.rand(present.shape, generator=generator))) @ directions
    return TensorRows(("bench",), (acts * work.width**0.5 / acts.norm(dim=1).mean(),))


def ours(work: Work, stream: Stream, seed: int) -> tuple[Step, Explained]:
    kind = f"topk({work.k})" if work.kind == "topk" else "relu_l1(0.004)"
    run = Training(
        stream,
        Plan(work.latents, kind, lr=work.lr, seed=seed),
        steps=work.steps,
        folder=None,
        product="float32",
        name="",
    )
    run.weights.b_enc.data += work.shift

    def explained(acts: Tensor) -> float:
        return _explained(run.dictionary().reconstruct(acts), acts)

    return lambda batch: run.advance([batch]), explained


def saelens(work: Work, stream: Stream, seed: int) -> tuple[Step, Explained]:
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    if work.kind == "topk":
        sae = sae_lens.TopKTrainingSAE(
            sae_lens.TopKTrainingSAEConfig(d_in=work.width, d_sae=work.latents, k=work.k)
        )
    else:
        config = sae_lens.StandardTrainingSAEConfig(
            d_in=work.width, d_sae=work.latents, l1_coefficient=0.004 * work.width
        )
        sae = sae_lens.StandardTrainingSAE(config)
    sae.b_enc.data += 0.1 * work.shift  # its encoder starts at a length of 0.1
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=work.steps * work.batch,
            train_batch_size_samples=work.batch,
            lr=work.lr,
            lr_end=work.lr,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter([]),
    )

    def step(batch: Tensor) -> None:
        trainer._train_step(sae=sae, sae_in=batch)
        trainer.n_training_steps += 1

    return step, lambda acts: _explained(sae(acts), acts)


def dictionary_learning(work: Work, stream: Stream, seed: int) -> tuple[Step, Explained]:
    sys.modules.setdefault(
        "nnsight", _nothing("nnsight", "LanguageModel")
    )  # which it only needs for its buffers
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {
        "steps": 10**6,
        "activation_dim": work.width,
        "dict_size": work.latents,
        "layer": 0,
        "lm_name": "none",
    }
    common |= {"lr": work.lr, "device": "cpu", "seed": seed, "warmup_steps": 1}
    if work.kind == "topk":
        trainer = TopKTrainer(k=work.k, **common)
    else:
        trainer = StandardTrainer(l1_penalty=0.004 * work.width, sparsity_warmup_steps=None, **common)
        trainer.ae.encoder.bias.data += work.shift
    done = iter(range(10**6))

    return lambda batch: trainer.update(next(done), batch) and None, lambda acts: _explained(
        trainer.ae(acts), acts
    )


def floor(work: Work, stream: Stream, seed: int) -> tuple[Step, Explained]:
    """The product that no step of training can do without."""
    encoder = torch.randn(work.latents, work.width)
    return lambda batch: _product(batch, encoder), lambda acts: 0.0


SIDES = {"ours": ours, "saelens": saelens, "dictionary_learning": dictionary_learning, "floor": floor}


def sides_of(work: Work, stream: Stream, seed: int = 0) -> dict[str, tuple[Step, Explained]]:
    there = {}
    for name, side in SIDES.items():
        with suppress(ModuleNotFoundError):
            there[name] = side(work, stream, seed)
    return there


def measured(work: Work) -> dict:
    stream = Stream(rows(work, 4 * work.batch), work.batch, 0, "cpu")
    sides = sides_of(work, stream)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(work.steps + 1):
        (batch,) = stream.batch(number)
        for name, (step, _) in sides.items():
            started = time.thread_time()
            step(batch.clone())
            seconds[name].append(time.thread_time() - started)
    least = {name: min(taken[1:]) for name, taken in seconds.items()}
    peers = {name: taken for name, taken in least.items() if name not in ("ours", "floor")}
    faster = {name: taken / least["ours"] for name, taken in peers.items()}
    share = least["floor"] / least["ours"]
    return {
        "case": work.title,
        "cpu_seconds_of_a_step": least,
        "samples_per_second": work.batch / least["ours"],
        "times_faster": faster,
        "share_of_floor": share,
        "must_reach": {"times_faster": work.faster, "share_of_floor": work.floor},
        "missing": [name for name in SIDES if name not in sides],
        "met": all(times >= work.faster for times in faster.values()) and share >= (work.floor or 0.0),
    }


def equal_explained(work: Work) -> dict:
    """The share of variance that each explains of rows it has not seen, after the same rows: mean over seeds."""
    data = rows(work, 2**17 + 4096)
    held = data.tensors[0][-4096:]
    explained: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        stream = Stream(TensorRows(data.sites, (data.tensors[0][: 2**17],)), work.batch, seed, "cpu")
        sides = {name: side for name, side in sides_of(work, stream, seed).items() if name != "floor"}
        for number in range(work.steps):
            (batch,) = stream.batch(number)
            for step, _ in sides.values():
                step(batch.clone())
        for name, (_, explains) in sides.items():
            explained.setdefault(name, []).append(explains(held))
    means = {name: statistics.mean(values) for name, values in explained.items()}
    return {
        "case": f"explained variance: {work.title}",
        "explained": means,
        "standard_deviation": {name: statistics.stdev(values) for name, values in explained.items()},
        "seeds": SEEDS,
        "met": all(means["ours"] >= value - 0.005 for value in means.values()),
    }


@torch.no_grad()
def _explained(made: Tensor, acts: Tensor) -> float:
    return float(1 - (made - acts).square().sum() / (acts - acts.mean(0)).square().sum())


def _product(batch: Tensor, encoder: Tensor) -> None:
    torch.mm(batch, encoder.T)


def _nothing(name: str, *members: str) -> ModuleType:
    module = ModuleType(name)
    for member in members:
        setattr(module, member, object)
    return module


def main(names: list[str]) -> None:
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for name in names or [*WORKS, "equal-ev"]:
        row = equal_explained(EQUAL) if name == "equal-ev" else measured(WORKS[name])
        print(json.dumps(row, indent=1), flush=True)
        kept = [other for other in document["rows"] if other["case"] != row["case"]]
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        document = {"machine": machine, "rows": [*kept, row]}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
