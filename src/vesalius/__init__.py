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
    "ActivationStore",
    "ControlVector",
    "Dictionary",
    "Feature",
    "Headline",
    "Method",
    "Model",
    "Plan",
    "Preprocessing",
    "ProbeDictionary",
    "Recording",
    "Result",
    "Site",
    "SparseDictionary",
    "Study",
    "TensorRows",
    "VesaliusError",
    "WeightDiff",
    "add",
    "april",
    "at",
    "batch_topk",
    "clamp",
    "control_vector",
    "decompose",
    "direction",
    "dissect",
    "dossier",
    "feature_index",
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
    "generate",
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
    "open_index",
    "open_pairs",
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
    "with_association",
    "without_direction",
    "write_control_vector",
    "zero",
]


LATER = {
    "ActivationStore": "vesalius.store",
    "ControlVector": "vesalius.dictionaries.control_vector",
    "Plan": "vesalius.dictionaries.training",
    "ProbeDictionary": "vesalius.dictionaries.probe",
    "WeightDiff": "vesalius.weights.weight_diff",
    "april": "vesalius.dictionaries.variants",
    "batch_topk": "vesalius.dictionaries.variants",
    "control_vector": "vesalius.concepts.concept_vectors",
    "decompose": "vesalius.monosemanticity",
    "dissect": "vesalius.dissection",
    "dossier": "vesalius.arguments",
    "feature_index": "vesalius.store",
    "fit_cross_layer_transcoder": "vesalius.dictionaries.transcoders",
    "fit_crosscoder": "vesalius.dictionaries.transcoders",
    "fit_ica": "vesalius.dictionaries.ica",
    "fit_many": "vesalius.dictionaries.train",
    "fit_nmf": "vesalius.dictionaries.nmf",
    "fit_pca": "vesalius.dictionaries.pca",
    "fit_sae": "vesalius.dictionaries.train",
    "fit_transcoder": "vesalius.dictionaries.transcoders",
    "gated": "vesalius.dictionaries.variants",
    "generate": "vesalius.generation",
    "harvest": "vesalius.store",
    "jump_relu": "vesalius.dictionaries.variants",
    "matryoshka": "vesalius.dictionaries.variants",
    "open_corpus": "vesalius.data.corpora",
    "open_index": "vesalius.store",
    "open_pairs": "vesalius.data.pairs",
    "open_store": "vesalius.store",
    "read_control_vector": "vesalius.formats.control_vectors",
    "read_dictionary": "vesalius.formats.dictionaries",
    "relu_l1": "vesalius.dictionaries.variants",
    "topk": "vesalius.dictionaries.variants",
    "with_association": "vesalius.weights.weight_edits",
    "without_direction": "vesalius.weights.weight_edits",
    "write_control_vector": "vesalius.formats.control_vectors",
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
