import torch

from vesalius.methods.circuits.induction_heads import induction_heads
from vesalius.testbed import handwritten_induction, random_attn


def test_the_handwritten_circuit_is_found_and_its_scores_are_exact():
    model = handwritten_induction()
    result = induction_heads(model, length=24, batch=4)
    assert result.found == [[1, 0]]
    assert result.scores["prefix"][1, 0] > 0.999
    assert result.scores["previous"][0, 0] > 0.99
    assert result.copying[1, 0] > 0.99 and result.matching[1, 0] > 0.99
    assert result.losses["second"][0] < 0.2 and result.unrepeated[1, 0] < 0.2
    assert [h.evidence for h in result.headlines()[:2]] == [True, True]


def test_random_networks_have_none():
    alarms = 0
    for seed in range(20):
        model = random_attn(n_layers=2, d_model=32, n_heads=4, seed=seed)
        result = induction_heads(model, length=20, batch=8, seed=seed)
        alarms += any(h.evidence for h in result.headlines()[:1])
    assert alarms <= 1


def test_reading_patterns_leaves_them_as_they_are():
    model, ids = handwritten_induction(), torch.arange(1, 13).repeat(1, 2)
    before = model.logits(ids)
    first = induction_heads(model, length=12, batch=2, seed=3)
    second = induction_heads(model, length=12, batch=2, seed=3)
    assert torch.equal(model.logits(ids), before)
    assert all(torch.equal(first.scores[name], second.scores[name]) for name in first.scores)
