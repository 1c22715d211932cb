"""Twenty networks that nobody trained: analyses of weights may raise one false alarm at most."""

import pytest

from vesalius.methods.circuits.composition import composition
from vesalius.methods.circuits.copying_heads import copying_heads
from vesalius.methods.circuits.skip_trigrams import skip_trigrams
from vesalius.testbed import random_attn

SHAPES = [
    {"d_model": 64, "n_heads": 4},
    {"d_model": 32, "n_heads": 8},
    {"d_model": 32, "n_heads": 2, "norm": True},
]


@pytest.mark.parametrize(
    "method", [copying_heads, composition, skip_trigrams], ids=lambda method: method.__name__
)
def test_nothing_is_found_in_random_networks(method):
    alarms = 0
    for seed in range(20):
        model = random_attn(n_layers=2, d_vocab=50, seed=seed, **SHAPES[seed % len(SHAPES)])
        alarms += any(headline.evidence for headline in method(model).headlines())
    assert alarms <= 1
