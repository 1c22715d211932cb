"""Circuits: what attention heads and paths compute, from weights and from behaviour."""
