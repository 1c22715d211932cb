"""Vesalius opens trained networks: from parameters to features, circuits and algorithms, with the evidence shown.

Every analysis is an attribute too, imported when it is first used:

>>> import vesalius as vs
>>> vs.copying_heads.__name__
'copying_heads'
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import vesalius.methods  # noqa: F401 (before the function of that name, or the package would replace it)
from vesalius.access import Recording, intervene, record, sites_of
from vesalius.dictionaries import Dictionary, Feature, SparseDictionary, TensorRows, direction, neurons
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
    "SparseDictionary",
    "Study",
    "TensorRows",
    "VesaliusError",
    "add",
    "april",
    "at",
    "batch_topk",
    "clamp",
    "decompose",
    "direction",
    "dissect",
    "dossier",
    "fit_cross_layer_transcoder",
    "fit_crosscoder",
    "fit_ica",
    "fit_many",
    "fit_nmf",
    "fit_pca",
    "fit_sae",
    "fit_transcoder",
    "freeze",
    "gated",
    "harvest",
    "intervene",
    "jump_relu",
    "load",
    "matryoshka",
    "mean",
    "method",
    "methods",
    "neurons",
    "open_corpus",
    "open_store",
    "patch",
    "project_out",
    "read_control_vector",
    "read_dictionary",
    "record",
    "relu_l1",
    "resample",
    "set_to",
    "sites_of",
    "topk",
    "zero",
]


LATER = {
    "april": "vesalius.dictionaries.variants",
    "batch_topk": "vesalius.dictionaries.variants",
    "decompose": "vesalius.monosemanticity",
    "dissect": "vesalius.dissection",
    "dossier": "vesalius.arguments",
    "fit_cross_layer_transcoder": "vesalius.dictionaries.transcoders",
    "fit_crosscoder": "vesalius.dictionaries.transcoders",
    "fit_ica": "vesalius.dictionaries.ica",
    "fit_many": "vesalius.dictionaries.train",
    "fit_nmf": "vesalius.dictionaries.nmf",
    "fit_pca": "vesalius.dictionaries.pca",
    "fit_sae": "vesalius.dictionaries.train",
    "fit_transcoder": "vesalius.dictionaries.transcoders",
    "gated": "vesalius.dictionaries.variants",
    "harvest": "vesalius.store.harvest",
    "jump_relu": "vesalius.dictionaries.variants",
    "matryoshka": "vesalius.dictionaries.variants",
    "open_corpus": "vesalius.data.corpora",
    "open_store": "vesalius.store.activation_store",
    "read_control_vector": "vesalius.formats.control_vectors",
    "read_dictionary": "vesalius.formats.dictionaries",
    "relu_l1": "vesalius.dictionaries.variants",
    "topk": "vesalius.dictionaries.variants",
}
"""Functions that are imported when they are first asked for, and where they are."""


def __getattr__(name: str) -> Any:
    """What is in `LATER`, and the analyses, imported when they are first asked for."""
    if name.startswith("_") or find_spec(f"vesalius.{name}"):  # a module that has yet to be imported
        raise AttributeError(name)
    if name in LATER:
        found = getattr(import_module(LATER[name]), name)
    elif name in methods():
        found = methods()[name].function
    else:
        raise AttributeError(f"vesalius has no '{name}'{nearest(name, __dir__())}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *methods()})
