"""Dictionaries of features: sets of directions at one site, of which the neurons are the first."""

from vesalius.dictionaries.codes import Codes
from vesalius.dictionaries.feature import Dictionary, Feature, direction
from vesalius.dictionaries.neurons import Neurons, neurons
from vesalius.dictionaries.rows import Rows, TensorRows
from vesalius.dictionaries.sparse import SparseDictionary, rows_of, shaped_like

__all__ = [
    "Codes",
    "Dictionary",
    "Feature",
    "Neurons",
    "Rows",
    "SparseDictionary",
    "TensorRows",
    "direction",
    "neurons",
    "rows_of",
    "shaped_like",
]
