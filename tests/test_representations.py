"""The measures of similarity, on representations whose likeness is known."""

import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.representations import (
    canonical_correlations,
    dissimilarity_correlations,
    gram,
    hsic,
    linear_cka,
    predictivity,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(a: torch.Tensor, b: torch.Tensor) -> float:
    table = hsic(torch.stack([gram(a), gram(b)]), torch.stack([gram(a), gram(b)]))
    return linear_cka(table[:1, 1:], table[:1, 0], table[1:, 1]).item()


def test_cka_of_unrelated_representations_is_zero_on_average_even_with_more_units_than_samples():
    found = [cka(normal(24, 200, seed=seed), normal(24, 200, seed=1000 + seed)) for seed in range(40)]
    assert abs(sum(found) / len(found)) < 0.03  # the biased estimate is .89 here


def test_cka_does_not_see_rotation_scale_or_shift():
    a, turn = normal(30, 8), torch.linalg.qr(normal(8, 8, seed=1)).Q
    assert cka(a, 2 * a @ turn + 3) == pytest.approx(1, abs=1e-9)
    assert cka(a, a @ normal(8, 8, seed=2)) < 0.95  # but a map that is no rotation


def test_cka_is_the_formula_of_centred_kernels_for_many_samples():
    a, noise = normal(2000, 4), normal(2000, 4, seed=1)
    b = a[:, :2] @ normal(2, 4, seed=2) + 0.5 * noise
    centred = [one - one.mean(0) for one in (a, b)]
    cross, own, other = ((x.T @ y).square().sum() for x, y in [centred, [centred[0]] * 2, [centred[1]] * 2])
    assert cka(a, b) == pytest.approx((cross / (own * other).sqrt()).item(), abs=0.01)


def test_minibatches_agree_with_all_samples_at_once():
    a = normal(640, 12)
    b = a @ normal(12, 9, seed=1) + normal(640, 9, seed=2)
    parts = [torch.stack([gram(x), gram(y)]) for x, y in zip(a.split(32), b.split(32))]
    tables = torch.stack([hsic(part, part) for part in parts]).sum(0)
    batched = linear_cka(tables[:1, 1:], tables[:1, 0], tables[1:, 1]).item()
    assert batched == pytest.approx(cka(a, b), abs=0.03)


def test_too_few_samples_are_refused():
    with pytest.raises(VesaliusError, match="needs four or more"):
        hsic(torch.ones(1, 3, 3), torch.ones(1, 3, 3))


def test_canonical_correlations_see_through_every_invertible_map():
    a = normal(300, 7)
    for table in canonical_correlations([a], [a @ normal(7, 7, seed=1)]):
        assert table.item() == pytest.approx(1, abs=1e-6)
    plain, weighted = canonical_correlations([a], [torch.cat([a[:, :3], normal(300, 4, seed=2)], 1)])
    assert 0.4 < plain.item() < 0.65 and 0.4 < weighted.item() < 0.65  # three of seven directions are shared


def test_pwcca_weighs_the_directions_that_are_used():
    shared, private = normal(400, 2), normal(400, 2, seed=1)
    loud = torch.cat([3 * shared, private], 1)
    other = torch.cat([shared, normal(400, 2, seed=2)], 1)
    plain, weighted = canonical_correlations([loud], [other])
    assert weighted.item() > plain.item() + 0.15


def test_dissimilarities_keep_their_order_under_rotation():
    a, turn = normal(40, 6), torch.linalg.qr(normal(6, 6, seed=1)).Q
    a = a - a.mean(1, keepdim=True)
    assert dissimilarity_correlations([a], [a, normal(40, 6, seed=2)])[0].tolist() == pytest.approx(
        [1, 0], abs=0.1
    )
    assert abs(dissimilarity_correlations([a], [a @ turn]).item()) <= 1


def test_predictivity_is_directed_and_held_out():
    a = normal(400, 6)
    part = a[:, :2] @ normal(2, 3, seed=1)
    there, back = predictivity([a], [part]).item(), predictivity([part], [a]).item()
    assert there > 0.99 and back < 0.7
    many = predictivity([normal(60, 500, seed=3)], [normal(60, 5, seed=4)]).item()
    assert abs(many) < 0.25  # more units than samples, and nothing to predict
    assert predictivity([a], [torch.ones(400, 2)]).item() == 0
