"""One-sided NMF: planted groups are found again, and what it says it explains, it does."""

import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.weights.nmf import one_sided_nmf


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_and_signed_maps_are_found(seed):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.zeros(3, 30)
    for factor in range(3):
        groups[factor, factor * 10 : factor * 10 + 10] = torch.rand(10, generator=generator) + 0.2
    groups = groups / groups.norm(dim=1, keepdim=True)
    maps = torch.randn(3, 4, 5, 5, generator=generator) * torch.tensor([3.0, 2.0, 1.0])[:, None, None, None]
    weights = torch.einsum("fs,furc->usrc", groups, maps)
    found = one_sided_nmf(weights + 0.01 * torch.randn(weights.shape, generator=generator), 3)
    assert found.explained > 0.99
    assert (found.groups @ groups.T).argmax(1).tolist() == [0, 1, 2]
    assert (found.groups * groups).sum(1).min() > 0.9
    assert found.groups.min() >= 0 and found.maps.min() < 0
    assert torch.corrcoef(torch.stack([found.maps.flatten(), maps.flatten()]))[0, 1] > 0.98


def test_more_factors_explain_more_and_all_of_them_nearly_all():
    weights = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    explained = [one_sided_nmf(weights, rank).explained for rank in range(1, 7)]
    assert explained == sorted(explained) and explained[-1] > 0.9
    factors = one_sided_nmf(weights, 2)
    rest = weights - torch.einsum("fs,furc->usrc", factors.groups, factors.maps)
    assert abs(1 - rest.square().sum() / weights.square().sum() - factors.explained) < 1e-5


def test_weights_of_nothing_are_explained_by_nothing():
    factors = one_sided_nmf(torch.zeros(1, 4, 1, 1), 2)
    assert factors.explained == 1.0 and factors.maps.abs().max() == 0


def test_what_cannot_be_factored_is_said():
    with pytest.raises(VesaliusError, match="expected 1 to 4"):
        one_sided_nmf(torch.ones(1, 4, 3, 3), 5)
    with pytest.raises(VesaliusError, match="NaN"):
        one_sided_nmf(torch.full((1, 4, 3, 3), float("nan")), 1)
