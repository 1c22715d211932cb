from itertools import combinations

import torch

from vesalius import record
from vesalius.data.repeated import repeated_random_tokens
from vesalius.methods.circuits.term_importance import term_importance
from vesalius.metrics import token_losses
from vesalius.testbed import handwritten_induction, random_attn
from vesalius.weights.circuits import ov


def every_path(model, ids, order):
    """Logits by brute force: for every chain of at most `order` heads in rising layers, its frozen patterns
    and OVs."""
    with record(model, "pattern@*") as acts:
        model(ids)
    W_E, W_U = model.weight("W_E"), model.weight("W_U")
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    chains = [
        c for n in range(order + 1) for c in combinations(heads, n) if len({layer for layer, _ in c}) == n
    ]
    total = torch.zeros(*ids.shape, model.d_model)
    for chain in chains:
        x = W_E[ids]
        for layer, head in chain:
            x = acts[f"pattern@{layer}"][:, head] @ x @ ov(model, layer, head).dense()
        total += x
    return total @ W_U


def test_every_order_is_the_sum_over_its_paths_and_the_last_is_the_model():
    for seed in range(3):
        model = random_attn(n_layers=3, n_heads=2, d_model=32, seed=seed)
        result = term_importance(model, order=3, length=17, batch=3, seed=seed)
        body = (17 - (model.bos is not None)) // 2
        ids = repeated_random_tokens(model, length=body, batch=3, seed=seed)
        for order in range(4):
            truth = token_losses(every_path(model, ids, order), ids).mean().item()
            assert abs(result.losses[order].item() - truth) < 1e-5
        assert abs(result.losses[-1].item() - result.full_loss) < 1e-5


def test_handwritten_induction_is_made_of_single_heads():
    result = term_importance(handwritten_induction(), length=48, batch=4)
    assert abs(result.losses[0] - torch.tensor(41.0).log()) < 1e-3
    assert result.reductions[1] > 1.0 and result.reductions[2].abs() < 1e-5
    assert [h.evidence for h in result.headlines()[:3]] == [False, True, False]
