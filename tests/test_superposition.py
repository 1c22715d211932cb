"""Superposition: closed forms, what training finds, and no evidence where nothing was trained (ground truth G9)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.methods.features.superposition import superposition
from vesalius.testbed import planted_superposition, random_attn, toy_superposition
from vesalius.testbed.toy_superposition import (
    GEOMETRIES,
    best_phase,
    loss_without,
    sample,
    trained,
    trained_phase,
)
from vesalius.weights.superposition import dimensionality, interference


@pytest.mark.parametrize("name", GEOMETRIES)
def test_closed_forms_of_arrangements(name):
    weight, expected = GEOMETRIES[name]
    assert torch.allclose(dimensionality(weight), torch.full((len(weight),), expected), atol=1e-5)
    result = superposition(planted_superposition(name))
    assert result.median[0] == pytest.approx(expected, abs=1e-5)
    assert result.dimensionality.sum() <= weight.shape[1] + 1e-5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(3, 20), st.integers(0, 1000))
def test_dimensionality_is_a_share(width, count, seed):
    """k parallel vectors have 1/k each, n in a regular polygon 2/n; the sum is at most the width."""
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    shares = dimensionality(vectors)
    assert (shares >= 0).all() and (shares <= 1 + 1e-5).all()
    assert shares.sum() <= min(width, count) + 1e-4
    pairs = (torch.nn.functional.normalize(vectors, dim=1) @ vectors.T).square()
    assert torch.allclose(interference(vectors), pairs.sum(1) - pairs.diagonal(), rtol=1e-3, atol=1e-4)
    assert torch.allclose(dimensionality(vectors[:1].expand(count, -1)), torch.tensor(1 / count), atol=1e-5)
    angles = 2 * torch.pi * torch.arange(count) / count
    polygon = torch.stack([angles.cos(), angles.sin()], 1)
    assert torch.allclose(dimensionality(polygon), torch.tensor(2 / count), atol=1e-5)
    assert dimensionality(torch.zeros(2, width)).eq(0).all()


def test_dense_features_have_a_dimension_each_and_sparse_ones_share():
    dense = superposition(toy_superposition(density=1.0, steps=1000, starts=4))
    assert (dense.dimensionality[:2] > 0.9).all() and (dense.dimensionality[3:] < 0.05).all()
    assert dense.headlines()[-1].evidence is False
    pairs = superposition(toy_superposition(density=0.2, steps=1000, starts=4))
    assert (pairs.dimensionality[:4] - 0.5).abs().max() < 0.04 and pairs.dimensionality[4] < 0.1
    model = toy_superposition(density=0.02, steps=1000, starts=4)
    pentagon = superposition(model)
    assert (pentagon.dimensionality - 0.4).abs().max() < 0.02
    assert pentagon.headlines()[-1].evidence is True
    assert pentagon.plane.shape == (5, 2)
    for seed in range(5):
        assert superposition(model.random_twin(seed)).headlines()[-1].evidence is False


def test_the_loss_without_superposition_is_that_of_the_best_bias():
    density, importance = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([1.0, 0.5, 0.25])
    values = sample(density, 200_000, generator=torch.Generator().manual_seed(0))
    measured = (importance * values.var(0))[2:].sum().item()
    assert loss_without(density, importance, n_hidden=2) == pytest.approx(measured, rel=0.03)


def test_the_antipodal_loss_is_its_closed_form():
    density, importance = torch.tensor([0.4, 0.4]), torch.tensor([1.0, 3.0])
    values = sample(density, 400_000, generator=torch.Generator().manual_seed(0))
    hidden = values @ torch.tensor([[1.0], [-1.0]])
    output = (hidden @ torch.tensor([[1.0, -1.0]])).relu()
    measured = ((output - values).square() * importance).sum(1).mean().item()
    _, losses = best_phase(importance[1:], density[1:])
    assert losses[2].item() == pytest.approx(measured, rel=0.03)


def test_training_finds_the_phases_of_the_closed_form():
    grid = torch.cartesian_prod(torch.logspace(-1, 1, 5), torch.logspace(-2, 0, 5))
    best, losses = best_phase(grid[:, 0], grid[:, 1])
    clear = losses.sort(0).values[1] > 1.3 * losses.min(0).values
    assert (trained_phase(grid[:, 0], grid[:, 1]) == best)[clear].float().mean() > 0.9
    assert sorted(best.unique().tolist()) == [0, 1, 2]


@pytest.mark.slow
def test_plateaux_of_many_features():
    """G9: 40 features of equal importance in 10 dimensions; pairs at density .3, all of them from .1 down."""
    importance = torch.ones(2, 40)
    density = torch.tensor([0.3, 0.1])[:, None].expand(2, 40)
    weight, _, _ = trained(density, importance, n_hidden=10, steps=2500, batch=256, rate=0.01)
    shares = [dimensionality(one)[one.norm(dim=1) > 0.3] for one in weight]
    assert abs(len(shares[0]) - 20) <= 1 and (shares[0].median() - 0.5).abs() < 0.03
    assert len(shares[1]) == 40 and (shares[1].median() - 0.25).abs() < 0.03
    assert all(dimensionality(one).sum() >= 9.8 for one in weight)


def test_the_phase_diagram_is_a_figure_and_tokens_have_directions_too():
    result = superposition(planted_superposition("antipodal"), grid=3)
    assert result.phases.shape == (2, 3, 3)
    titles = [part["title"] for part in result.figure().data["figures"]]
    assert "Two features in one dimension" in titles
    tokens = superposition(random_attn(d_vocab=41, n_ctx=49), weight="W_U")
    assert len(tokens.norms) == 41 and not tokens.loss
    with pytest.raises(VesaliusError, match="expected W_E or W_U"):
        superposition(planted_superposition("triangle"), weight="W_O")
    with pytest.raises(VesaliusError, match="no arrangement"):
        planted_superposition("pentagone")
    with pytest.raises(VesaliusError, match="needs a model with embedding"):
        superposition(vs.Model(torch.nn.Linear(2, 2)))
