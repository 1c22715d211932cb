"""Copying heads: eigenvalues of small products are those of large; the handwritten copier; sums of heads."""

import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.methods.circuits.copying_heads import copying_heads
from vesalius.result import Result
from vesalius.testbed import handwritten_induction, random_attn


def test_eigenvalues_are_those_of_the_circuit_over_the_vocabulary():
    model = random_attn(d_vocab=60, d_model=32, n_heads=4, norm=True)
    found = copying_heads(model, heads=["1.2"], norm="ignore", draws=20)
    dense = (
        model.weight("W_E") @ model.weight("W_V", 1)[2] @ model.weight("W_O", 1)[2] @ model.weight("W_U")
    ).double()
    whole = torch.linalg.eigvals(dense)
    largest = whole[whole.abs().argsort(descending=True)][:8]
    torch.testing.assert_close(
        found.eigenvalues[0].abs().sort(descending=True).values, largest.abs(), rtol=1e-4, atol=1e-6
    )
    assert found.scores[0] == pytest.approx((largest.real.sum() / largest.abs().sum()).item(), abs=1e-4)


def test_finds_the_handwritten_copier_and_no_other():
    found = copying_heads(handwritten_induction())
    assert found.copying == ["1.0"]
    assert found.scores.tolist() == pytest.approx([0, 0, 1, 0], abs=1e-6)
    assert found.top_1.tolist() == pytest.approx([0, 0, 40 / 41, 0])  # token 0 is never written
    assert [h.evidence for h in found.headlines()] == [True, False, True]


def test_two_half_copiers_copy_together():
    model = handwritten_induction()
    attention = model.module.blocks[1].attn
    head, half = slice(0, model.d_head), slice(model.d_head, 2 * model.d_head)
    with torch.no_grad():  # the second head takes over every other token
        attention.v_proj.weight[half] = attention.v_proj.weight[head]
        attention.o_proj.weight[:, half] = attention.o_proj.weight[:, head]
        attention.v_proj.weight[head][::2] = 0
        attention.v_proj.weight[half][1::2] = 0
    found = copying_heads(model, heads=["1.0", "1.1"], sum_of=["1.0", "1.1"], draws=50)
    assert found.heads == ["1.0", "1.1", "1.0 + 1.1"]
    assert found.top_1.tolist() == pytest.approx([20 / 41, 20 / 41, 40 / 41])
    assert found.headlines()[-1].evidence


def test_chance_has_the_width_of_random_heads():
    heads = torch.cat([copying_heads(random_attn(n_layers=4, seed=seed)).z for seed in range(3)])
    assert abs(heads.mean()) < 0.4
    assert 0.75 < heads.std() < 1.25


def test_large_vocabularies_are_sampled_with_an_interval():
    found = copying_heads(random_attn(d_vocab=500), tokens=100, draws=50)
    assert (found.tokens, found.d_vocab) == (100, 500)
    assert found.headlines()[-1].interval is not None


def test_refuses_unknown_heads_and_keeps_itself(tmp_path):
    with pytest.raises(VesaliusError, match=r"up to 1\.3"):
        copying_heads(random_attn(), heads=["2.0"])
    found = copying_heads(random_attn(), draws=50)
    loaded = Result.load(found.save(tmp_path / "copying"))
    assert torch.equal(loaded.eigenvalues[3], found.eigenvalues[3])
    assert loaded.figure().title == "Copying heads"
