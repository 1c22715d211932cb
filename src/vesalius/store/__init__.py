"""Activations at scale: harvested to disk, read back shuffled, and what is kept of a stream of them."""

from vesalius.store.activation_store import ActivationStore, StoredRows, open_store
from vesalius.store.harvest import harvest
from vesalius.store.index import FeatureIndex, feature_index, open_index

__all__ = [
    "ActivationStore",
    "FeatureIndex",
    "StoredRows",
    "feature_index",
    "harvest",
    "open_index",
    "open_store",
]
