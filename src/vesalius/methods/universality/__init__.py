"""Universality: whether two networks hold the same features and circuits."""
