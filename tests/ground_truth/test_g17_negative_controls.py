"""G17, negative controls: where there is nothing to find, the analyses find nothing.

Truth: networks with random weights. At level .01, twenty of them may give one false alarm an analysis, and
no more. MEASURED
"""

import pytest

import vesalius as vs
from vesalius.testbed import random_attn

NAMES = sorted(name for name, method in vs.methods().items() if not method.missing(random_attn()))


def false_alarms(name: str, seed: int) -> list[str]:
    """The claims that an analysis makes, with its defaults, of a random network."""
    model = random_attn(d_model=32, n_heads=4, d_vocab=40, n_ctx=48, seed=1000 + seed)
    result = vs.methods()[name].function(
        model, **({"seed": seed} if "seed" in vs.methods()[name].parameters else {})
    )
    return [headline.claim for headline in result.headlines() if headline.evidence]


@pytest.mark.parametrize("name", NAMES)
def test_random_networks_give_no_evidence(name):
    alarms = {seed: claims for seed in range(20) if (claims := false_alarms(name, seed))}
    assert len(alarms) <= 1, alarms
