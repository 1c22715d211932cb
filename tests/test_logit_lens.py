import pytest
import torch

from vesalius.methods.circuits.logit_lens import logit_lens
from vesalius.testbed import handwritten_induction, random_attn


def test_the_answer_appears_in_the_layer_that_writes_it():
    result = logit_lens(handwritten_induction(), length=41)
    repeated = slice(21, 40)
    assert (result.rank[2, repeated] == 0).all() and (result.probability[2, repeated] > 0.99).all()
    assert result.agreement[1] < 0.2 and result.agreement[2] == 1 and result.divergence[2].abs() < 1e-6


@pytest.mark.parametrize("positions", ["shortformer", "residual", "rotary"])
def test_random_networks_show_no_early_decision(positions):
    evidence = 0
    for seed in range(7):
        model = random_attn(n_layers=3, d_mlp=64, norm=True, positions=positions, seed=seed)
        result = logit_lens(model, length=20, seed=seed)
        assert torch.isclose(result.agreement[-1], torch.tensor(1.0))
        evidence += any(headline.evidence for headline in result.headlines())
    assert evidence <= 1
