"""Prompts made to raise a feature find what it is known to fire for, alone or cut off at a threshold."""

from dataclasses import replace

import pytest
import torch

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.testbed import handwritten_induction, random_attn

FEW = {"length": 6, "steps": 16, "restarts": 2, "prices": 2, "children": 8, "untrained": 2}


def bigram(first: int = 9, second: int = 5) -> torch.Tensor:
    """In the residual stream after the layer that looks one place back: the token here, and the one before it."""
    vector = torch.zeros(handwritten_induction().d_model)
    vector[[second, 41 + first]] = 1.0
    return vector


def test_the_bigram_that_a_latent_waits_for_is_found_from_below_its_threshold():
    linear = SparseDictionary.of_directions("resid_post@0", bigram()[None])
    latent = replace(linear, threshold=torch.tensor([1.5]))[0]
    result = vs.dream_prompts(handwritten_induction(), latent, **FEW)
    assert all(row[-2:] == [9, 5] for row in result.prompts[:, 0].tolist())
    assert result.activations[:, 0].tolist() == [2.0, 2.0]
    last = result.shown[0]["drops"]
    assert (last[-2:] > 1).all() and (last[:-2].abs() < 1e-3).all(), "of all tokens the bigram alone matters"


def test_a_neuron_is_read_before_its_nonlinearity_and_a_prompt_has_to_fit():
    model = random_attn(n_layers=1, d_mlp=8, d_vocab=20, n_ctx=12)
    result = vs.dream_prompts(model, "neurons@0[3]", **FEW)
    assert result.site == "blocks.0.mlp.act:in" and result.front.any()
    with pytest.raises(vs.VesaliusError, match="reads 2 to 11"):
        vs.dream_prompts(model, "neurons@0[3]", length=12)
    with pytest.raises(vs.VesaliusError, match="a row for each token"):
        vs.dream_prompts(model, "z@0[3]", **FEW)
