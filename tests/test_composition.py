"""Composition: what random placement gives, in closed form; the handwritten edge, found and alone."""

import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.methods.circuits.composition import composition
from vesalius.result import Result
from vesalius.testbed import handwritten_induction, random_attn


@pytest.mark.parametrize("measure", ["frobenius", "projection_kernel"])
@pytest.mark.parametrize("norm", [False, True])
def test_heads_placed_at_random_score_zero_with_standard_deviation_one(measure, norm):
    z = torch.cat(
        [composition(random_attn(norm=norm, seed=s), measure=measure).z.flatten() for s in range(4)]
    )
    z = z[z.isfinite()]
    assert len(z) == 4 * 3 * 16
    assert abs(z.mean()) < 0.25
    assert 0.8 < z.std() < 1.2


def test_baseline_is_one_over_the_root_of_d_model():
    found = composition(random_attn(d_model=128, n_heads=4))
    assert found.baseline == pytest.approx(128**-0.5)
    assert found.scores.nanmean() == pytest.approx(128**-0.5, rel=0.03)


def test_finds_the_handwritten_edge_alone():
    found = composition(handwritten_induction())
    (edge,) = found.edges()
    assert (edge["mode"], edge["early"], edge["late"]) == ("K", "0.0", "1.0")
    assert edge["score"] == pytest.approx(40**-0.5, rel=0.02)  # centring aside, 1/√(tokens written)
    assert found.scores[0, 0, 2] == pytest.approx(0, abs=1e-3)
    assert found.scores[2, 0, 2] == pytest.approx(0, abs=1e-3)
    assert [h.evidence for h in found.headlines()[:3]] == [False, True, False]


def test_virtual_head_equals_the_dense_product():
    model = random_attn(d_vocab=20, d_model=16, n_heads=2)
    found = composition(model, norm="ignore")
    W_V, W_O = ([model.weight(role, layer).double() for layer in (0, 1)] for role in ("W_V", "W_O"))
    dense = (
        model.weight("W_E").double()
        @ W_V[0][1]
        @ W_O[0][1]
        @ W_V[1][0]
        @ W_O[1][0]
        @ model.weight("W_U").double()
    )
    assert found.virtual[1, 2] == pytest.approx(dense.norm().item() / 20**0.5, rel=1e-4)
    assert found.virtual[2, 1].isnan()


def test_needs_two_layers_and_keeps_itself(tmp_path):
    with pytest.raises(VesaliusError, match="two layers"):
        composition(random_attn(n_layers=1))
    found = composition(random_attn())
    loaded = Result.load(found.save(tmp_path / "composition"))
    assert torch.equal(loaded.scores.nan_to_num(), found.scores.nan_to_num())
    assert loaded.figure().title == "Composition of heads"
