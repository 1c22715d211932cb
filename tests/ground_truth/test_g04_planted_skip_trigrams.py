"""G4, planted skip-trigrams: the table read off the weights gives the four rules the text was written by.

Truth: [30] … [34 or 35] → [30], 31 → 31, 32 → 36, 33 → 37; in the control text the same tokens stand in the
same places and no rule holds. Measured: after 600 and after 1,200 steps, seeds 0 and 1, all four outs come
first, by 1.1 to 6.1 logits; by the method after 600 steps of seed 0, both destinations lead the rows of at
least three sources, and no rule is read off the control.
"""

import pytest

from vesalius.methods.circuits.skip_trigrams import skip_trigrams
from vesalius.testbed.planted_skip_trigrams import DESTINATIONS, RULES, planted_skip_trigrams


def read(model, source: int) -> tuple[bool, bool]:
    """Whether the first out of all heads is the planted one, and both destinations lead their row."""
    result = skip_trigrams(model, source=f"#{source}", top=2)
    together, row = result.together[0], result.rows[0]
    at_planted = together["destination"] in {f"#{token}" for token in DESTINATIONS}
    out = at_planted and together["outs"][0] == f"#{RULES[source]}"
    return out, set(row["destinations"]) == {f"#{token}" for token in DESTINATIONS}


def assert_recovered(steps: int, seed: int) -> None:
    model = planted_skip_trigrams(steps=steps, seed=seed)
    outs, destinations = zip(*(read(model, source) for source in RULES))
    assert all(outs) and sum(destinations) >= 3
    control = planted_skip_trigrams(rule=False, steps=steps, seed=seed)
    assert not any(read(control, source)[0] for source in RULES)


def test_the_rules_are_read_off_the_weights():
    assert_recovered(steps=600, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rules_are_read_off_the_weights_of_every_seed(seed):
    assert_recovered(steps=1200, seed=seed)
