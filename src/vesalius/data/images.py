"""Sets of pictures: a folder, an archive, files, a tensor, or procedural shapes, each read when it is asked for.

A picture is `[channel, height, width]` in 0..1: RGB, upright, the first frame, what is transparent over middle grey.
Opening a set passes over each file once without decoding it, to see whether it is whole, and keeps none of it: memory
does not grow with the set. What cannot be read is listed with its reason, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.data.picture_file import DAMAGE, Picture, PictureFile, read_picture, reason
from vesalius.data.picture_table import SUFFIX, dataset_pictures, parquet_pictures
from vesalius.data.shapes import CLASSES, shapes
from vesalius.errors import VesaliusError, nearest
from vesalius.preprocessing import Preprocessing

Read = Callable[[int, int], Picture]
"""`(number, pixels)`: a picture with at least so many pixels along its shorter side if it has them; 0 for all."""

SHAPES = 2_000
"""How many shapes there are if no number is named."""
SHAPE_SIZE = 128


class Images:
    """A fixed, ordered set of pictures: `images[i]`, `len(images)`, and batches fitted to a network.

    >>> images = open_images("shapes:48")
    >>> images, images[7].shape, images.classes[7]
    (Images(shapes:48: 48), torch.Size([3, 128, 128]), 'square')
    >>> [numbers for numbers, pixels in images.take(3).batches((32, 32), batch=2)]
    [[0, 1], [2]]
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Read,
        *,
        digest: Callable[[], str],
        classes: Sequence[str] | None = None,
        skipped: dict[str, str] | None = None,
        source: str = "",
    ) -> None:
        self.names = list(names)
        self.classes = None if classes is None else list(classes)
        """What each picture shows, where that is known."""
        self.skipped = {} if skipped is None else skipped
        """Name → why it could not be read; grows where damage shows only when a picture is decoded."""
        self.source = source
        self._read, self._digest = read, digest

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Images({self.source}: {len(self)})"

    def __getitem__(self, index: int) -> Picture:
        return self._read(range(len(self))[index], 0)

    @cached_property
    def hash(self) -> str:
        """sha256 over the bytes of the pictures in order; of shapes, over what they are drawn from."""
        return self._digest()

    def take(self, n: int, *, seed: int = 0) -> Images:
        """A sample of `n` pictures, in their order; all of them if there are fewer."""
        if n >= len(self):
            return self
        if n < 1:
            raise VesaliusError(f"{n} pictures of {self.source} were asked for; expected at least 1")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        picked = order[:n].sort().values.tolist()
        return Images(
            [self.names[number] for number in picked],
            lambda number, pixels: self._read(picked[number], pixels),
            digest=lambda: hashlib.sha256(f"{self.hash} {picked}".encode()).hexdigest(),
            classes=None if self.classes is None else [self.classes[number] for number in picked],
            skipped=self.skipped,
            source=f"{n} of {self.source}",
        )

    def fitted(self, index: int, fit: Preprocessing | tuple[int, int]) -> Picture:
        """One picture as `batches` gives it; raises VesaliusError if it is damaged."""
        preprocessing = fit if isinstance(fit, Preprocessing) else Preprocessing(fit)
        needed = ceil(max(preprocessing.size) / preprocessing.crop)
        return preprocessing.fit(self._read(range(len(self))[index], needed))

    def batches(
        self, fit: Preprocessing | tuple[int, int], *, batch: int = 32
    ) -> Iterator[tuple[list[int], Float[Tensor, "batch channel height width"]]]:
        """The pictures in order with their numbers, fitted to a network's preprocessing or to a size.

        A picture that turns out to be damaged is left out and added to `skipped`. Raises VesaliusError if all are.
        """
        found = False
        for first in range(0, len(self), batch):
            fitted: dict[int, Tensor] = {}
            for number in range(first, min(first + batch, len(self))):
                try:
                    fitted[number] = self.fitted(number, fit)
                except VesaliusError as error:
                    self.skipped[self.names[number]] = str(error)
            if fitted:
                found = True
                yield list(fitted), torch.stack(list(fitted.values()))
        if not found:
            raise _none(self.source, self.skipped)


