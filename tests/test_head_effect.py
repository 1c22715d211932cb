import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.methods.circuits.head_effect import head_effect
from vesalius.testbed import handwritten_induction, random_attn


def test_the_induction_head_looks_at_what_comes_next_and_writes_it():
    result = head_effect(handwritten_induction(), length=41, batch=4, attention="plain")
    assert result.head == [1, 0] and result.headlines()[0].evidence
    second = torch.arange(21, 40)
    assert (result.attention[second, second - 19] > 0.99).all()
    torch.testing.assert_close(result.effect[second], torch.full((19,), 20 * 40 / 41), atol=0.1, rtol=0)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(VesaliusError, match=r"head '2\.0' is not LAYER\.HEAD"):
        head_effect(random_attn(), head="2.0")


def test_random_networks_write_nothing_of_use():
    results = [head_effect(random_attn(seed=seed), length=20, seed=seed) for seed in range(20)]
    assert sum(result.headlines()[0].evidence for result in results) <= 1
