"""Concepts as directions: pairs that differ in one, readers that find it, pushes along it and what follows."""
