"""Planted dictionaries are found again, and absorption where it was planted (G10)."""

from dataclasses import replace

import pytest
import torch

from vesalius.dictionaries.matching import matching
from vesalius.dictionaries.sparse import SparseDictionary
from vesalius.dictionaries.train import fit_many
from vesalius.dictionaries.training import Plan
from vesalius.testbed.planted_dictionary import absorption, planted_dictionary

TOWARDS = "relu_l1({}, resample_at=(400, 800, 1200, 1600), dead_after=200, scored=8192)"


@pytest.mark.parametrize(
    ("width", "features", "density", "plans", "least"),
    [
        (64, 128, 0.02, {TOWARDS.format(0.1 / 64): 0.95, "topk(3)": 0.85}, 0.4),
        (32, 64, 0.03, {TOWARDS.format(0.1 / 32): 0.90, "topk(2)": 0.85}, 0.4),
    ],
)
def test_planted_directions_are_found(width, features, density, plans, least):
    planted = planted_dictionary(width=width, features=features, density=density)
    rows = planted.rows(2**17, seed=1)
    made = fit_many(
        rows,
        {text: Plan(features, text, lr=2e-3) for text in plans},
        steps=2000,
        batch=1024,
    )
    for text, wanted in plans.items():
        found = matching(made[text].W_dec, planted.directions)
        assert found.mcc >= wanted
        assert found.mcc >= found.random + least, "no better than a random dictionary"
        assert 0.2 < found.random < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_kind_finds_them(seed):
    planted = planted_dictionary(width=64, features=128, density=0.02, seed=seed)
    kinds = [
        "april(1.0)",
        "gated(1.0)",
        "batch_topk(3)",
        "matryoshka(3)",
        "jump_relu(0.01, threshold=0.05, bandwidth=0.1)",
    ]
    made = fit_many(
        planted.rows(2**18, seed=seed + 10),
        {text: Plan(128, text, lr=2e-3, seed=seed) for text in kinds},
        steps=3000,
        batch=1024,
    )
    for text, dictionary in made.items():
        assert matching(dictionary.W_dec, planted.directions).mcc > 0.85, text


def test_planted_absorption_is_detected_and_none_where_none_is():
    """A child's latent that writes the parent too, while the parent's own is silent; against the true directions."""
    features, children = 20, 6
    planted = replace(
        planted_dictionary(
            width=features, features=features, density=0.1, children=children, child_density=0.4
        ),
        directions=torch.eye(features),
    )
    true = SparseDictionary.of_directions("planted", planted.directions)
    read, written = torch.eye(features), torch.eye(features)
    for child, parent in planted.parents.items():
        read[child, parent] = -3.0
        written[child] = (written[child] + written[parent]) / 2**0.5
    absorbing = replace(true, W_enc=read, W_dec=written)
    assert all(
        one.absorbed and (one.alone, one.within) == (1.0, 0.0) and abs(one.written - 0.5**0.5) < 1e-6
        for one in absorption(planted, absorbing)
    )
    assert not any(one.absorbed or one.written or one.within < 1 for one in absorption(planted, true))
