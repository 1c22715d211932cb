"""Weights of TensorFlow.js: a manifest that says what each tensor is, and shards of bytes that follow one another.

Quantised tensors are bytes with a scale and an offset, value = byte · scale + min, computed in double precision
and rounded once, as TensorFlow.js does.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.errors import VesaliusError

KINDS = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2"}


def read(manifest: Iterable[dict[str, Any]], data: bytes, *, name: str) -> dict[str, Tensor]:
    """The tensors of a `weightsManifest` by name, in float32; `data` is all its shards in order.

    Raises VesaliusError if the shards are longer or shorter than the manifest says, or a kind is unknown.
    """
    tensors, at = {}, 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        affine = entry.get("quantization", {})
        kind = affine.get("dtype", entry["dtype"])
        if kind not in KINDS:
            raise VesaliusError(f"'{entry['name']}' of {name} is {kind}; expected one of {', '.join(KINDS)}")
        size = math.prod(entry["shape"]) * np.dtype(KINDS[kind]).itemsize
        if at + size > len(data):
            raise VesaliusError(
                f"the shards of {name} are cut short: '{entry['name']}' lacks {at + size - len(data):,} bytes"
            )
        values = np.frombuffer(data, KINDS[kind], math.prod(entry["shape"]), at).astype(np.float64)
        values = values * affine.get("scale", 1.0) + affine.get("min", 0.0)
        tensors[entry["name"]] = torch.from_numpy(values.reshape(entry["shape"]).astype(np.float32))
        at += size
    if at != len(data):
        raise VesaliusError(
            f"the shards of {name} have {len(data):,} bytes; its manifest accounts for {at:,}"
        )
    return tensors


def manifest_in_script(script: str, *, name: str) -> list[dict[str, Any]]:
    """The `weightsManifest` of a model that was minified into a JavaScript file, as data.

    Raises VesaliusError if there is none, or it is no plain literal.
    """
    start = script.find("weightsManifest:")
    if start < 0:
        raise VesaliusError(f"{name} has no weightsManifest; expected a model of TensorFlow.js")
    literal = script[start + len("weightsManifest:") :]
    quoted = re.sub(r"([{,])(\w+):", r'\1"\2":', literal)
    numbered = re.sub(r"([:,\[]-?)\.(\d)", r"\g<1>0.\2", quoted)
    try:
        return json.JSONDecoder().raw_decode(numbered)[0]
    except json.JSONDecodeError as error:
        raise VesaliusError(f"the weightsManifest of {name} cannot be read as data ({error})") from None


def bytes_in_script(script: bytes, *, name: str) -> bytes:
    """A shard that was minified into a JavaScript file as base64. Raises VesaliusError if there is none."""
    match = re.search(rb'exports="([A-Za-z0-9+/=]*)"', script)
    if match is None:
        raise VesaliusError(
            f"{name} holds no base64 string, or is cut short; expected a shard of TensorFlow.js"
        )
    try:
        return base64.b64decode(match[1], validate=True)
    except binascii.Error as error:
        raise VesaliusError(f"the shard {name} is damaged or cut short ({error})") from None
