"""G8, modular addition in closed form: logits_c = Σ_k cos(2πk(a + b - c)/p), and nothing else.

Truth, for p = 113 and k in {14, 35, 41, 42, 52}: 5 at c = a + b, at most 2.590 elsewhere, margin 2.410; with
the one frequency 1 the margin is .0015. Measured: the same to 1e-4 over all 12,769 sums; the analyser names
exactly these five, the loss rises without any of them and does not change (1e-6) without any other.
"""

import math

import pytest
import torch

from vesalius.methods.circuits.fourier_frequencies import fourier_frequencies
from vesalius.testbed import modular_addition, random_attn

P, KEYS = 113, (14, 35, 41, 42, 52)
PAIRS = torch.cartesian_prod(torch.arange(P), torch.arange(P))
SUMS = PAIRS.sum(1) % P


def test_logits_are_the_closed_form_and_every_sum_is_right():
    logits = modular_addition(KEYS, p=P)(PAIRS)[:, -1]
    assert torch.equal(logits.argmax(-1), SUMS)
    off = (PAIRS.sum(1, keepdim=True) - torch.arange(P)).double()
    truth = sum(torch.cos(2 * math.pi * k * off / P) for k in KEYS)
    assert (logits - truth).abs().max() <= 1e-4
    best, second = logits.topk(2).values.T
    assert best.min().item() == pytest.approx(5.0, abs=1e-4)
    assert second.max().item() == pytest.approx(2.590, abs=1e-3)
    assert (best - second).min().item() == pytest.approx(2.410, abs=1e-3)


def test_one_frequency_has_almost_no_margin():
    best, second = modular_addition([1], p=P)(PAIRS)[:, -1].topk(2).values.T
    assert (best - second).max().item() == pytest.approx(0.0015, abs=1e-4)


def test_more_than_two_numbers_add_up():
    ids = torch.tensor([[100, 20, 3, 111]])
    assert modular_addition()(ids).argmax(-1).tolist() == [[100, 120 - P, 123 - P, 234 - 2 * P]]


def test_the_analyser_finds_exactly_the_frequencies_and_what_each_is_worth():
    result = fourier_frequencies(modular_addition(KEYS, p=P))
    assert sorted(result.key) == list(KEYS) and result.accuracy == 1.0
    assert result.shares.sum().item() == pytest.approx(1.0, abs=1e-6)
    rise = result.excluded - result.loss
    at_key = torch.zeros(len(rise), dtype=torch.bool)
    at_key[[k - 1 for k in KEYS]] = True
    assert (rise[at_key] > 0.1).all() and rise[~at_key].abs().max() <= 1e-6
    assert result.restricted == pytest.approx(result.loss, abs=1e-6)
    assert result.headlines()[0].evidence


def test_a_random_network_has_none():
    result = fourier_frequencies(random_attn(d_vocab=31))
    assert result.key == [] and not any(headline.evidence for headline in result.headlines())
