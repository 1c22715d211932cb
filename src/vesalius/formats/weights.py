"""Files of tensors: safetensors, and torch files that hold nothing but tensors. A pickle is never run."""

import warnings
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, cast

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vesalius.errors import VesaliusError

TORCH_FILES = (".pt", ".pth", ".bin")


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, on the CPU.

    Raises VesaliusError if the file is missing, cut short or damaged, holds anything but tensors, or would
    have to run code to be read.
    """
    if not path.is_file():
        raise VesaliusError(f"There is no file {path}; expected .safetensors or {', '.join(TORCH_FILES)}.")
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    if path.suffix in TORCH_FILES:
        return load_torch(path)
    raise VesaliusError(
        f"{path.name} is not a file of tensors; expected .safetensors or {', '.join(TORCH_FILES)}."
    )


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise VesaliusError(
            f"{path.name} is damaged or cut short ({error}); fetch or save it again."
        ) from None


def load_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by `torch.save`, read with `weights_only`."""
    return read_torch(path, name=path.name)


def read_torch(file: Path | BufferedIOBase, *, name: str) -> dict[str, Tensor]:
    """The same of a file or of an open one, whose `name` stands in what is raised."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's advice about the protocol of a pickle
            state = torch.load(cast(Path | IO[bytes], file), map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise VesaliusError(
            f"{name} is a pickle that would run code when read, which is refused; if it is safe, write "
            "its tensors with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VesaliusError(f"{name} is damaged or cut short ({reason}); fetch or save it again.") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise VesaliusError(f"{name} holds a {type(state).__name__}; expected names with one tensor each.")
    return dict(state)


def fill(module: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Give a module the weights of `state`, all of them and no others; batch norms need no count of batches.

    The module may be on the device `meta`, without weights so far. Raises VesaliusError naming the first tensor
    that is absent, unknown, or of another shape.
    """
    own = module.state_dict()
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    absent, unknown = sorted(needed - state.keys()), sorted(state.keys() - own.keys())
    kind = type(module).__name__
    if absent or unknown:
        wrong = f"lacks '{absent[0]}'" if absent else f"holds '{unknown[0]}', which {kind} has not"
        raise VesaliusError(
            f"{name} is not a {kind} of this size: it {wrong} ({len(absent)} of {len(needed)} tensors are absent, "
            f"{len(unknown)} unknown)"
        )
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise VesaliusError(
                f"'{key}' of {name} has the shape {tuple(tensor.shape)}; {kind} needs {tuple(own[key].shape)}"
            )
    counts = {key: torch.tensor(0) for key in own.keys() - needed}
    module.load_state_dict({**counts, **state}, assign=True)


def check_finite(state: Mapping[str, Tensor], *, name: str) -> None:
    """Raise VesaliusError naming the first tensor of `state` that holds NaN or infinity."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise VesaliusError(f"weight '{key}' of {name} holds NaN or infinity; expected finite numbers")


def halves_from_pairs(weight: Float[Tensor, "out d_model"], heads: int) -> Float[Tensor, "out d_model"]:
    """Rows of a query or key matrix that turns neighbours (2i, 2i+1), reordered to turn (i, i + d_head/2).

    The original Llama, llama2.c and llama.cpp rotate neighbouring dimensions, transformers the two halves of
    a head (Su et al. 2021, arXiv 2104.09864); with the rows reordered the two give the same scores.
    """
    return rearrange(weight, "(head i two) d_model -> (head two i) d_model", head=heads, two=2)
