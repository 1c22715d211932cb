"""One picture out of a file or an archive: whatever a camera or a program wrote, as RGB in 0..1, upright.

The first frame of an animation; what is transparent lies over middle grey; 16 bits keep their scale. No file can make
the decoder run anything, and none is decoded that announces more pixels than `LARGEST`.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = Float[Tensor, "channel height width"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # decoders that run nothing
EXPECTED = "expected PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
LARGEST = 64_000_000
"""Pixels of the largest picture that is opened: a small file can announce a huge one."""
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
    IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError,
)  # fmt: skip
"""What decoders raise on bytes that are not what the header promised."""


@dataclass(frozen=True)
class PictureFile:
    """Where the bytes of a picture lie: a file, or a stretch of an archive."""

    name: str
    path: Path
    start: int = 0
    length: int = -1

    def bytes(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read(self.length)
        except OSError as error:
            raise VesaliusError(f"'{self.name}' cannot be read ({reason(error)})") from None

    def checked(self) -> bytes:
        """sha256 of the bytes of a whole picture, as its header and its end say; other formats than two are decoded.

        Raises VesaliusError for what is not a picture, or not all of one.
        """
        data = self.bytes()
        with warnings.catch_warnings(action="ignore"):
            picture = _header(io.BytesIO(data), self.name)
        if picture.format in ("JPEG", "MPO"):
            whole = b"\xff\xd9" in data[-65_536:]
        elif picture.format == "PNG":
            whole = b"IEND" in data[-65_536:]
        else:
            whole = read_picture(data, self.name).numel() > 0
        if not whole:
            raise VesaliusError(
                f"'{self.name}' is truncated ({len(data):,} bytes, and no end of the picture)"
            )
        return hashlib.sha256(data).digest()


def read_picture(data: bytes, name: str, *, pixels: int = 0) -> Picture:
    """A picture out of a file's bytes, with at least `pixels` along its shorter side if it has them; 0 for all.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves twice the pixels asked for.
    Raises VesaliusError for what is not a picture, is truncated or damaged, or has more than `LARGEST` pixels.
    """
    with warnings.catch_warnings(action="ignore"):  # Pillow's own warning of large pictures
        picture = _header(io.BytesIO(data), name)
        try:
            if pixels:
                enough = 2 * pixels / min(picture.size)
                picture.draft("RGB", (ceil(picture.width * enough), ceil(picture.height * enough)))
            return rearrange(
                torch.from_numpy(_rgb(picture)), "height width colour -> colour height width"
            ).contiguous()
        except DAMAGE as error:
            raise VesaliusError(f"'{name}' is truncated or damaged ({reason(error)})") from None


def _header(data: io.BytesIO, name: str) -> Image:
    """What the first bytes announce; nothing is decoded yet."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(data, formats=FORMATS)
    except UnidentifiedImageError:
        raise VesaliusError(f"'{name}' is not a picture; {EXPECTED}") from None
    except Image.DecompressionBombError:
        raise VesaliusError(f"'{name}' announces too many pixels; expected at most {LARGEST:,}") from None
    except DAMAGE as error:
        raise VesaliusError(f"'{name}' is truncated or damaged ({reason(error)})") from None
    if picture.width * picture.height > LARGEST:
        raise VesaliusError(
            f"'{name}' is {picture.width}×{picture.height} pixels; expected at most {LARGEST:,}"
        )
    return picture


def _rgb(picture: Image) -> np.ndarray:
    """[height, width, 3] in 0..1, turned as the camera says."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits
        return np.repeat((np.asarray(picture).astype(np.float32) / 65535).clip(0, 1)[..., None], 3, axis=2)
    if picture.mode == "F":
        grey = np.asarray(picture, dtype=np.float32)
        if not (grey.min() >= 0 and grey.max() <= 1):
            raise ValueError(f"numbers from {grey.min():g} to {grey.max():g}, where 0 to 1 are expected")
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.has_transparency_data:
        layers = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
        return layers[..., :3] * layers[..., 3:] + 0.5 * (1 - layers[..., 3:])
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255


def reason(error: Any) -> str:
    """An exception in a few words."""
    words = (
        str(error.strerror if isinstance(error, OSError) and error.strerror else error)
        or type(error).__name__
    )
    return words.splitlines()[0].rstrip(".")
