"""Vesalius opens trained networks: from parameters to features, circuits and algorithms, with the evidence shown.

Every analysis is an attribute too, imported when it is first used:

>>> import vesalius as vs
>>> vs.copying_heads.__name__
'copying_heads'
"""

from importlib.util import find_spec
from typing import Any

import vesalius.methods  # noqa: F401 (before the function of that name, or the package would replace it)
from vesalius.access import Recording, intervene, record, sites_of
from vesalius.dictionaries import Dictionary, Feature, direction, neurons
from vesalius.edits import add, at, clamp, freeze, mean, patch, project_out, resample, set_to, zero
from vesalius.errors import VesaliusError, nearest
from vesalius.method import Method, method, methods
from vesalius.model import Model, load
from vesalius.preprocessing import Preprocessing
from vesalius.result import Headline, Result
from vesalius.site import Site
from vesalius.study import Study

__version__ = "0.1.0"

__all__ = [
    "Dictionary",
    "Feature",
    "Headline",
    "Method",
    "Model",
    "Preprocessing",
    "Recording",
    "Result",
    "Site",
    "Study",
    "VesaliusError",
    "add",
    "at",
    "clamp",
    "direction",
    "dissect",
    "dossier",
    "freeze",
    "intervene",
    "load",
    "mean",
    "method",
    "methods",
    "neurons",
    "patch",
    "project_out",
    "record",
    "resample",
    "set_to",
    "sites_of",
    "zero",
]


def __getattr__(name: str) -> Any:
    """`dissect`, `dossier` and the analyses, imported when they are first asked for."""
    if name.startswith("_") or find_spec(f"vesalius.{name}"):  # a module that has yet to be imported
        raise AttributeError(name)
    if name == "dissect":
        from vesalius.dissection import dissect as found
    elif name == "dossier":
        from vesalius.arguments import dossier as found
    elif name in methods():
        found = methods()[name].function
    else:
        raise AttributeError(f"vesalius has no '{name}'{nearest(name, __dir__())}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *methods()})
