"""Our own dictionaries: one file of tensors, with what they are in its header."""

from dataclasses import replace
from pathlib import Path

from vesalius.dictionaries import SparseDictionary
from vesalius.formats.dictionaries.tensors import header

NAME = "dictionary.safetensors"
"""The file of a folder."""


def recognises(path: Path) -> bool:
    return "vesalius_dictionary" in header(_file(path))


def read(path: Path, *, site: str = "", source: str = "") -> SparseDictionary:
    """What `SparseDictionary.save` wrote."""
    found = SparseDictionary.load(_file(path))
    return replace(found, site=site or found.site, source=source or found.source)


def _file(path: Path) -> Path:
    return path / NAME if path.is_dir() else path
