"""G1, algebra: what is computed from factors is what the dense matrices give.

Truth: linear algebra. Measured: mixed product 9e-16; path terms sum to the logits within 4e-7 of their size
for zero, one and two layers; with frozen patterns the network is linear in its embeddings within 6e-7;
eigenvalues from the small product equal the dense ones within 7e-12 and Frobenius norms within 3e-15 (600
tokens, d_model 96, d_head 16, float64); Gaussian heads of d_model 256 compose at 1/16 within .5%; 24 random
heads of d_model 768 and d_head 64 have copying scores of mean .001 and sd .028, the null of the method .025.
"""

import math

import pytest
import torch

import vesalius as vs
from vesalius.methods.circuits.copying_heads import copying_heads
from vesalius.testbed import random_attn
from vesalius.weights.composition import composition_matrix
from vesalius.weights.factored import Factored
from vesalius.weights.paths import path_expansion

SEEDS = (0, 1, 2)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_product(seed):
    """Attention acts on positions, OV on features: (A ⊗ B)(C ⊗ D) = AC ⊗ BD."""
    A, C = normal(2, 6, 6, seed=seed).softmax(-1)
    B, D = normal(2, 5, 5, seed=seed + 10)
    torch.testing.assert_close(
        torch.kron(A, B) @ torch.kron(C, D), torch.kron(A @ C, B @ D), atol=1e-12, rtol=0
    )
    x = normal(6, 5, seed=seed + 20)
    torch.testing.assert_close(A @ (C @ x @ D) @ B, (A @ C) @ x @ (D @ B), atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_layers", [0, 1, 2])
def test_path_terms_sum_to_the_logits(n_layers, seed):
    model = random_attn(n_layers=n_layers, seed=seed)
    ids = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(seed))
    terms = path_expansion(model, ids, order=n_layers)
    logits = model.logits(ids)
    error = (terms.total - logits).abs().max() / logits.abs().max()
    assert error <= 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_with_frozen_patterns_the_network_is_linear(seed):
    model = random_attn(seed=seed)
    ids = torch.randint(1, 50, (1, 12), generator=torch.Generator().manual_seed(seed))
    with vs.record(model, "pattern@*") as acts:
        model(ids)
    frozen = {site: vs.freeze(acts[site]) for site in acts}

    def f(x: torch.Tensor) -> torch.Tensor:
        with vs.intervene(model, frozen), vs.intervene(model, {"embed": vs.set_to(x)}):
            return model.logits(ids)

    x, y = normal(2, 1, 12, 64, seed=seed, dtype=torch.float32)
    expected = 2 * f(x) - 3 * f(y)
    assert (f(2 * x - 3 * y) - expected).abs().max() / expected.abs().max() <= 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_small_products_have_the_eigenvalues_and_norm_of_the_dense_matrix(seed):
    W_E, W_V, W_O, W_U = (
        normal(*shape, seed=seed + n) for n, shape in enumerate([(600, 96), (96, 16), (16, 96), (96, 600)])
    )
    circuit = W_E @ Factored(W_V, W_O) @ W_U
    dense = W_E @ W_V @ W_O @ W_U
    few, many = circuit.eigenvalues(), torch.linalg.eigvals(dense)
    many = many[many.abs().argsort(descending=True)[: len(few)]]
    nearest = (few[:, None] - many[None]).abs().min(1).values
    assert len(few) == 16 and (nearest / few.abs()).max() <= 1e-6
    assert abs(circuit.norm() / torch.linalg.matrix_norm(dense) - 1) <= 1e-6
    torch.testing.assert_close(circuit.dense(), dense)
    torch.testing.assert_close(circuit.svd().S[:16], torch.linalg.svdvals(dense)[:16])


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_random_heads_compose_at_one_over_root_d_model(draw, mode):
    model = random_attn(d_model=256, n_heads=8, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.module.blocks:
            for part in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj, block.attn.o_proj):
                fill = part.weight.normal_ if draw == "normal" else part.weight.uniform_
                fill(*((0, 1) if draw == "normal" else (-1, 1)), generator=generator)
    scores = composition_matrix(model, mode)[0, :, 1, :]
    assert scores.shape == (8, 8)
    assert scores.mean().item() == pytest.approx(1 / math.sqrt(256), rel=0.03)


def test_random_heads_do_not_copy():
    model = random_attn(d_model=768, n_heads=12, d_vocab=1000, seed=0)
    result = copying_heads(model)
    assert abs(result.scores.mean()) < 0.02
    assert result.scores.std().item() == pytest.approx(0.022, rel=0.3)
    assert result.null.std().item() == pytest.approx(0.022, rel=0.3) and abs(result.null.mean()) < 0.005
    assert result.copying == []
