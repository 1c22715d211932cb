"""One training loop for every network of the zoo, from first weights to last, resumable to the bit.

Matrices inside a transformer's blocks are trained by Muon (Jordan et al. 2024), which takes steps of equal size
in every direction of a matrix; embeddings, positions, unembedding, biases and convolutions by AdamW. The
learning rate rises for `warmup` steps and falls in a straight line to 0. The products are taken in bfloat16,
everything else in float32.

1. The loss of `step` is a function of (seed, step) alone: rows in an order shuffled anew each epoch.
2. Every `save_every` steps the whole state is written under a temporary name and renamed; a killed run
   starts from it.
3. At steps that `kept` names, the weights are set aside; every `log_every` steps a line of JSON is written.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vesalius.errors import VesaliusError
from vesalius.recipes.measured import after_bos


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Float[Tensor, ""]],
    folder: Path,
    *,
    steps: int,
    muon: float = 0.02,
    adam: float = 3e-3,
    warmup: int = 100,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    save_every: int = 250,
    log_every: int = 50,
    kept: Callable[[int], bool] = lambda step: False,
    evaluate: Callable[[nn.Module], dict] = lambda model: {},
    evaluate_every: int = 500,
    stop_at: int | None = None,
) -> Path:
    """Train `model` in place by the loss of each step; returns the log. `stop_at` ends early, as a kill would."""
    folder.mkdir(parents=True, exist_ok=True)
    log, state = folder / "log.jsonl", folder / "state.safetensors"
    optimisers = make_optimisers(model, muon=muon, adam=adam, weight_decay=weight_decay)
    peak = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    first, spent = restore(state, model, optimisers, log) if state.exists() else (0, 0.0)
    began = time.monotonic() - spent
    losses: list[float] = []
    watched = ""
    for step in range(first, steps + 1):
        if kept(step):
            save_file(half(model), folder / f"step-{step:06d}.safetensors")
        if step and (step % save_every == 0 or step == steps) and step != first:
            save(state, model, optimisers, step, time.monotonic() - began)
        if step == steps:
            write(log, step=step, seconds=time.monotonic() - began, **evaluate(model))
        if step in (steps, stop_at):
            return log
        rate = min((step + 1) / warmup, (steps - step) / (steps - min(warmup, steps - 1)), 1.0)
        for optimiser, lr in zip(optimisers, peak, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = lr * rate
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise VesaliusError(f"The loss is {losses[-1]} at step {step}; lower the learning rates.")
        if step % log_every == 0:
            extra = evaluate(model) if step % evaluate_every == 0 else {}
            mean = sum(losses) / len(losses)
            write(log, step=step, seconds=time.monotonic() - began, train=mean, **extra)
            watched = "".join(f"  {k} {v:.4f}" for k, v in extra.items() if isinstance(v, float)) or watched
            print(f"\rstep {step}/{steps}  loss {mean:.3f}{watched}", end="", flush=True)
            losses = []
    return log


def next_token(
    model: nn.Module, rows: Int[Tensor, "row pos"], *, batch: int = 16, seed: int = 0, bfloat16: bool = True
) -> Callable[[int], Float[Tensor, ""]]:
    """The loss of a step of a network that reads text: cross-entropy of every token of the step's rows."""

    def loss(step: int) -> Float[Tensor, ""]:
        target = rows[batch_of(len(rows), step, batch, seed)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(after_bos(target))
        return F.cross_entropy(logits.float().flatten(0, 1), target.flatten().long())

    return loss


def make_optimisers(
    model: nn.Module, *, muon: float, adam: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all the rest; either may have nothing to do."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if muon and name.startswith("blocks.") and p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in named.values() if id(p) not in taken]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.98), weight_decay=weight_decay)
    ]
    if matrices:
        optimisers.append(torch.optim.Muon(matrices, lr=muon, weight_decay=weight_decay))
    return optimisers


def batch_of(rows: int, step: int, batch: int, seed: int) -> Int[Tensor, " batch"]:
    """The numbers of one step's rows; the order of an epoch is drawn from the seed and the epoch's number."""
    batches = rows // batch
    if not batches:
        raise VesaliusError(f"There are {rows} rows, and one batch takes {batch}; give more of them.")
    epoch, place = divmod(step, batches)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator)[place * batch : (place + 1) * batch]


def save(
    file: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    """Weights and the optimisers' memory in one safetensors file, replaced in one move."""
    tensors = {f"model/{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for number, optimiser in enumerate(optimisers):
        for index, memory in optimiser.state_dict()["state"].items():
            tensors |= {f"{number}/{index}/{key}": value.contiguous() for key, value in memory.items()}
    fresh = file.with_suffix(".new")
    save_file(tensors, fresh, metadata={"step": str(step), "seconds": str(seconds)})
    fresh.replace(file)


def restore(
    file: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], log: Path
) -> tuple[int, float]:
    """Load what `save` wrote, cut the log back to it; returns the step and the seconds spent so far."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        step, seconds = int(opened.metadata()["step"]), float(opened.metadata()["seconds"])
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model/")})
    for number, optimiser in enumerate(optimisers):
        state: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"{number}/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] < step]
    log.write_text("".join(line + "\n" for line in lines))
    return step, seconds


def half(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in model.state_dict().items()}


def write(log: Path, **entry) -> None:
    with log.open("a") as file:
        file.write(
            json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in entry.items()}) + "\n"
        )