def open_images(source: str | Path | Tensor | Images | Sequence[str | Path]) -> Images:
    """Pictures from a folder, a `.tar`, a file, a list of files, a tensor, "shapes", "shapes:500" or "skimage".

    Also from a Parquet file, or a folder of them, or a Hugging Face dataset: see `picture_table`. The subfolders of a
    folder are the classes of what lies in them. "skimage" is the photographs that come with scikit-image. Raises
    VesaliusError if there is nothing to read, or nothing that can be read.
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, Tensor):
        return _tensor(source)
    if source == "skimage":
        return _skimage()
    if isinstance(source, str | Path):
        return _shapes(str(source)) if str(source).partition(":")[0] == "shapes" else _place(source)
    rows = dataset_pictures(source)
    if rows is not None:
        return _stored(rows, source="a dataset")
    return _stored([PictureFile(str(one), Path(one)) for one in source], source=f"a list of {len(source)}")


# -------------------------------------------------------------------------------------------------- many files


def _place(source: str | Path) -> Images:
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
        if not found:
            raise VesaliusError(f"the folder '{path}' is empty; expected pictures in it")
        named = [(one.relative_to(path).as_posix(), one) for one in found]
        return _stored([file for name, one in named for file in _files(name, one)], source=str(path))
    if not path.exists():
        near = nearest(str(source), ["shapes", "skimage"])
        raise VesaliusError(
            f"'{path}' does not exist; expected a folder, a .tar, a picture, 'shapes:500' or 'skimage'{near}"
        )
    if path.suffix == ".tar":
        return _archive(path)
    if path.suffix == SUFFIX:
        return _stored(_files(path.name, path), source=str(path))
    PictureFile(str(path), path).checked()
    return _stored([PictureFile(path.name, path)], source=str(path))


def _files(name: str, path: Path) -> list[PictureFile]:
    return parquet_pictures(path, name=name) if path.suffix == SUFFIX else [PictureFile(name, path)]


def _archive(path: Path) -> Images:
    try:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
    except (tarfile.TarError, *DAMAGE) as error:
        raise VesaliusError(f"'{path}' is not a whole, uncompressed .tar ({reason(error)})") from None
    if not members:
        raise VesaliusError(f"the archive '{path}' is empty; expected pictures in it")
    members.sort(key=lambda member: member.name)
    return _stored([PictureFile(m.name, path, m.offset_data, m.size) for m in members], source=str(path))


def _stored(files: list[PictureFile], *, source: str) -> Images:
    """The files that are whole pictures; the others are skipped with their reason."""
    if not files:
        raise VesaliusError("the list of pictures is empty; expected at least one")
    skipped: dict[str, str] = {}
    kept: list[PictureFile] = []
    total = hashlib.sha256()
    for file in files:
        try:
            total.update(file.checked())
        except VesaliusError as error:
            skipped[file.name] = str(error)
        else:
            kept.append(file)
    if not kept:
        raise _none(source, skipped)
    folders = [Path(file.name).parent.name for file in kept]
    return Images(
        [file.name for file in kept],
        lambda number, pixels: read_picture(kept[number].bytes(), kept[number].name, pixels=pixels),
        digest=total.hexdigest,
        classes=folders if all(folders) and not Path(kept[0].name).is_absolute() else None,
        skipped=skipped,
        source=source,
    )


def _none(source: str, skipped: dict[str, str]) -> VesaliusError:
    return VesaliusError(
        f"none of the {len(skipped)} files of {source} can be read: {next(iter(skipped.values()))}"
    )


# --------------------------------------------------------------------------------------------- without files


def _tensor(pictures: Tensor) -> Images:
    if pictures.dim() != 4 or not pictures.numel():
        raise VesaliusError(
            f"pictures of shape {tuple(pictures.shape)} were given; expected [picture, channel, height, width]"
        )
    whole = pictures.detach().cpu()
    if whole.dtype != torch.uint8 and not (
        whole.is_floating_point() and whole.min() >= 0 and whole.max() <= 1
    ):
        raise VesaliusError(
            f"pictures of {whole.dtype} from {whole.min():g} to {whole.max():g} were given; "
            "expected uint8, or numbers from 0 to 1"
        )

    def read(number: int, pixels: int) -> Picture:
        return whole[number].float() / 255 if whole.dtype == torch.uint8 else whole[number].float()

    return Images(
        [f"picture {number}" for number in range(len(whole))],
        read,
        digest=lambda: hashlib.sha256(
            whole.contiguous().flatten().view(torch.uint8).numpy().data
        ).hexdigest(),
        source="a tensor",
    )


def _shapes(source: str) -> Images:
    _, colon, number = source.partition(":")
    count = SHAPES if not colon else int(number) if number.isdecimal() else 0
    if count < 1:
        raise VesaliusError(f"'{source}' names no number of shapes; expected as in 'shapes:500'")

    def digest() -> str:
        sample, _ = shapes(range(len(CLASSES)), size=32)
        return hashlib.sha256(sample.numpy().tobytes() + str(count).encode()).hexdigest()

    return Images(
        [f"shape {number}" for number in range(count)],
        lambda number, pixels: shapes([number], size=pixels or SHAPE_SIZE)[0][0].float() / 255,
        digest=digest,
        classes=[CLASSES[number % len(CLASSES)] for number in range(count)],
        source=source,
    )


def _skimage() -> Images:
    found = find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise VesaliusError(
            "the photographs of scikit-image were asked for; pip install scikit-image, or 'shapes'"
        )
    folder = Path(found.submodule_search_locations[0]) / "data"
    pictures = [
        one for one in sorted(folder.iterdir()) if one.suffix in (".png", ".jpg", ".jpeg", ".gif", ".tif")
    ]
    return _stored([PictureFile(one.name, one) for one in pictures], source="skimage")
