import torch

from vesalius.methods.circuits.in_context_learning import in_context_learning
from vesalius.testbed import handwritten_induction, random_attn


def test_what_can_only_come_from_the_far_context_is_seen():
    result = in_context_learning(handwritten_induction(), batch=8)
    first, second = result.curve[:24], result.curve[25:]
    assert first.mean() > torch.tensor(41.0).log() - 1e-3 and (second < 0.01).all()
    assert all(h.evidence for h in result.headlines())


def test_random_networks_learn_nothing_in_context():
    results = [in_context_learning(random_attn(seed=seed), batch=8, seed=seed) for seed in range(20)]
    assert sum(result.headlines()[0].evidence for result in results) <= 1
