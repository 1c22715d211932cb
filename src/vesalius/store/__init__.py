"""Activations at scale: harvested to disk, read back shuffled, and what is kept of a stream of them."""

from vesalius.store.activation_store import ActivationStore, StoredRows, open_store
from vesalius.store.harvest import harvest

__all__ = ["ActivationStore", "StoredRows", "harvest", "open_store"]
