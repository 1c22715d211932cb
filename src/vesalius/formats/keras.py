"""Keras weights in HDF5 (`.h5`, `.weights.h5`): the datasets of a file. Its configuration is not read.

Keras keeps kernels as [row, column, in, out] and dense matrices as [in, out]; `in_torch` gives torch's layout.
"""

from collections.abc import Callable, Mapping
from io import BufferedIOBase

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vesalius.errors import VesaliusError

WEIGHTS = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def read(file: BufferedIOBase, *, name: str) -> dict[str, Tensor]:
    """Every array of floating point by its path in the file; the optimiser's are left out.

    Raises VesaliusError if the file is not HDF5 or is cut short, or h5py is missing.
    """
    try:
        import h5py
    except ImportError:
        raise VesaliusError(
            f"{name} needs the h5py package; install it with pip install 'vesalius[networks]'"
        ) from None
    found: dict[str, Tensor] = {}

    def keep(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and not path.startswith("optimizer"):
            found[path] = torch.from_numpy(np.asarray(item, np.float32))

    try:
        with h5py.File(file, "r") as opened:
            opened.visititems(keep)
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise VesaliusError(f"{name} is not HDF5, or is cut short ({reason}); fetch it again.") from None
    if not found:
        raise VesaliusError(f"{name} holds no array; expected the weights of a Keras network.")
    return found


def in_torch(arrays: Mapping[str, Tensor], module_of: Callable[[str], str]) -> dict[str, Tensor]:
    """A state dict: `module_of` names the module of a Keras layer, the last but one part of an array's path.

    >>> in_torch({"Conv1/Conv1/kernel:0": torch.zeros(3, 3, 1, 8)}, lambda layer: "stem")["stem.weight"].shape
    torch.Size([8, 1, 3, 3])
    """
    state = {}
    for path, array in arrays.items():
        layer, kind = path.removesuffix(":0").split("/")[-2:]
        if kind not in WEIGHTS:
            raise VesaliusError(
                f"'{path}' is no weight of a Keras layer; expected one of {', '.join(WEIGHTS)}"
            )
        turned = kernel_in_torch(array, depthwise="depthwise" in path) if "kernel" in kind else array
        state[f"{module_of(layer)}.{WEIGHTS[kind]}"] = turned
    return state


def kernel_in_torch(kernel: Tensor, *, depthwise: bool = False) -> Tensor:
    """[out, in, row, column] of a convolution, [out, in] of a dense layer."""
    if kernel.dim() == 2:
        return kernel.T.contiguous()
    if depthwise:
        return rearrange(kernel, "row column out one -> out one row column").contiguous()
    return rearrange(kernel, "row column inputs out -> out inputs row column").contiguous()
