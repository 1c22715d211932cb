"""Vesalius opens trained networks: from parameters to features, circuits and algorithms, with the evidence shown.

>>> import vesalius as vs
>>> sorted(name for name in vs.__all__ if name.islower())[:3]
['Model', 'add', 'at']
"""

from vesalius.access import Recording, intervene, record, sites_of
from vesalius.edits import add, at, clamp, freeze, mean, patch, project_out, resample, set_to, zero
from vesalius.errors import VesaliusError
from vesalius.method import Method, method, methods
from vesalius.model import Model, load
from vesalius.result import Headline, Result
from vesalius.site import Site

__version__ = "0.1.0"
