"""G12, term importance: passes with frozen patterns lose what the sum over all paths, written out, loses.

Truth: logits of order n = Σ over paths of at most n heads, (A … A) W_E W_OV … W_OV W_U, with the patterns of
the whole model. Measured on random networks of two and three layers: within 1e-6 at every order; order n of
n layers is the whole model.
"""

from itertools import combinations, product

import pytest
import torch

import vesalius as vs
from vesalius.data.text import sample_rows
from vesalius.methods.circuits.term_importance import term_importance
from vesalius.metrics import token_losses
from vesalius.testbed import random_attn


def brute_force(model: vs.Model, ids: torch.Tensor, order: int) -> torch.Tensor:
    """Logits by every path of at most `order` heads, each head in a higher layer than the one before it."""
    with vs.record(model, "pattern@*") as acts:
        model(ids)
    x = model.weight("W_E")[ids]
    total = x.clone()
    for heads in range(1, order + 1):
        for layers in combinations(range(model.n_layers), heads):
            for path in product(range(model.n_heads), repeat=heads):
                term = x
                for layer, head in zip(layers, path, strict=True):
                    term = acts[f"pattern@{layer}"][:, head] @ term
                    term = term @ model.weight("W_V", layer)[head] @ model.weight("W_O", layer)[head]
                total = total + term
    return total @ model.weight("W_U")


@pytest.mark.parametrize("positions", ["shortformer", "rotary"])
@pytest.mark.parametrize(("n_layers", "seed"), [(2, 0), (2, 1), (2, 2), (3, 0)])
def test_losses_are_those_of_the_sum_over_all_paths(n_layers, seed, positions):
    model = random_attn(n_layers=n_layers, positions=positions, seed=seed)
    result = term_importance(model, order=n_layers, length=24, batch=4, seed=seed)
    ids, _ = sample_rows(model, None, length=24, limit=4, seed=seed)
    for order in range(n_layers + 1):
        expected = token_losses(brute_force(model, ids, order), ids).mean().item()
        assert result.losses[order].item() == pytest.approx(expected, abs=1e-5)
    assert result.losses[-1].item() == pytest.approx(result.full_loss, abs=1e-5)
    assert result.full_loss == pytest.approx(token_losses(model.logits(ids), ids).mean().item(), abs=1e-5)
