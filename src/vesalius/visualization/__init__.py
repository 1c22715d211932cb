"""Feature visualisation in four choices: objective × parametrisation × transforms × optimiser."""

from vesalius.visualization.objectives import (
    Objective,
    centre,
    cosine,
    diversity,
    mean,
    spatial,
)
from vesalius.visualization.optimise import Visualisation, visualise
from vesalius.visualization.parametrisation import natural_spectrum
from vesalius.visualization.transforms import Transforms

__all__ = [
    "Objective",
    "Transforms",
    "Visualisation",
    "centre",
    "cosine",
    "diversity",
    "mean",
    "natural_spectrum",
    "spatial",
    "visualise",
]
