"""Our own dictionaries: one file of tensors, with what they are in its header."""

from dataclasses import replace
from pathlib import Path

from vesalius.dictionaries import Dictionary, SparseDictionary
from vesalius.dictionaries.components import Components, Parts
from vesalius.dictionaries.probe import ProbeDictionary
from vesalius.formats.dictionaries.tensors import header

NAME = "dictionary.safetensors"
"""The file of a folder."""
KINDS = {
    "vesalius_dictionary": SparseDictionary,
    "vesalius_components": Components,
    "vesalius_parts": Parts,
    "vesalius_probe": ProbeDictionary,
}
"""What the header says."""


def recognises(path: Path) -> bool:
    return not KINDS.keys().isdisjoint(header(_file(path)))


def read(path: Path, *, site: str = "", source: str = "") -> Dictionary:
    """What its `save` wrote."""
    file = _file(path)
    found = next(kind for key, kind in KINDS.items() if key in header(file)).load(file)
    if isinstance(found, SparseDictionary) and source:
        found = replace(found, source=source)
    return replace(found, site=site) if site else found


def _file(path: Path) -> Path:
    return path / NAME if path.is_dir() else path
