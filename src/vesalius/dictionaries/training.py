"""One dictionary while it is learned: a step, its log, its state on disk."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vesalius.dictionaries import distributed
from vesalius.dictionaries.geometric_median import geometric_median
from vesalius.dictionaries.kernels import Support, decode, inner, preactivations
from vesalius.dictionaries.resampling import drawn, resample
from vesalius.dictionaries.sparse import SparseDictionary
from vesalius.dictionaries.stream import Stream, joined, scale_of
from vesalius.dictionaries.variants import Pass, Variant, variant_of
from vesalius.dictionaries.weights import Weights, dictionary_of, started
from vesalius.errors import VesaliusError
from vesalius.files import whole

PART = 2**22
"""Activations before the threshold that are held at once."""
RENEWED = 50
"""Steps after which the list of dead latents is taken anew."""
DIVERGED = 10
"""Times the error at the start, or the variance if that is larger."""
THRESHOLD_BATCHES = 16
"""Batches that a threshold for inference is taken from."""


@dataclass(frozen=True)
class Plan:
    """One dictionary to learn: what of it, how many latents, how."""

    latents: int
    activation: str | Variant = "topk(k=32)"
    lr: float | None = None
    """None: the variant's own; so with the two below."""
    warmup: float | None = None
    decay: float | None = None
    seed: int = 0
    """Of the first weights and of resampling."""
    reads: tuple[int, ...] = (0,)
    """Which of the rows' sites are read, and which reconstructed."""
    writes: tuple[int, ...] = (0,)
    skip: bool = False
    """Whether a linear map leads past the latents."""
    forward: bool = False
    """Whether a latent reads one site only and writes to that one's and the later ones' counterparts."""


