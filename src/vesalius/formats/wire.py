"""The wire format of protocol buffers: fields by number, without their schema.

https://protobuf.dev/programming-guides/encoding: a field is a key (number · 8 + wire type) and a varint, 8
bytes, a length and as many bytes, or 4 bytes.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5


class Damaged(ValueError):
    """The bytes are not a message, or end within one."""


def fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Every field of a message in order: its number, and an integer or the bytes it holds."""
    at, end = 0, len(message)
    while at < end:
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = varint(message, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:
            raise Damaged(f"a field has the wire type {kind}")
        if at + length > end:
            raise Damaged(f"a field lacks {at + length - end} bytes")
        yield number, message[at : at + length]
        at += length


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """An unsigned integer of seven bits a byte, the least first, and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise Damaged("a number does not end")


def integers(value: Any) -> list[int]:
    """Repeated integers: one, or packed into bytes."""
    if isinstance(value, int):
        return [signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = varint(value, at)
        numbers.append(signed(number))
    return numbers


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def floats(value: memoryview) -> np.ndarray:
    """Repeated float32 numbers: one, or packed."""
    if len(value) % 4:
        raise Damaged(f"{len(value)} bytes are not numbers of 4 bytes")
    return np.frombuffer(value, "<f4")


def text(value: memoryview) -> str:
    return bytes(value).decode()


def number(value: memoryview) -> float:
    return struct.unpack("<f", value)[0]
