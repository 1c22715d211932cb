"""Proxies by hand, and latents that were made to stand for a kind of text."""

import math
from importlib.resources import files

import pytest
import torch

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.latents.inputs import inputs_of
from vesalius.latents.text_proxies import text_proxies
from vesalius.testbed import random_attn


@pytest.fixture(scope="module")
def reader() -> vs.Model:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    module = random_attn(
        n_layers=1, d_model=32, n_heads=2, d_vocab=tokenizer.get_vocab_size(), n_ctx=64, d_mlp=96
    ).module
    return vs.Model(module, tokenizer=tokenizer, bos=0)


def test_evidence_of_a_pattern_is_its_odds(reader):
    """Every token is a digit or none: n tokens, d digits, so that each digit in a row is worth ln(n / d)."""
    ids = reader.tokens("a12b3 c")
    words = reader.strings(ids[0])
    (found,) = text_proxies(reader, ids, ["digits"])
    digits = sum(word.isdigit() for word in words)
    worth = math.log((len(words) - 1) / digits)
    run = 0.0
    for word, value in zip(words[1:], found[0, 1:].tolist(), strict=True):
        run = run + worth if word.isdigit() else 0.0
        assert value == pytest.approx(run, abs=1e-5), word
    assert found[0, 0] == 0  # BOS


def test_evidence_of_an_alphabet_is_against_the_frequency_of_tokens(reader):
    ids = reader.tokens("ACGT! ACGT!")
    words = reader.strings(ids[0])
    (found,) = text_proxies(reader, ids, ["DNA"])
    first = words.index(next(word for word in words[1:] if set(word) <= set("ACGT")))
    share = words.count(words[first]) / (len(words) - 1)
    wanted = -len(words[first]) * math.log(4) - math.log(share)
    assert found[0, first].item() == pytest.approx(max(wanted, 0), abs=1e-5)
    assert found[0, words.index("!")] == 0


def test_a_pattern_may_span_tokens(reader):
    ids = reader.tokens("1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 * some_long_name + 1 + 2 + 3 + 4")
    words = reader.strings(ids[0])
    snake, own = text_proxies(reader, ids, ["snake case", "names=[a-z]+(?:_[a-z]+)+"])
    assert torch.equal(snake, own)
    inside = "".join(word for word, value in zip(words, snake[0].tolist()) if value > 0)
    assert inside.strip() == "some_long_name"


def test_unknown_kinds_are_named_with_the_nearest(reader):
    with pytest.raises(vs.VesaliusError, match="digits"):
        text_proxies(reader, reader.tokens("a"), ["digit"])
    with pytest.raises(vs.VesaliusError, match="no regular expression"):
        text_proxies(reader, reader.tokens("a"), ["own=("])


def test_a_latent_made_for_a_kind_is_found_and_a_random_network_has_none(reader):
    inputs = inputs_of(reader, contexts=24, length=48)
    with vs.record(reader, "neurons@0") as acts:
        reader(inputs.ids)
    (proxy,) = text_proxies(reader, inputs.ids, ["snake case"])
    kept = inputs.counts
    rows = torch.cat([acts["neurons@0"][kept], torch.ones(int(kept.sum()), 1)], 1)
    fitted = torch.linalg.lstsq(rows, (proxy[kept] > 0).float()[:, None]).solution[:, 0]
    drawn = torch.randn(96, 20, generator=torch.Generator().manual_seed(0)) / 10
    reads = torch.cat([drawn, fitted[:-1, None]], 1)
    biases = torch.cat([torch.zeros(20), fitted[-1:]])
    dictionary = SparseDictionary(
        "neurons@0", reads, biases, reads.T.contiguous(), torch.zeros(96), torch.zeros(21)
    )
    result = vs.feature_proxies(reader, dictionary, kinds=["snake case", "Hebrew"], contexts=24, length=48)
    assert result.kinds == ["snake case"] and result.absent == ["Hebrew"]
    assert result.latents.tolist() == [20]
    assert result.sensitivity[0] > result.neuron_sensitivity[0]
    assert abs(result.shuffled[0]) < 0.2
    none = SparseDictionary.of_directions("neurons@0", drawn.T, k=4)
    claimed = vs.feature_proxies(reader, none, contexts=24, length=48).headlines()
    assert not any(headline.evidence for headline in claimed)


def test_sums_over_sparse_codes_are_the_correlation(reader):
    dictionary = SparseDictionary.of_directions("neurons@0", torch.eye(96)[:10])
    result = vs.feature_proxies(reader, dictionary, kinds=["snake case"], contexts=8, length=48, twins=1)
    inputs = inputs_of(reader, contexts=8, length=48)
    with vs.record(reader, "neurons@0") as acts:
        reader(inputs.ids)
    (proxy,) = text_proxies(reader, inputs.ids, ["snake case"])
    even = torch.arange(8) % 2 == 0
    codes = dictionary.encode(acts["neurons@0"][even][inputs.counts[even]])
    wanted = torch.corrcoef(torch.cat([proxy[even][inputs.counts[even]][None], codes.T]))[0, 1:]
    torch.testing.assert_close(result.all[0], wanted.nan_to_num(), atol=1e-4, rtol=1e-4)
