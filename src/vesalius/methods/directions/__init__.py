"""Directions: what labels find in the activations, and what the network does when they are pushed or taken out."""
