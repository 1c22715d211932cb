"""Dashboards of a network whose latents are known, and what a page of thousands of them holds."""

import json

import pytest
import torch

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.figures.dashboards import packed, unpacked
from vesalius.methods.features.feature_dashboard import SHOWN, _room, feature_dashboard
from vesalius.testbed import random_attn


@pytest.fixture(scope="module")
def model():
    return random_attn(d_model=32, d_mlp=48, d_vocab=41, n_ctx=64, seed=2)


@pytest.fixture(scope="module")
def dictionary():
    drawn = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    drawn[1:3] = torch.eye(48)[5:7]  # two latents are neurons
    return SparseDictionary.of_directions("neurons@1", drawn, k=6)


@pytest.fixture(scope="module")
def result(model, dictionary):
    return feature_dashboard(model, dictionary, contexts=16, length=40, other=dictionary)


def test_examples_fit_what_was_counted(result):
    starts, examples = result.examples["starts"], result.examples
    for latent in range(40):
        inside = slice(starts[latent], starts[latent + 1])
        if starts[latent] == starts[latent + 1]:
            assert result.counts[latent] == 0
            continue
        assert examples["values"][inside].max() == result.maxima[latent]
        centre = examples["windows"].shape[1] // 2
        torch.testing.assert_close(
            examples["windows"][inside, centre].float(), examples["values"][inside], rtol=1e-3, atol=1e-3
        )
    assert result.histogram.sum(1).tolist() == result.counts.tolist()


def test_a_latent_that_is_a_neuron_is_said_to_be_one(result):
    assert result.neurons["aligned"][1:3, 0].tolist() == [5, 6]
    assert result.neurons["entries"][1:3, 0].tolist() == [1, 1]


def test_a_dictionary_beside_itself_is_itself(result):
    fired = result.counts > 0
    assert torch.equal(result.others["latents"][fired, 0], result.latents[fired])
    torch.testing.assert_close(result.others["correlations"][fired, 0], torch.ones(int(fired.sum())))


def test_what_fires_in_a_text_is_what_the_codes_say(model, dictionary, result):
    text = result.texts[1]
    with vs.record(model, "neurons@1") as acts, torch.no_grad():
        model(text["tokens"][None])
    codes = dictionary.encode(acts["neurons@1"][0])
    for position in range(1, len(text["tokens"])):
        inside = slice(text["starts"][position], text["starts"][position + 1])
        expected = codes[position].nonzero()[:, 0]
        assert sorted(text["latents"][inside].tolist()) == expected.tolist()
    assert text["starts"][1] == 0  # BOS does not count


def test_some_latents_alone_are_as_they_are_among_all(model, dictionary, result):
    some = feature_dashboard(model, dictionary, contexts=16, length=40, latents=[7, 2])
    assert some.latents.tolist() == [7, 2]
    assert torch.equal(some.counts, result.counts[[7, 2]])
    torch.testing.assert_close(some.logits["values"], result.logits["values"][[7, 2]])
    with pytest.raises(VesaliusError, match="latent 99 .* 0 to 39"):
        feature_dashboard(model, dictionary, latents=[99])


def test_the_page_of_very_many_stays_small():
    for latents in (512, 4096, 16384, 131072):
        top, each = _room(latents, 20, 11, 5)
        assert top >= 1 and each >= 1
        assert latents * (top + 11 * each) <= SHOWN or (latents > 16384 and each == 1)
    assert _room(4096, 20, 11, 5) == (20, 5)


def test_packing_is_undone(result):
    for kind, values in (("u8", [0, 255]), ("i8", [-128, 127]), ("u16", [0, 65535]), ("i32", [70000, -1])):
        assert unpacked(packed(torch.tensor(values), kind)).tolist() == values
    assert packed(torch.tensor([70000]), "u16")["type"] == "i32"


def test_the_figure_is_whole(result, tmp_path):
    figure = result.figure()
    data = figure.data
    starts = unpacked(data["examples"]["starts"])
    tokens, windows = (unpacked(data["examples"][name]) for name in ("tokens", "windows"))
    assert starts[-1] == len(tokens) == len(windows)
    assert int(tokens.max()) < len(data["vocabulary"])
    measured, effects = (unpacked(data["examples"][name]) for name in ("measured", "effects"))
    assert measured.max() == len(effects)
    json.dumps(figure.to_json(), allow_nan=False)
    assert figure.save(tmp_path / "dashboard.svg").exists()


def test_of_pictures(tmp_path):
    network = vs.testbed.curve_network()
    site = network.site()
    width = network.map_shape(site)[0]
    dictionary = SparseDictionary.of_directions(site, torch.eye(width))
    result = feature_dashboard(network, dictionary, n_images=16, window=2)
    assert result.logits is None and not result.texts
    assert len(result.examples["positions"]) == len(result.pictures["of"])
    assert result.figure().save(tmp_path / "pictures.html").stat().st_size < 3e6
