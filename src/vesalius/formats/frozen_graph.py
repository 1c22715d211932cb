"""TensorFlow's frozen graphs (`.pb`): the constants of a GraphDef, and the numbers its operations are given.

The graph is not run. Field numbers are those of TensorFlow's graph.proto, node_def.proto, attr_value.proto and
tensor.proto.
"""

import math
from io import BufferedIOBase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.formats.wire import Damaged, fields, floats, integers, number, text

NODE = 1
NAME, OPERATION, ATTRIBUTE = 1, 2, 5
KEY, VALUE = 1, 2
INTEGER, FLOAT, TENSOR = 3, 4, 8
KIND, SHAPE, CONTENT, FLOATS, INTEGERS = 1, 2, 4, 5, 7
KINDS = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64}


def read(file: BufferedIOBase, *, name: str) -> dict[str, Tensor]:
    """The constants by the name of their node, and `NODE.ATTRIBUTE` for every number an operation is given.

    Raises VesaliusError if the file is damaged, cut short or holds no constant.
    """
    try:
        nodes = [fields(value) for field, value in fields(memoryview(file.read())) if field == NODE]
        found = {key: tensor for node in nodes for key, tensor in numbers_of(node)}
    except (Damaged, ValueError, TypeError) as error:
        raise VesaliusError(
            f"{name} is no frozen graph, or is cut short ({error}); fetch it again."
        ) from None
    if not found:
        raise VesaliusError(f"{name} holds no constant; expected a frozen graph of TensorFlow.")
    return found


def numbers_of(node: Any) -> list[tuple[str, Tensor]]:
    """What one node holds: the value of a constant, or its numeric attributes."""
    title, operation, attributes = "", "", {}
    for field, value in node:
        if field == NAME:
            title = text(value)
        elif field == OPERATION:
            operation = text(value)
        elif field == ATTRIBUTE:
            entry = dict(fields(value))
            attributes[text(entry[KEY])] = dict(fields(entry[VALUE]))
    if operation == "Const":
        tensor = constant(attributes["value"][TENSOR])
        return [] if tensor is None else [(title, tensor)]
    floating = [(f"{title}.{key}", number(one[FLOAT])) for key, one in attributes.items() if FLOAT in one]
    whole = [(f"{title}.{key}", one[INTEGER]) for key, one in attributes.items() if INTEGER in one]
    return [(key, torch.tensor(value)) for key, value in floating + whole]


def constant(message: memoryview) -> Tensor | None:
    """A tensor, or None if it does not hold numbers; one stored number stands for all."""
    kind, shape, values = 0, [], None
    for field, value in fields(message):
        if field == KIND:
            kind = value
        elif field == SHAPE:
            shape = [dict(fields(axis)).get(1, 0) for key, axis in fields(value) if key == 2]
        elif field == CONTENT and kind in KINDS:
            values = np.frombuffer(value, KINDS[kind])
        elif field == FLOATS:
            values = floats(value)
        elif field == INTEGERS:
            values = np.array(integers(value), KINDS.get(kind, np.int64))
    if values is None or kind not in KINDS:
        return None
    if values.size == 1:
        values = np.full(math.prod(shape), values[0])
    if values.size != math.prod(shape):
        raise Damaged(f"a constant of shape {tuple(shape)} holds {values.size} numbers")
    return torch.from_numpy(values.reshape(shape).copy())
