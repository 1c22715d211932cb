"""G3, planted bigrams: the table read off W_E W_U is the one that was trained, or the gap is reported.

Truth: `bigram_table`, 50 tokens, rows from a Dirichlet of concentration .2; the network sees its
probabilities, not samples. Measured over three seeds: d_model 50, cross-entropy above the entropy 4e-5 nats,
largest total variation 2e-4, the same most likely token everywhere; d_model 16: .08 nats, .13, 92 of 100;
d_model 8: .39 nats, .49, 74.
"""

import pytest
import torch

from vesalius.methods.circuits.bigrams import bigrams
from vesalius.metrics import entropy, total_variation
from vesalius.testbed import bigram_table, planted_bigram

TOKENS = [f"#{token}" for token in range(50)]


def tool_table(model) -> torch.Tensor:
    """P(next | token) as the method gives it, from weights alone."""
    result = bigrams(model, sources=TOKENS, top=50)
    return torch.zeros(50, 50).scatter(1, result.next_tokens, result.log_probs.exp())


def gap(table: torch.Tensor, truth: torch.Tensor) -> float:
    return (-(truth * table.log()).sum(1) - entropy(truth)).mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_full_rank_the_table_is_recovered(seed):
    truth, table = bigram_table(seed=seed), tool_table(planted_bigram(d_model=50, seed=seed))
    assert total_variation(table, truth).max() < 0.01
    assert gap(table, truth) < 1e-3
    assert torch.equal(table.argmax(1), truth.argmax(1))


@pytest.mark.parametrize(("d_model", "nats", "variation"), [(16, (0.05, 0.1), 0.2), (8, (0.3, 0.5), 0.6)])
def test_at_low_rank_there_is_a_gap_of_known_size(d_model, nats, variation):
    truth, table = bigram_table(), tool_table(planted_bigram(d_model=d_model))
    assert nats[0] < gap(table, truth) < nats[1]
    assert 0.05 < total_variation(table, truth).max() < variation


def test_the_gap_is_called_a_gap(tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text(" ".join(map(str, sample(bigram_table(), 60_000))))
    verdicts = {}
    for d_model in (50, 8):
        headlines = bigrams(planted_bigram(d_model=d_model), corpus=str(text), chunks=10_000).headlines()
        verdicts[d_model] = next(headline for headline in headlines if "gap" in headline.claim)
    assert verdicts[50].evidence is True and verdicts[50].value < 0.01
    assert verdicts[8].evidence is False and verdicts[8].value > 0.2


def sample(table: torch.Tensor, length: int) -> list[int]:
    """A walk along the table."""
    chance = torch.rand(length, generator=torch.Generator().manual_seed(0)).tolist()
    ends = table.double().cumsum(1)
    token, text = 0, []
    for point in chance:
        token = min(int(torch.searchsorted(ends[token], point)), 49)
        text.append(token)
    return text
