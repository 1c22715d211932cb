"""Dictionaries whose latents were planted: classes of tokens, first letters, and one letter that a token absorbed."""

import functools
from dataclasses import replace
from importlib.resources import files

import pytest
import torch

import vesalius as vs
from vesalius.data.token_classes import CLASSES, first_letters, members
from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.latents.inputs import inputs_of
from vesalius.latents.token_tasks import subjects_of
from vesalius.methods.features.absorption import absorption
from vesalius.methods.features.sparse_probing import sparse_probing
from vesalius.methods.features.spurious_correlation_removal import spurious_correlation_removal
from vesalius.methods.features.targeted_probe_perturbation import targeted_probe_perturbation
from vesalius.testbed import random_attn

WIDTH = 64
QUICK = {"contexts": 48, "length": 64}


def reader() -> vs.Model:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    module = random_attn(
        d_model=WIDTH, n_heads=4, d_vocab=tokenizer.get_vocab_size(), n_ctx=128, norm=True, d_mlp=64
    ).module
    return vs.Model(module, tokenizer=tokenizer, bos=0, name="planted")


def planted(features: torch.Tensor) -> tuple[vs.Model, torch.Tensor]:
    """A network whose embedding is features [token, feature] along random orthonormal directions, and these."""
    model, generator = reader(), torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q[: features.shape[1]]
    noise = 0.3 * torch.randn(len(features), WIDTH, generator=generator) / WIDTH**0.5
    weight = next(p for p in model.module.parameters() if p.shape == (len(features), WIDTH))
    with torch.no_grad():
        weight.copy_(features @ directions + noise - noise @ directions.T @ directions)
    return model, directions


@functools.cache
def of_classes() -> tuple[vs.Model, SparseDictionary]:
    """Every class a latent, the first ones stronger, and forty that are random, so that no neuron tells a class."""
    table = members(list(CLASSES), reader().strings(list(range(reader().d_vocab)))).float().T
    others = torch.rand(len(table), 40, generator=torch.Generator().manual_seed(3)) < 0.3
    model, directions = planted(torch.cat([table * torch.linspace(3, 1, len(CLASSES)), 1.5 * others], 1))
    return model, SparseDictionary.of_directions("resid_pre@0", directions)


@functools.cache
def of_letters(absorbed: bool) -> tuple[vs.Model, SparseDictionary]:
    """Every letter a latent; if `absorbed`, that of t is silent on " the", whose own latent writes the letter too."""
    strings = reader().strings(list(range(reader().d_vocab)))
    letters = first_letters(strings)
    table = torch.zeros(len(strings), 27)
    for token, letter in enumerate(letters):
        if letter:
            table[token, ord(letter) - ord("a")] = 1
    the, t = reader().token(" the"), ord("t") - ord("a")
    table[the, 26] = 1
    model, directions = planted(table)
    W_enc, W_dec = directions.T.clone(), directions.clone()
    if absorbed:
        W_enc[:, t] -= directions[26]
        W_dec[26] = directions[26] + directions[t]
    zeros, limit = torch.zeros(27), torch.full((27,), 0.4)
    return model, SparseDictionary("resid_pre@0", W_enc, zeros, W_dec, torch.zeros(WIDTH), limit)


def test_the_token_that_was_given_the_letter_is_found():
    model, dictionary = of_letters(True)
    result = absorption(model, dictionary, most=1, **QUICK)
    assert [(token, letter, latent) for token, letter, latent, _ in result.absorbed] == [(" the", "t", 26)]
    t = result.letters.index("t")
    assert result.rates[t] > 0.1 and result.rates.sum() == result.rates[t]
    assert result.latents[t] == [19] and result.f1.min() > 0.5
    headline = result.headlines()[0]
    assert headline.evidence and headline.interval[0] > headline.control


def test_where_nothing_was_absorbed_nothing_is():
    model, dictionary = of_letters(False)
    result = absorption(model, dictionary, **QUICK)
    assert result.mean[0] == 0 and not result.absorbed and not result.headlines()[0].evidence


