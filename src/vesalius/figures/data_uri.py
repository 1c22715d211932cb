"""Pictures inside a figure's JSON: each a data URI with its size, so that a page needs no other file."""

import base64
import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vesalius.errors import VesaliusError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
LARGE = 40_000
"""Bytes of a picture kept without loss, at most."""
ALL = 3_000_000
"""The same for all pictures of one figure together."""

Pictures = Iterable[Any]
"""UInt8 [picture, channel, height, width], or [channel, height, width] each of its own size or None."""


def data_uris(pictures: Pictures) -> list[dict[str, Any] | None]:
    """Each picture as {"src", "width", "height", "alpha"}, None where there is none.

    Without loss (WebP or PNG, whichever is smaller) where that takes at most 40 kB a picture and 3 MB a figure:
    drawn stimuli and small pictures. Photographs beyond it are WebP of quality 90.

    >>> [picture] = data_uris(torch.zeros(1, 1, 8, 16, dtype=torch.uint8))
    >>> picture["src"][:22], picture["width"], picture["height"], picture["alpha"]
    ('data:image/webp;base64', 16, 8, False)
    """
    listed = list(pictures)
    limit = min(LARGE, ALL // max(len(listed), 1))
    return [None if picture is None else _data_uri(picture, limit) for picture in listed]


def _data_uri(picture: Any, limit: int) -> dict[str, Any]:
    from PIL import Image

    pixels = _checked(picture)
    channels, height, width = pixels.shape
    interleaved = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(interleaved[:, :, 0] if channels == 1 else interleaved, MODES[channels])
    kind, data = "webp", _bytes(image, "WEBP", lossless=True, method=2)
    if len(data) > limit:
        data = _bytes(image, "WEBP", quality=90)
    else:
        simple = _bytes(image, "PNG")
        kind, data = ("png", simple) if len(simple) < len(data) else (kind, data)
    text = base64.b64encode(data).decode("ascii")
    source = f"data:image/{kind};base64,{text}"
    return {"src": source, "width": width, "height": height, "alpha": channels == 4}


def _checked(picture: Any) -> Tensor:
    pixels = torch.as_tensor(picture).detach().cpu()
    if pixels.dtype != torch.uint8:
        raise VesaliusError(f"a picture holds {pixels.dtype}; expected torch.uint8, from 0 to 255")
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise VesaliusError(f"a picture has shape {list(pixels.shape)}; expected [channel, height, width]")
    if len(pixels) not in MODES:
        raise VesaliusError(
            f"a picture has {len(pixels)} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA): draw others one by one"
        )
    return pixels


def _bytes(image: Any, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()
