"""Bigrams: the planted table, read off the weights; what rank forbids is a gap; noise is no evidence."""

from pathlib import Path

import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.methods.circuits.bigrams import bigrams
from vesalius.result import Result
from vesalius.testbed import bigram_table, planted_bigram, random_attn

EVERY = [f"#{token}" for token in range(50)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """51,200 tokens of the planted language, as ids."""
    generator = torch.Generator().manual_seed(1)
    text = [torch.randint(50, (200,), generator=generator)]
    while len(text) < 256:
        text.append(torch.multinomial(bigram_table()[text[-1]], 1, generator=generator)[:, 0])
    path = tmp_path_factory.mktemp("corpus") / "ids.txt"
    path.write_text(" ".join(map(str, torch.stack(text, 1).flatten().tolist())))
    return str(path)


def read_off(found) -> torch.Tensor:
    return torch.zeros(50, 50).scatter(1, found.next_tokens, found.log_probs.exp())


def test_full_rank_gives_the_planted_table(corpus):
    found = bigrams(planted_bigram(steps=600), sources=EVERY, top=50, corpus=corpus, chunks=10_000)
    assert ((read_off(found) - bigram_table()).abs().sum(1) / 2).max() < 0.01
    assert [headline.evidence for headline in found.headlines()] == [True, True, True]
    assert found.divergence["low"] < found.divergence["kl"] < found.divergence["high"]


def test_low_rank_is_a_gap(corpus):
    found = bigrams(planted_bigram(d_model=8, steps=600), corpus=corpus, chunks=10_000)
    *better, gap = found.headlines()
    assert all(headline.evidence for headline in better)
    assert gap.value == pytest.approx(0.40, abs=0.05)
    assert gap.evidence is False and "rank at most 8 of 50" in gap.note


def test_divergences_are_those_of_the_dense_tables(corpus):
    model = random_attn(n_layers=0)
    found = bigrams(model, sources=EVERY, top=50, corpus=corpus, chunks=10_000)
    ids = torch.tensor([int(word) for word in Path(corpus).read_text().split()]).reshape(-1, 64)  # n_ctx
    counts = torch.zeros(50, 50, dtype=torch.double)
    counts.index_put_((ids[:, :-1].flatten(), ids[:, 1:].flatten()), torch.ones(()).double(), accumulate=True)
    empirical, path = counts / counts.sum(1, keepdim=True), read_off(found).double()
    weight = counts.sum(1) / counts.sum()
    kl = (weight[:, None] * torch.xlogy(empirical, empirical / path)).sum()
    assert found.divergence["kl"] == pytest.approx(kl.item(), rel=1e-5)
    tv = (weight[:, None] * (empirical - path).abs()).sum() / 2
    assert found.divergence["tv"] == pytest.approx(tv.item(), rel=1e-5)
    assert not any(headline.evidence for headline in found.headlines())


def test_zero_layers_are_this_path_norm_and_all():
    model = random_attn(n_layers=0, norm=True)
    found = bigrams(model, sources=["#3"], top=50)
    logits = model.logits(torch.tensor([[3]]))[0, 0].log_softmax(-1)
    torch.testing.assert_close(found.log_probs[0], logits.sort(descending=True).values, rtol=0, atol=5e-3)


def test_refuses_what_is_not_there_and_keeps_itself(tmp_path):
    with pytest.raises(VesaliusError, match="not a file"):
        bigrams(random_attn(), corpus="nowhere.txt")
    (tmp_path / "words.txt").write_text("not numbers " * 64)
    with pytest.raises(VesaliusError, match="token ids below 50"):
        bigrams(random_attn(), corpus=str(tmp_path / "words.txt"))
    found = bigrams(random_attn())
    assert "one term" in found.headlines()[0].note
    assert Result.load(found.save(tmp_path / "bigrams")).summary() == found.summary()