def test_one_latent_knows_what_many_neurons_know():
    model, dictionary = of_classes()
    result = sparse_probing(model, dictionary, ks=[1], **QUICK)
    now = [number for number, task in enumerate(result.tasks) if not task.startswith("next")]
    assert len(now) > 2 and result.accuracy["latents"][0, now].min() > 0.98
    assert [result.latents[number] for number in now] == [[list(CLASSES).index(result.tasks[n])] for n in now]
    assert result.accuracy["neurons"][0, now].mean() < result.accuracy["latents"][0, now].mean() - 0.02
    assert result.accuracy["shuffled"].mean() < 0.6
    assert result.headlines()[0].evidence


def test_a_class_is_taken_away_alone():
    model, dictionary = of_classes()
    result = targeted_probe_perturbation(model, dictionary, ablated=1, **QUICK)
    now = [number for number, task in enumerate(result.tasks) if not task.startswith("next")]
    assert result.losses[now, now].mean() > 0.15
    assert [result.latents[number] for number in now] == [[list(CLASSES).index(result.tasks[n])] for n in now]
    assert result.score[0] > 2 * abs(result.losses[now][:, now].fill_diagonal_(0).mean().item())
    assert result.headlines()[0].evidence


def test_a_biased_probe_is_put_right():
    model, dictionary = of_classes()
    result = spurious_correlation_removal(model, dictionary, ablated=1, n_pairs=8, **QUICK)
    now = [n for n, (wanted, _) in enumerate(result.pairs) if not wanted.startswith("next")]
    assert now and (result.removed[now] > result.biased[now] + 0.1).all()
    assert result.headlines()[0].value > 0 and (result.unbiased[now] > 0.9).all()
    names = list(CLASSES)
    for (_, spurious), latents in zip(result.pairs, result.latents):
        if not spurious.startswith("next"):
            assert latents == [names.index(spurious)]


@pytest.mark.parametrize(
    "method", [absorption, sparse_probing, targeted_probe_perturbation, spurious_correlation_removal]
)
def test_the_same_seed_gives_the_same_numbers_and_random_directions_are_no_evidence(method):
    model = reader()
    drawn = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    dictionary = SparseDictionary.of_directions("neurons@0", torch.nn.functional.normalize(drawn, dim=1), k=8)
    first, second = (method(model, dictionary, **QUICK).to_json() for _ in range(2))
    assert {k: v for k, v in first.items() if k != "provenance"} == {
        k: v for k, v in second.items() if k != "provenance"
    }
    assert not any(headline["evidence"] for headline in first["headlines"])


def test_rows_are_balanced_and_of_different_contexts():
    model, dictionary = of_classes()
    inputs = inputs_of(model, contexts=24, length=32)
    subjects = subjects_of(model, dictionary, inputs, twins=1, seed=0)
    fitted, judged = subjects.parts
    assert set(subjects.contexts[fitted].tolist()).isdisjoint(subjects.contexts[judged].tolist())
    for yes in subjects.tasks(least=10).values():
        for part in (0, 1):
            rows = subjects.balanced(yes.long(), part)
            assert yes[rows].float().mean() == 0.5 and len(rows.unique()) == len(rows)


def test_what_cannot_be_asked_says_why():
    model, dictionary = of_classes()
    with pytest.raises(VesaliusError, match="expected numbers of 1 to"):
        sparse_probing(model, dictionary, ks=[99], **QUICK)
    with pytest.raises(VesaliusError, match="give more text"):
        sparse_probing(model, dictionary, contexts=4, length=16, least=500)
    with pytest.raises(VesaliusError, match="99 latents to take away"):
        targeted_probe_perturbation(model, dictionary, ablated=99, **QUICK)
    with pytest.raises(VesaliusError, match="give more text"):
        absorption(model, dictionary, contexts=4, length=16, least=500)
    across = replace(dictionary, site="mlp_out@0", source="resid_pre@0")
    with pytest.raises(VesaliusError, match="writes elsewhere than it reads"):
        sparse_probing(model, across, **QUICK)
