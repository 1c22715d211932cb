import math

import pytest
import torch

from vesalius import metrics
from vesalius.errors import VesaliusError


def test_token_losses_are_minus_log_probability():
    logits, ids = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    probability = logits.softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(metrics.token_losses(logits, ids), -probability.log())


def test_distances_are_zero_for_the_same_and_known_for_others():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert metrics.total_variation(p[0], p[1]) == 0.5
    assert metrics.kl(p[0].log(), p[0].log()) == 0
    assert metrics.entropy(p).tolist() == pytest.approx([math.log(2), 0.0])


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    draws = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    intervals = [metrics.bootstrap(row, seed=i, draws=300) for i, row in enumerate(draws)]
    inside = [low < 0 < high for low, high in intervals]
    assert 0.88 < sum(inside) / 200 < 0.99


def test_bootstrap_band_is_bootstrap_of_each_entry():
    values = torch.randn(12, 3)
    low, high = metrics.bootstrap_band(values, seed=4)
    assert (low[1].item(), high[1].item()) == pytest.approx(metrics.bootstrap(values[:, 1], seed=4))


def test_family_wise_quantile_is_rarely_passed():
    nulls = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    level = metrics.family_wise(nulls[:20], level=0.01)
    assert (nulls[20:].amax(1) > level).float().mean() < 0.03


def test_a_number_that_is_not_one_is_named_by_its_site():
    with pytest.raises(VesaliusError, match="resid_post@3 holds 1 values of 2"):
        metrics.require_finite(torch.tensor([1.0, float("nan")]), "resid_post@3")