class Training:
    """One dictionary while it is learned, and everything that is needed to go on."""

    def __init__(
        self, stream: Stream, plan: Plan, *, steps: int, folder: Path | None, product: str, name: str
    ) -> None:
        self.stream, self.plan, self.steps, self.folder, self.name = stream, plan, steps, folder, name
        self.variant = variant_of(plan.activation)
        self.product = torch.bfloat16 if product == "bfloat16" else torch.float32
        self.lr = self.variant.lr if plan.lr is None else plan.lr
        self.warmup = self.variant.warmup if plan.warmup is None else plan.warmup
        self.decay = self.variant.decay if plan.decay is None else plan.decay
        self.step, self.spent, self.began = 0, 0.0, time.monotonic()
        self.window: list[Tensor] = []
        self.room = torch.empty(0, device=stream.device)
        self.entry: dict = {}
        self._start()
        if folder is not None and (folder / "state.safetensors").exists():
            self._restore(folder / "state.safetensors")

    def advance(self, sites: Sequence[Float[Tensor, "row _"]]) -> None:
        """One step of learning, on one batch."""
        resampling, step = self.variant.resampling, self.step
        if resampling is not None and step in resampling.at:
            self._resample()
        if step % RENEWED == 0:
            distributed.largest(self.last)
            self.dead = (step - self.last >= self.variant.dead_after).nonzero().flatten()
        p = self.forward(sites)
        loss = self.variant.loss(p)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._update()
        with torch.no_grad():
            active = p.codes > 0
            fired = p.support.sums(active.float()) > 0
            self.last.masked_fill_(fired, step + 1)
            numbers = [loss, p.squared / p.variance, active.sum() / len(p.target)]
            self.window.append(torch.stack([number.detach() for number in numbers]))
        self.step = step + 1

    def forward(self, sites: Sequence[Float[Tensor, "row _"]]) -> Pass:
        """Activations to reconstruction."""
        w = self.weights
        with torch.no_grad():
            read = joined(sites, self.plan.reads) * self.scale_in
            target = read if self.same else joined(sites, self.plan.writes) * self.scale_out
            centred = read if w.centre is None else read - w.centre
            support, values = self._active(centred)
        before = preactivations(support, values, centred, w.encoder, w.b_enc, w.centre)
        codes = self.variant.code(before, support, w)
        made = decode(support, codes, w.decoder) + w.b_dec
        if w.skip is not None:
            made = made + read @ w.skip
        return Pass(
            w,
            target,
            centred,
            support,
            before,
            codes,
            made,
            self.step / self.steps,
            self.variance,
            self.dead,
        )

    def log(self) -> dict:
        """The means since the last entry, written to the log; raises VesaliusError if the run has diverged."""
        numbers = torch.stack(self.window)
        self.window = []
        means = numbers.mean(0)
        distributed.average([means])
        loss, fvu, l0 = means.tolist()
        if not self.entry:
            self.start_fvu = float(numbers[0, 1])
        if not math.isfinite(loss + fvu) or fvu > DIVERGED * max(1.0, self.start_fvu):
            self._diverged(numbers)
        dead = int((self.step - self.last >= self.variant.dead_after).sum())
        self.entry = {
            "step": self.step, "rows": self.step * self.stream.size, "loss": loss, "fvu": fvu, "l0": l0, "dead": dead,
            "lr": self._rate(self.step - 1), "seconds": round(self.spent + time.monotonic() - self.began, 3),
        }  # fmt: skip
        if self.folder is not None and distributed.place()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(self.entry) + "\n")
        return {"name": self.name, "steps": self.steps, **self.entry}

    def save(self) -> None:
        """Write the whole state, in one move, and when all steps are done the dictionary."""
        if self.folder is None:
            return
        distributed.largest(self.last)
        if distributed.place()[0] == 0:
            tensors = {"last": self.last, "dead": self.dead}
            for name, parameter in self.weights.named().items():
                tensors[f"weights/{name}"] = parameter.detach()
                for moment, value in self.optimiser.state[parameter].items():
                    tensors[f"adam/{moment}/{name}"] = value
            described = {
                "recipe": json.dumps(self._recipe()), "step": str(self.step), "entry": json.dumps(self.entry),
                "start_fvu": str(self.start_fvu),
            }  # fmt: skip
            with whole(self.folder / "state.safetensors") as fresh:
                save_file(
                    {name: value.contiguous() for name, value in tensors.items()}, fresh, metadata=described
                )
            if self.step == self.steps:
                self.dictionary().save(self.folder / "dictionary.safetensors")
        distributed.wait()

    def dictionary(self) -> SparseDictionary:
        """What has been learned so far, in the units of the activations."""
        sites, reads, writes = self.stream.rows.sites, self.plan.reads, self.plan.writes
        return dictionary_of(
            self.weights,
            self.variant.folded(self.weights, self._passes),
            site="+".join(sites[i] for i in writes),
            source="" if reads == writes else "+".join(sites[i] for i in reads),
            scale_in=self.scale_in,
            scale_out=self.scale_out,
            about={**self.stream.rows.about, **self._recipe(), "learned": self.entry},
        )

    # ------------------------------------------------------------------------------------------------ within a step

    def _active(self, centred: Float[Tensor, "row source"]) -> tuple[Support, Float[Tensor, " active"]]:
        """Which latents are active and their activations before the threshold, a part of the rows at a time.

        What the dense product writes stays in one place, so that it need not be fetched anew for each step. Where it
        is not in single precision, it only chooses: the activations are computed again at the active places.
        """
        w, size = self.weights, len(centred) if self.variant.whole else max(1, PART // self.plan.latents)
        encoder, parts = w.encoder.to(self.product).T, []
        for rows in centred.to(self.product).split(size):
            if self.product == torch.float32:
                if len(self.room) < len(rows):
                    self.room = torch.empty(min(size, len(centred)), self.plan.latents, device=centred.device)
                pre = torch.addmm(w.b_enc, rows, encoder, out=self.room[: len(rows)])
            else:
                pre = (rows @ encoder).float() + w.b_enc
            parts.append(self.variant.active(pre, w))
        supports, values = zip(*parts)
        support = Support.joined(supports)
        if self.product == torch.float32:
            return support, torch.cat(values)
        return support, inner(support, centred, w.encoder) + w.b_enc[support.latents]

    def _update(self) -> None:
        """One step of Adam on averaged gradients, under the constraints on the weights."""
        w, parameters = self.weights, self.weights.named().values()
        distributed.average(p.grad for p in parameters if p.grad is not None)
        for matrix, mask in w.masked():
            matrix.grad.mul_(mask)
        if self.variant.unit_norm:
            w.remove_parallel_gradient()
        if self.variant.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(parameters), self.variant.clip)
        self.optimiser.param_groups[0]["lr"] = self._rate(self.step)
        self.optimiser.step()
        if self.variant.unit_norm:
            w.normalise()

    def _rate(self, step: int) -> float:
        """The learning rate: up in a straight line over `warmup`, down to 0 over `decay`."""
        up = (step + 1) / max(1.0, self.warmup * self.steps)
        down = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, up, down)

    def _resample(self) -> None:
        resampling, stream = self.variant.resampling, self.stream
        assert resampling is not None
        distributed.largest(self.last)
        dead = (self.step - self.last >= resampling.dead_after).nonzero().flatten()
        if not len(dead):
            return
        count = max(1, min(stream.epoch, math.ceil(resampling.scored / stream.size)))
        with torch.no_grad():
            batches = (stream.batch(self.step + i, other=1) for i in range(count))
            losses = torch.cat([resampling.loss(self.forward(sites)) for sites in batches])[
                : resampling.scored
            ]
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.step)
        chosen = drawn(losses.cpu(), len(dead), generator=generator)
        dead = dead[: len(chosen)]
        read, written = self._inputs(chosen)
        resample(self.weights, self.optimiser, dead=dead, read=read, written=written)
        self.last[dead] = self.step

    def _inputs(self, chosen: Int[Tensor, " chosen"]) -> tuple[Tensor, Tensor]:
        """The rows of given numbers among those that were scored, as they are read and reconstructed."""
        found: dict[int, list[Tensor]] = {}
        for place in (chosen // self.stream.size).unique().tolist():
            sites = self.stream.batch(self.step + place, other=1)
            for number in chosen[chosen // self.stream.size == place].tolist():
                found[number] = [site[number % self.stream.size] for site in sites]
        sites = [torch.stack(site) for site in zip(*(found[number] for number in chosen.tolist()))]
        read, written = joined(sites, self.plan.reads), joined(sites, self.plan.writes)
        return read * self.scale_in, written * self.scale_out

    def _passes(self) -> Iterator[Pass]:
        """A few batches through the weights as they are."""
        with torch.no_grad():
            for step in range(min(THRESHOLD_BATCHES, self.stream.epoch)):
                yield self.forward(self.stream.batch(step, other=2))

    # ------------------------------------------------------------------------------------------- the start and the end

    def _start(self) -> None:
        """Scale, variance, first weights and the optimiser."""
        plan, variant, stream, device = self.plan, self.variant, self.stream, self.stream.device
        widths = stream.rows.widths
        self.same = plan.reads == plan.writes
        _check_memory(plan, stream, sum(widths[i] for i in plan.reads), sum(widths[i] for i in plan.writes))
        sample = stream.sample()
        for site, acts in zip(stream.rows.sites, sample):
            if bad := int((~acts.isfinite()).any(1).sum()):
                raise VesaliusError(
                    f"{bad} of {len(acts)} rows of {site} hold NaN or infinity; leave them out"
                )
        scales = [scale_of(site, variant.scale) for site in sample]
        self.scale_in = torch.cat([scales[i].expand(widths[i]) for i in plan.reads])
        self.scale_out = torch.cat([scales[i].expand(widths[i]) for i in plan.writes])
        read, target = (
            joined(sample, plan.reads) * self.scale_in,
            joined(sample, plan.writes) * self.scale_out,
        )
        self.variance = target.var(dim=0, correction=0).mean()
        b_dec = geometric_median(target) if variant.centred else torch.zeros_like(target[0])
        centre = None if not variant.centred else b_dec if self.same else geometric_median(read)
        reads, writes = _forward(plan, [widths[i] for i in plan.reads], [widths[i] for i in plan.writes])
        self.weights: Weights = started(
            latents=plan.latents,
            sources=read.shape[1],
            widths=tuple(widths[i] for i in plan.writes),
            tied=variant.tied,
            b_dec=b_dec,
            centre=centre,
            own=variant.own(plan.latents, read.shape[1]),
            length=variant.length,
            skip=plan.skip,
            reads=reads,
            writes=writes,
            seed=plan.seed,
            device=device,
        )
        self.optimiser = torch.optim.Adam(
            list(self.weights.named().values()), lr=self.lr, betas=variant.betas, fused=True
        )
        self.last = torch.zeros(plan.latents, dtype=torch.long, device=device)
        self.dead = torch.zeros(0, dtype=torch.long, device=device)
        self.start_fvu = math.inf

    def _recipe(self) -> dict:
        """What makes the run what it is; a state is continued only by the same."""
        return {
            "activation": str(self.variant), "latents": self.plan.latents, "steps": self.steps,
            "batch": self.stream.size, "lr": self.lr, "warmup": self.warmup, "decay": self.decay,
            "seed": self.plan.seed, "stream_seed": self.stream.seed, "rows": len(self.stream.rows),
            "product": str(self.product).removeprefix("torch."),
            **({"skip": True} if self.plan.skip else {}), **({"forward": True} if self.plan.forward else {}),
        }  # fmt: skip

    def _restore(self, file: Path) -> None:
        with safe_open(file, "pt") as opened:
            described = opened.metadata()
        recipe, given = json.loads(described["recipe"]), self._recipe()
        other = [key for key in given if recipe.get(key) != given[key]]
        if other:
            raise VesaliusError(
                f"{file.parent} holds a run with {other[0]} {recipe.get(other[0])}, and {given[other[0]]} was given; "
                "give another folder, or the same numbers to go on with it"
            )
        tensors = load_file(file, device=self.stream.device)
        self.step, self.entry = int(described["step"]), json.loads(described["entry"])
        self.spent, self.start_fvu = self.entry["seconds"], float(described["start_fvu"])
        self.last, self.dead = tensors["last"], tensors["dead"]
        with torch.no_grad():
            for name, parameter in self.weights.named().items():
                parameter.copy_(tensors[f"weights/{name}"])
                self.optimiser.state[parameter] = {
                    moment: tensors[f"adam/{moment}/{name}"] for moment in ("step", "exp_avg", "exp_avg_sq")
                }
        log = file.parent / "log.jsonl"
        if distributed.place()[0] == 0:
            kept = [
                line for line in log.read_text().splitlines(True) if json.loads(line)["step"] <= self.step
            ]
            with whole(log) as fresh:
                fresh.write_text("".join(kept))

    def _diverged(self, numbers: Float[Tensor, "step number"]) -> None:
        bad = ~numbers.isfinite().all(1) | (numbers[:, 1] > DIVERGED * max(1.0, self.start_fvu))
        first = self.step - len(numbers) + (int(bad.nonzero()[0]) if bad.any() else 0)
        kept = self.folder is not None and (self.folder / "state.safetensors").exists()
        raise VesaliusError(
            f"{self.name or 'the dictionary'} diverged at step {first}: the loss is {float(numbers[-1, 0]):.3g} at a "
            f"learning rate of {self._rate(first):.3g}; give a lower lr"
            + (f" (the last good state is kept in {self.folder})" if kept else "")
        )


def _forward(plan: Plan, reads: list[int], writes: list[int]) -> tuple[Tensor | None, Tensor | None]:
    """Where latents of a cross-layer dictionary may read and write; they are dealt out evenly among the sites."""
    if not plan.forward:
        return None, None
    home = torch.arange(plan.latents) * len(reads) // plan.latents
    read_at = torch.repeat_interleave(torch.arange(len(reads)), torch.tensor(reads))
    written_at = torch.repeat_interleave(torch.arange(len(writes)), torch.tensor(writes))
    return home[:, None] == read_at, home[:, None] <= written_at


def _check_memory(plan: Plan, stream: Stream, sources: int, targets: int) -> None:
    """Weights, gradients and two moments, and the activations before the threshold."""
    needed = 4 * (4 * plan.latents * (sources + targets) + 2 * stream.size * plan.latents)
    if stream.device.startswith("cuda"):
        there = torch.cuda.mem_get_info()[0]
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise VesaliusError(
            f"{plan.latents} latents of {sources} units in batches of {stream.size} take {needed / 1e9:.1f} GB, and "
            f"there are {there / 1e9:.1f} GB; give fewer latents or smaller batches"
        )
