"""The dashboards of thousands of latents as one figure, their numbers packed into as few bytes as the eye can use.

A page that opens from one file holds a few hundred thousand examples: values become 8 bits of the latent's largest,
words become numbers into a list of those that occur, and arrays become base64 of little-endian bytes.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.figures.data_uri import data_uris
from vesalius.figures.encoding import words
from vesalius.figures.figure import Figure

TYPES = {"u8": torch.uint8, "i8": torch.int8, "u16": torch.int32, "i32": torch.int32, "f32": torch.float32}


def dashboard(
    latents: Int[Tensor, " latent"],
    *,
    columns: Mapping[str, Float[Tensor, " latent"]],
    histogram: tuple[Int[Tensor, "latent bin"], Float[Tensor, " latent"]],
    examples: Mapping[str, Tensor],
    intervals: int,
    title: str,
    logits: Mapping[str, Tensor] | None = None,
    related: Mapping[str, tuple[Int[Tensor, "latent near"], Float[Tensor, "latent near"]]] | None = None,
    texts: Sequence[Mapping[str, Tensor]] = (),
    vocabulary: Sequence[str] = (),
    pictures: Mapping[str, Tensor] | None = None,
    caption: str = "",
) -> Figure:
    """A list of latents, sorted by any of `columns` and searched by what they show, and the dashboard of one.

    `histogram` is the counts in bins from 0 and the width of each latent's bins. `examples` of latent i are those from
    `starts[i]` to `starts[i + 1]`: `groups` (-1 of the top, else the number of the interval), `values`, `windows` of
    values around, and `tokens` (-1: none) with `effects` (NaN: unknown), or `positions` in the maps of `pictures`.
    `logits` are `tokens` and `values`, first the most favoured and then as many least favoured ones, and `counts`
    between `low` and `high`. `texts` are `tokens` and what fires at each: `starts`, `latents`, `values`.
    """
    if len(examples["starts"]) != len(latents) + 1:
        raise VesaliusError(
            f"dashboard was given {len(latents)} latents and examples of {len(examples['starts']) - 1}"
        )
    used, renumbered = _used(examples, logits, texts)
    largest = _largest(examples, len(latents))
    counts, widths = histogram
    data = {
        "latents": packed(latents, "i32"),
        "columns": {name: packed(values, "f32") for name, values in columns.items()},
        "counts": packed(counts, "i32"),
        "widths": packed(widths, "f32"),
        "intervals": intervals,
        "examples": {
            "starts": packed(examples["starts"], "i32"),
            "groups": packed(examples["groups"], "i8"),
            "values": packed(examples["values"], "f32"),
            "windows": packed(
                (examples["windows"].float() / largest[:, None] * 255).round().clamp(0, 255), "u8"
            ),
            **_effects(examples),
            **({"tokens": packed(renumbered(examples["tokens"]), "u16")} if "tokens" in examples else {}),
        },
        "logits": None if logits is None else _logits(logits, renumbered),
        "related": [
            {"title": name, "units": packed(units, "i32"), "values": packed(values, "f32")}
            for name, (units, values) in (related or {}).items()
        ],
        "texts": [_text(text, renumbered) for text in texts],
        "vocabulary": ["", *(words(vocabulary[number] for number in used.tolist()) or ())],
        "pictures": None if pictures is None else _pictures(pictures, examples),
    }
    return Figure("dashboard", data, title, caption)


def packed(values: Tensor, kind: str) -> dict[str, Any]:
    """An array as {"type", "shape", "bytes"}; u16 is unsigned, as its name says.

    >>> packed(torch.tensor([1.0, 2.0]), "f32")
    {'type': 'f32', 'shape': [2], 'bytes': 'AACAPwAAAEA='}
    """
    plain = values.detach().cpu().to(TYPES[kind]).contiguous()
    if kind == "u16":
        if plain.numel() and int(plain.max()) >= 2**16:
            kind = "i32"
        else:
            plain = (plain & 0xFFFF).to(torch.uint16)
    data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return {"type": kind, "shape": list(values.shape), "bytes": base64.b64encode(data).decode("ascii")}


def unpacked(array: Mapping[str, Any]) -> Tensor:
    """What `packed` made."""
    kind = torch.uint16 if array["type"] == "u16" else TYPES[array["type"]]
    data = bytearray(base64.b64decode(array["bytes"]))
    flat = torch.frombuffer(data, dtype=kind) if data else torch.zeros(0, dtype=kind)
    return (flat.int() if kind is torch.uint16 else flat).reshape(array["shape"])


def _used(
    examples: Mapping[str, Tensor], logits: Mapping[str, Tensor] | None, texts: Sequence[Mapping[str, Tensor]]
):
    """The tokens that occur anywhere, and what renumbers them, so that 0 is none."""
    shown = [text["tokens"].flatten() for text in texts]
    shown += [examples["tokens"].flatten()] if "tokens" in examples else []
    shown += [logits["tokens"].flatten()] if logits is not None else []
    every = torch.cat([part.long() for part in shown]) if shown else torch.zeros(0, dtype=torch.long)
    used = every[every >= 0].unique()

    def renumbered(ids: Tensor) -> Tensor:
        return torch.where(ids < 0, 0, torch.searchsorted(used, ids.long().contiguous()) + 1)

    return used, renumbered


def _largest(examples: Mapping[str, Tensor], latents: int) -> Float[Tensor, " example"]:
    """Of each example the largest value of any example of its latent."""
    index = torch.repeat_interleave(examples["starts"].diff())
    largest = torch.zeros(latents).scatter_reduce(0, index, examples["values"], "amax", include_self=False)
    return largest.clamp(min=1e-30)[index]


def _effects(examples: Mapping[str, Tensor]) -> dict[str, Any]:
    """Effects as 8 bits of the largest of the latent, -128 where they are not known; nothing if none is."""
    effects = examples["effects"].float() if "effects" in examples else torch.zeros(0)
    known = effects.isfinite()
    if not known.any():
        return {}
    starts = examples["starts"]
    rows = known.any(1)
    index = torch.repeat_interleave(starts.diff())
    size = effects.nan_to_num().abs().amax(1)
    scale = torch.zeros(len(starts) - 1).scatter_reduce(0, index, size, "amax").clamp(min=1e-6)
    short = (effects.nan_to_num() / scale[index, None] * 127).round()
    short = torch.where(known, short, -128)[rows]
    return {
        "effects": packed(short, "i8"),
        "measured": packed(rows.cumsum(0) * rows, "i32"),
        "scale": packed(scale, "f32"),
    }


def _logits(logits: Mapping[str, Tensor], renumbered: Any) -> dict[str, Any]:
    counts = logits["counts"] / logits["counts"].amax(1, keepdim=True).clamp(min=1)
    return {
        "tokens": packed(renumbered(logits["tokens"]), "u16"),
        "values": packed(logits["values"], "f32"),
        "counts": packed((counts.sqrt() * 255).round(), "u8"),
        "low": packed(logits["low"], "f32"),
        "high": packed(logits["high"], "f32"),
    }


def _text(text: Mapping[str, Tensor], renumbered: Any) -> dict[str, Any]:
    return {
        "tokens": packed(renumbered(text["tokens"]), "u16"),
        "starts": packed(text["starts"], "i32"),
        "latents": packed(text["latents"], "i32"),
        "values": packed(text["values"], "f32"),
    }


def _pictures(pictures: Mapping[str, Tensor], examples: Mapping[str, Tensor]) -> dict[str, Any]:
    size, stride, offset = pictures["field"].tolist()
    return {
        "images": data_uris(pictures["thumbnails"]),
        "of": packed(pictures["of"], "u16"),
        "places": packed(examples["positions"], "i32"),
        "columns": int(pictures["columns"]),
        "size": size,
        "stride": stride,
        "offset": offset,
    }
