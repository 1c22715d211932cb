"""One unit's visualisation in progress: its pictures' parameters, the optimiser's moments, and where they are kept.

A unit is known by a key, the digest of the weights, the objective and every setting; what it has reached is kept
under that key in the cache (`VESALIUS_CACHE`, else ~/.cache/vesalius), written whole or not at all. All its
randomness comes from generators seeded by (seed, objective, number of the picture), so its bits do not depend on
which other units run beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vesalius.files import whole
from vesalius.formats.zoo import cache_folder
from vesalius.visualization.objectives import Objective
from vesalius.visualization.parametrisation import Parametrisation
from vesalius.visualization.transforms import Transforms

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass
class Unit:
    """One objective and the pictures optimised for it together; `step` steps are done."""

    objective: Objective
    key: str
    seeds: list[int]
    parameters: Float[Tensor, "picture *axes"]
    first: Float[Tensor, "picture *axes"]
    second: Float[Tensor, "picture *axes"]
    maps: Float[Tensor, "picture step 2 3"]
    history: Float[Tensor, "step picture"]
    step: int = 0
    stopped: str = ""
    """Why it stopped before its time, if it did; the parameters are then the last that gave finite numbers."""
    images: UInt8[Tensor, "picture channel height width"] | None = None
    activation: Float[Tensor, " picture"] | None = None
    before: Float[Tensor, "picture *axes"] | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        return bool(self.stopped) or self.step == len(self.history)

    def off(self, steps: int) -> Bool[Tensor, " picture"]:
        """Which pictures are among their first `steps`, or have left the objective at exactly 0 until now."""
        if self.step < steps:
            return torch.ones(len(self.seeds), dtype=torch.bool)
        return self.history[self.step - 1] == 0

    def update(
        self, values: Float[Tensor, " picture"], grads: Float[Tensor, "picture *axes"], rate: float
    ) -> None:
        """One step of Adam down `grads`, or a stop at the last finite parameters if any number is not finite."""
        if not bool(values.isfinite().all()):
            self.stopped = f"its objective became {_word(values)} at step {self.step}"
            self.parameters = self.parameters if self.before is None else self.before
            return
        self.history[self.step] = values
        if not bool(grads.isfinite().all()):
            self.stopped = f"its gradient became {_word(grads)} at step {self.step}"
            return
        self.before = self.parameters
        self.step += 1
        self.first = torch.lerp(self.first, grads, 1 - BETAS[0])
        self.second = torch.lerp(self.second, grads.square(), 1 - BETAS[1])
        speed = self.first / (1 - BETAS[0] ** self.step)
        spread = (self.second / (1 - BETAS[1] ** self.step)).sqrt()
        self.parameters = self.parameters - rate * speed / (spread + EPSILON)

    # ---------------------------------------------------------------------------------------------------- in the cache

    def save(self) -> None:
        """Keep what has been reached; a finished unit keeps its pictures alone."""
        if self.stopped or self.step == 0:
            return
        if self.images is None or self.activation is None:
            state = {name: getattr(self, name) for name in STATE} | {"step": torch.tensor(self.step)}
            _write(_path(self.key, "partial"), state)
            return
        _write(_path(self.key), {name: getattr(self, name) for name in FINISHED})
        _path(self.key, "partial").unlink(missing_ok=True)

    def restore(self) -> None:
        """Take up what an earlier run with this key has reached, if there is anything whole."""
        finished, partial = _read(_path(self.key)), _read(_path(self.key, "partial"))
        for name, value in (finished or partial or {}).items():
            setattr(self, name, int(value) if name == "step" else value)
        if finished:
            self.step = len(self.history)


STATE = ("parameters", "first", "second", "history")
FINISHED = ("images", "activation", "history")


def begin(
    objective: Objective,
    settings: Mapping[str, object],
    *,
    weights: str,
    copies: int,
    steps: int,
    seed: int,
    parametrisation: Parametrisation,
    transforms: Transforms,
    size: tuple[int, int],
) -> Unit:
    """A unit at step 0: its key, and for each picture the parameters it starts from and how it will be moved."""
    document = json.dumps({"weights": weights, "objective": objective.key, **settings}, sort_keys=True)
    seeds = [_number(f"{seed} {objective.key} {copy}") for copy in range(copies)]
    generators = [torch.Generator().manual_seed(number) for number in seeds]
    parameters = torch.stack([parametrisation.start(generator) for generator in generators])
    maps = torch.stack([transforms.draw(steps, size=size, generator=generator) for generator in generators])
    return Unit(
        objective,
        hashlib.sha256(document.encode()).hexdigest(),
        seeds,
        parameters,
        torch.zeros_like(parameters),
        torch.zeros_like(parameters),
        maps,
        torch.full((steps, copies), torch.nan),
    )


def digest(tensor: Tensor | None) -> str | None:
    """A short name for the values of a tensor, for keys."""
    if tensor is None:
        return None
    values = tensor.detach().cpu().float().contiguous()
    return hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()[:16]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _word(values: Tensor) -> str:
    return "NaN" if bool(values.isnan().any()) else "infinite"


def _path(key: str, stage: str = "") -> Path:
    return cache_folder() / "visualization" / f"{key}{'.' + stage if stage else ''}.safetensors"


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path) if path.exists() else None
    except SafetensorError:  # a file damaged from outside is made again
        return None


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with whole(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
