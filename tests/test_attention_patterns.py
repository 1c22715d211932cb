import torch

from vesalius.methods.circuits.attention_patterns import attention_patterns
from vesalius.testbed import handwritten_induction, random_attn


def test_a_head_that_looks_one_back_is_sharp_and_near():
    result = attention_patterns(handwritten_induction(), batch=4, length=41)
    assert result.spread[0, 0] < 0.01 and abs(result.distance[0, 0] - 40 / 41) < 0.01
    assert result.headlines()[0].evidence
    torch.testing.assert_close(result.patterns.sum(-1), torch.ones(2, 2, 41))


def test_heads_with_nothing_to_say_attend_to_all_alike():
    result = attention_patterns(handwritten_induction(), batch=4, length=41, layer=1)
    assert result.layers == [1]
    assert abs(result.spread[0, 1] - 1) < 1e-5 and abs(result.distance[0, 1] - result.uniform_distance) < 1e-4


def test_random_networks_are_no_sharper_than_their_twins():
    results = [attention_patterns(random_attn(seed=seed), length=20, seed=seed) for seed in range(20)]
    assert sum(result.headlines()[0].evidence for result in results) <= 1
