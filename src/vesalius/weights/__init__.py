"""Circuits read from parameters alone: QK, OV and what they compose to, as factors never multiplied out."""
