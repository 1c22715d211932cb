"""Caffe's trained networks (`.caffemodel`): the blobs of a NetParameter, by layer.

Field numbers are those of caffe.proto; layers of the older kind (V1) are read too. Blobs are [out, in, row,
column], as torch has them, and [out, in] for dense layers, whose older shape is [1, 1, out, in].
"""

from io import BufferedIOBase

import numpy as np
import torch
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.formats.wire import Damaged, fields, floats, integers, text

LAYER_KINDS = {2: (4, 6), 100: (1, 7)}
"""Field of the layers → fields of a layer's name and of its blobs."""
OLD_SIZES, DATA, SHAPE = (1, 2, 3, 4), 5, 7


def read(file: BufferedIOBase, *, name: str) -> dict[str, Tensor]:
    """`LAYER.weight` and `LAYER.bias`. Raises VesaliusError if the file is damaged, cut short or holds no blob."""
    found = {}
    try:
        for field, message in fields(memoryview(file.read())):
            if field in LAYER_KINDS:
                title, blobs = layer(message, *LAYER_KINDS[field])
                found |= {f"{title}.{kind}": blob for kind, blob in zip(("weight", "bias"), blobs)}
    except (Damaged, ValueError, TypeError) as error:
        raise VesaliusError(
            f"{name} is no network of Caffe, or is cut short ({error}); fetch it again."
        ) from None
    if not found:
        raise VesaliusError(f"{name} holds no blob; expected a trained network of Caffe.")
    return found


def layer(message: memoryview, name_field: int, blob_field: int) -> tuple[str, list[Tensor]]:
    """Name and blobs of a layer; a bias comes second."""
    title, blobs = "", []
    for field, value in fields(message):
        if field == name_field:
            title = text(value)
        elif field == blob_field:
            blobs.append(blob(value))
    return title, [blob.flatten() if index else blob for index, blob in enumerate(blobs)]


def blob(message: memoryview) -> Tensor:
    old = dict.fromkeys(OLD_SIZES, 1)
    shape: list[int] = []
    pieces = []
    for field, value in fields(message):
        if field in old:
            old[field] = value
        elif field == SHAPE:
            shape = [size for key, sizes in fields(value) if key == 1 for size in integers(sizes)]
        elif field == DATA:
            pieces.append(floats(value))
    values = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    shape = shape or list(old.values())
    if not shape or int(np.prod(shape)) != values.size:
        raise Damaged(f"a blob of shape {tuple(shape)} holds {values.size} numbers")
    tensor = torch.from_numpy(values.reshape(shape).copy())
    return tensor[0, 0] if tensor.dim() == 4 and tensor.shape[:2] == (1, 1) else tensor
