"""Directions: what labels find in the activations, and what the network does when they are pushed, taken out or written anew."""
