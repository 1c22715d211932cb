import pytest
import torch

from vesalius.methods.circuits.direct_logit_attribution import direct_logit_attribution
from vesalius.testbed import handwritten_induction, random_attn


@pytest.mark.parametrize("positions", ["shortformer", "residual", "rotary"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_effects_add_up_to_the_logit_difference(positions, norm):
    model = random_attn(n_layers=2, d_mlp=96 * norm, norm=norm, positions=positions)
    result = direct_logit_attribution(model, length=33, batch=5)
    assert result.remainder < 1e-4
    assert abs(result.effects.sum() - result.total) < 1e-4


def test_the_induction_head_writes_the_answer():
    result = direct_logit_attribution(handwritten_induction(), length=41, batch=8)
    best = result.effects.argmax()
    assert result.components[best] == "1.0" and abs(result.effects[best] - result.total) < 1e-4
    assert [h.evidence for h in result.headlines()[1:2]] == [True]
    assert result.effects[torch.arange(len(result.effects)) != best].abs().max() < 1e-4
