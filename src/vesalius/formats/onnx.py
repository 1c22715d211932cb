"""ONNX models: the initialisers of a graph, and its convolutions with what is affine behind them folded in.

The graph is not run. Field numbers are those of onnx.proto; weights outside the file are not read.
"""

import math
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.formats.wire import Damaged, fields, floats, integers, text

GRAPH = 7
NODE, INITIALISER = 1, 5
INPUT, OUTPUT, OPERATION = 1, 2, 4
DIMENSIONS, KIND, FLOATS, INTEGERS, NAME, RAW, EXTERNAL = 1, 2, 4, 7, 8, 9, 14
KINDS = {1: np.float32, 6: np.int32, 7: np.int64, 11: np.float64}
MOVES = ("Cast", "Transpose", "Identity")
AFFINE = ("Add", "Sub", "Mul")


@dataclass(frozen=True)
class Node:
    """One operation with the names of what it reads and writes."""

    operation: str
    inputs: list[str]
    output: str


@dataclass(frozen=True)
class Graph:
    """The operations in order, and the stored tensors by name."""

    nodes: list[Node]
    tensors: dict[str, Tensor]

    def folded(self) -> list[tuple[Float[Tensor, "out in row column"], Float[Tensor, " out"]]]:
        """Kernel and bias of every convolution, in order; additions and scalings by channel that follow are in them."""
        readers = {name: node for node in self.nodes for name in node.inputs}
        copies = {node.output: node.inputs[0] for node in self.nodes if node.operation == "Identity"}
        weights = []
        for node in (node for node in self.nodes if node.operation == "Conv"):
            kernel = self.tensors[node.inputs[1]].double()
            scale = torch.ones(len(kernel), dtype=torch.float64)
            shift = self.tensors[node.inputs[2]].double() if len(node.inputs) > 2 else torch.zeros_like(scale)
            behind = readers.get(node.output)
            while behind is not None and behind.operation in (*MOVES, *AFFINE):
                if behind.operation in AFFINE:
                    value = self._stored(behind.inputs, copies)
                    if value is None:
                        break
                    factor = value if behind.operation == "Mul" else torch.ones_like(value)
                    added = {"Add": value, "Sub": -value, "Mul": torch.zeros_like(value)}[behind.operation]
                    scale, shift = scale * factor, shift * factor + added
                behind = readers.get(behind.output)
            weights.append(((kernel * scale[:, None, None, None]).float(), shift.float()))
        return weights

    def _stored(self, names: list[str], copies: dict[str, str]) -> Tensor | None:
        """The one input of an operation that is stored, by channel."""
        stored = [copies.get(name, name) for name in names if copies.get(name, name) in self.tensors]
        return self.tensors[stored[0]].double().flatten() if len(stored) == 1 else None


def read_graph(file: BufferedIOBase, *, name: str) -> Graph:
    """The graph of a model. Raises VesaliusError if the file is damaged, cut short or holds no tensor."""
    try:
        messages = [value for field, value in fields(memoryview(file.read())) if field == GRAPH]
        parts = [part for graph in messages for part in fields(graph)]
        tensors = dict(tensor(value) for field, value in parts if field == INITIALISER)
        nodes = [node(value) for field, value in parts if field == NODE]
    except (Damaged, ValueError, TypeError, KeyError) as error:
        raise VesaliusError(f"{name} is no ONNX model, or is cut short ({error}); fetch it again.") from None
    if not tensors:
        raise VesaliusError(f"{name} holds no initialiser; expected an ONNX model with its weights.")
    return Graph(nodes, tensors)


def node(message: memoryview) -> Node:
    entries = list(fields(message))
    inputs = [text(value) for field, value in entries if field == INPUT]
    outputs = [text(value) for field, value in entries if field == OUTPUT]
    operations = [text(value) for field, value in entries if field == OPERATION]
    return Node("".join(operations), inputs, outputs[0] if outputs else "")


def tensor(message: memoryview) -> tuple[str, Tensor]:
    """One initialiser and its name."""
    title, kind, shape, values = "", 0, [], np.zeros(0)
    stored: dict[int, Any] = {}
    for field, value in fields(message):
        if field == NAME:
            title = text(value)
        elif field == KIND:
            kind = value
        elif field == DIMENSIONS:
            shape += integers(value)
        else:
            stored[field] = value
    if EXTERNAL in stored:
        raise Damaged(f"the tensor {title} lies in another file")
    if kind not in KINDS:
        raise Damaged(f"the tensor {title} is of the kind {kind}")
    if RAW in stored:
        values = np.frombuffer(stored[RAW], KINDS[kind])
    elif FLOATS in stored:
        values = floats(stored[FLOATS])
    elif INTEGERS in stored:
        values = np.array(integers(stored[INTEGERS]), KINDS[kind])
    if values.size != math.prod(shape):
        raise Damaged(f"the tensor {title} of shape {tuple(shape)} holds {values.size} numbers")
    return title, torch.from_numpy(values.reshape(shape).copy())
