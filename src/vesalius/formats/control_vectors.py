"""Files of control vectors: llama.cpp's GGUF (which repeng writes), safetensors, and torch files of tensors alone.

llama.cpp reads `direction.N`, one row of float32 for each layer N from 1 on, and adds it to what layer N, counted from
0, gives out: `resid_post@N` here. A layer 0 it cannot steer. The keys that say whose vector it is are ours; other
readers pass over them.
"""

import re
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesalius.dictionaries.control_vector import ControlVector
from vesalius.errors import VesaliusError
from vesalius.files import whole
from vesalius.formats.gguf_file import open_gguf

KIND = "controlvector"
NUMBERED = re.compile(r"(?:direction|layer|layer_activations)?\.?(\d+)")


def write_control_vector(vector: ControlVector, path: str | Path) -> Path:
    """Write a `.gguf` file that llama.cpp's `--control-vector` reads, or a `.safetensors` file.

    Raises VesaliusError for another ending, or a layer 0 in a `.gguf` file.
    """
    path = Path(path)
    about = {
        "model": vector.model,
        "model_hash": vector.model_hash,
        "family": vector.family,
        "label": vector.label,
    }
    tensors = {
        f"direction.{n}": vector.directions[n].detach().cpu().float().contiguous() for n in vector.layers
    }
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        with whole(path) as partial:
            save_file(tensors, partial, about)
        return path
    if path.suffix != ".gguf":
        raise VesaliusError(f"'{path.name}' ends in '{path.suffix}'; expected .gguf or .safetensors")
    if 0 in vector.directions:
        raise VesaliusError(
            "llama.cpp cannot steer layer 0, which this control vector has; write vector.at(layers) without it"
        )
    gguf = _gguf()
    with whole(path) as partial:
        writer = gguf.GGUFWriter(partial, KIND)
        writer.add_string(f"{KIND}.model_hint", vector.family)
        writer.add_uint32(f"{KIND}.layer_count", len(tensors))
        for key, value in about.items():
            writer.add_string(f"vesalius.{key}", value)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def read_control_vector(path: str | Path) -> ControlVector:
    """A control vector from `.gguf` (llama.cpp, repeng), `.safetensors`, or `.pt` (steering-vectors' tensors by layer).

    Nothing in a file is executed. Raises VesaliusError if it is damaged or holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise VesaliusError(f"There is no file {path}; expected a control vector: .gguf, .safetensors or .pt")
    if path.suffix == ".gguf":
        return _read_gguf(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _read_torch(path)
    raise VesaliusError(f"'{path.name}' ends in '{path.suffix}'; expected .gguf, .safetensors or .pt")


def _read_gguf(path: Path) -> ControlVector:
    file = open_gguf(path)
    kind = file.metadata.get("general.architecture", "")
    if kind != KIND:
        raise VesaliusError(f"{path.name} is a '{kind}' file; expected a {KIND}")
    about = {key: str(file.metadata.get(f"vesalius.{key}", "")) for key in ("model", "model_hash", "label")}
    family = str(file.metadata.get(f"{KIND}.model_hint", ""))
    return _vector(path, {name: file.tensor(name) for name in file.entries}, about | {"family": family})


def _read_safetensors(path: Path) -> ControlVector:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            about = file.metadata() or {}
    except (SafetensorError, struct.error) as error:
        raise VesaliusError(f"{path.name} is damaged: {error}") from None
    return _vector(
        path, tensors, {key: about.get(key, "") for key in ("model", "model_hash", "family", "label")}
    )


def _read_torch(path: Path) -> ControlVector:
    """Tensors by layer, bare or as the `layer_activations` of a larger dictionary."""
    from pickle import UnpicklingError

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError):
        raise VesaliusError(
            f"{path.name} holds more than tensors and is not opened; save the tensors alone: "
            "torch.save(vector.layer_activations, path)"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("layer_activations"), dict):
        kind = found.get("layer_type", "decoder_block")
        if kind != "decoder_block":
            raise VesaliusError(f"{path.name} steers '{kind}'; expected decoder_block, the residual stream")
        found = found["layer_activations"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise VesaliusError(f"{path.name} holds no tensors by layer; expected {{layer: direction}}")
    return _vector(path, {str(name): value for name, value in found.items()}, {})


def _vector(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> ControlVector:
    numbers = {name: NUMBERED.fullmatch(name) for name in tensors}
    strange = [name for name, found in numbers.items() if not found]
    if strange or not tensors:
        raise VesaliusError(
            f"{path.name} has {strange[0] if strange else 'no tensors'}; expected direction.N for layers N"
        )
    directions = {int(numbers[name][1]): tensor.float() for name, tensor in tensors.items()}
    label = about.get("label") or path.stem
    return ControlVector(directions, **(about | {"label": label}))


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise VesaliusError(
            "a .gguf file needs the gguf package; install it with pip install 'vesalius[gguf]'"
        ) from None
    return gguf
