"""Probes: what can be read from activations with labels, for many targets and many layers in one solve."""

from vesalius.probes.labelled import Labelled
from vesalius.probes.linear import LinearProbes, lda, mass_mean, ridge
from vesalius.probes.logistic_regression import logistic, sparse
from vesalius.probes.perceptron import MLPProbes, mlp
from vesalius.probes.scores import Scores, scored
from vesalius.probes.split import Splits, splits

__all__ = [
    "Labelled",
    "LinearProbes",
    "MLPProbes",
    "Scores",
    "Splits",
    "lda",
    "logistic",
    "mass_mean",
    "mlp",
    "ridge",
    "scored",
    "sparse",
    "splits",
]
