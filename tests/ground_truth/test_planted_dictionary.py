"""Planted dictionaries are found again, and absorption where it was planted (G10)."""

from dataclasses import replace

import pytest
import torch

from vesalius.dictionaries.matching import matching
from vesalius.dictionaries.train import fit_many, fit_sae
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
        "gated(0.1)",
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
    planted = planted_dictionary(width=32, features=40, density=0.05, children=6, child_density=0.4)
    learn = dict(latents=40, activation="topk(2)", steps=1500, batch=512, lr=2e-3)
    found = absorption(planted, fit_sae(planted.rows(2**17, seed=1), **learn))
    assert all(one.absorbed and one.similarity > 0.9 for one in found)

    apart = replace(planted, parents={}, density=torch.full((40,), 0.05))
    control = absorption(apart, fit_sae(apart.rows(2**17, seed=1), **learn), pairs=planted.parents)
    assert not any(one.absorbed for one in control)
