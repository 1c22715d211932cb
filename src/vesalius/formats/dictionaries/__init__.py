"""Dictionaries on disk: our own, and those that other libraries publish."""

from pathlib import Path

from vesalius.dictionaries import SparseDictionary


def read_dictionary(path: str | Path) -> SparseDictionary:
    """Open a dictionary by the file or the folder that it is in."""
    return SparseDictionary.load(path)
