"""Activations at scale: what is kept of a stream of them."""
