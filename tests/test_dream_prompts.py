"""Prompts made to raise a feature find what it is known to fire for, and say nothing of networks without training."""

from dataclasses import replace

import torch

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.testbed import handwritten_induction

FEW = {"length": 6, "steps": 24, "restarts": 2, "prices": 3, "children": 8, "untrained": 3}


def bigram(first: int = 9, second: int = 5) -> torch.Tensor:
    """In the residual stream after the layer that looks one place back: the token here, and the one before it."""
    vector = torch.zeros(handwritten_induction().d_model)
    vector[[second, 41 + first]] = 1.0
    return vector


def test_a_bigram_is_found():
    result = vs.dream_prompts(handwritten_induction(), vs.direction("resid_post@0", bigram()), **FEW)
    assert all(row[-2:] == [9, 5] for row in result.prompts[:, 0].tolist())


def test_a_latent_that_nothing_but_the_bigram_passes_is_climbed_below_its_threshold():
    linear = SparseDictionary.of_directions("resid_post@0", bigram()[None])
    latent = replace(linear, threshold=torch.tensor([1.5]))[0]
    result = vs.dream_prompts(handwritten_induction(), latent, **FEW)
    assert all(row[-2:] == [9, 5] for row in result.prompts[:, 0].tolist())
