"""Where a store lies: a folder on this machine, or anywhere that fsspec reaches (`s3://…`, `memory://…`, `https://…`).

A file is whole or not there. On a disk it is written under another name, forced out and renamed; object stores take
a file as a whole by themselves.
"""

import errno
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vesalius.errors import VesaliusError

READERS = 16
"""Threads that read ranges from a disk at once."""
FULL = (errno.ENOSPC, errno.EDQUOT)
PARTIAL = ".partial"

Range = tuple[str, int, int]
"""Which file, from which byte, to which."""


@runtime_checkable
class Folder(Protocol):
    """Files by name, written whole and read in ranges."""

    @property
    def place(self) -> str: ...
    def names(self) -> set[str]: ...
    def size(self, name: str) -> int: ...
    def ranges(self, wanted: Sequence[Range]) -> list[bytes]: ...
    def write(self, name: str, parts: Iterable[Any]) -> None:
        """Write a file out of buffers; raises VesaliusError where there is no space left for it."""
        ...

    def remove(self, name: str) -> None: ...


def open_folder(place: str | Path) -> Folder:
    """A folder by its path or URL."""
    if "://" in str(place) and not str(place).startswith("file://"):
        return RemoteFolder(str(place).rstrip("/"))
    return LocalFolder(Path(str(place).removeprefix("file://")).expanduser())


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk of this machine, or one that all machines mount."""

    path: Path

    @property
    def place(self) -> str:
        return str(self.path)

    def names(self) -> set[str]:
        return {file.name for file in self.path.iterdir()} if self.path.is_dir() else set()

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        files = {name: os.open(self.path / name, os.O_RDONLY) for name, _, _ in wanted}
        try:
            if len(wanted) == 1:
                return [_read(files[name], first, last) for name, first, last in wanted]
            with ThreadPoolExecutor(READERS) as threads:
                return list(threads.map(lambda one: _read(files[one[0]], one[1], one[2]), wanted))
        finally:
            for descriptor in files.values():
                os.close(descriptor)

    def write(self, name: str, parts: Iterable[Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=f".{name}-", suffix=PARTIAL, dir=self.path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, self.path / name)
        except BaseException as error:
            Path(partial).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in FULL:
                raise _full(self.place) from None
            raise
        _sync_folder(self.path)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def clear(self) -> None:
        """Take away what a killed writer left half done."""
        for file in self.path.glob(f".*{PARTIAL}"):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL; needs `fsspec` and, of it, the driver for that kind of place."""

    place: str

    @cached_property
    def _system(self) -> Any:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise VesaliusError(
                f"'{self.place}' is not on this machine; pip install 'vesalius[store]'"
            ) from None
        try:
            return url_to_fs(self.place)[0]
        except (ValueError, ImportError) as error:
            raise VesaliusError(f"'{self.place}' cannot be opened: {error}") from None

    def names(self) -> set[str]:
        if not self._system.exists(self.place):
            return set()
        return {Path(name.rstrip("/")).name for name in self._system.ls(self.place, detail=False)}

    def size(self, name: str) -> int:
        return int(self._system.size(f"{self.place}/{name}"))

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        names, firsts, lasts = zip(*wanted)
        paths = [self._system._strip_protocol(f"{self.place}/{name}") for name in names]
        return self._system.cat_ranges(paths, list(firsts), list(lasts), on_error="raise")

    def write(self, name: str, parts: Iterable[Any]) -> None:
        if self.place.startswith(("http://", "https://")):
            raise VesaliusError(
                f"'{self.place}' can only be read; expected a folder, or a URL that can be written to"
            )
        with tempfile.NamedTemporaryFile(suffix=PARTIAL) as file:
            for part in parts:
                file.write(part)
            file.flush()
            self._system.makedirs(self.place, exist_ok=True)
            self._system.put_file(file.name, f"{self.place}/{name}")

    def remove(self, name: str) -> None:
        self._system.rm_file(f"{self.place}/{name}")

    def clear(self) -> None:
        """Nothing is ever half done here."""


def _read(descriptor: int, first: int, last: int) -> bytes:
    parts = []
    while first < last and (part := os.pread(descriptor, last - first, first)):
        parts.append(part)
        first += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _full(place: str) -> VesaliusError:
    return VesaliusError(
        f"there is no space left for '{place}'; what is written there is whole, so free some "
        "and run the same again, which goes on from there"
    )


def _sync_folder(path: Path) -> None:
    """A renamed file is there after a power cut only when the folder is written too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
