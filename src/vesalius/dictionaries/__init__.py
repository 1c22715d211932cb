"""Dictionaries of features: sets of directions at one site, of which the neurons are the first."""

from vesalius.dictionaries.feature import Dictionary, Feature, direction
from vesalius.dictionaries.neurons import Neurons, neurons

__all__ = ["Dictionary", "Feature", "Neurons", "direction", "neurons"]
