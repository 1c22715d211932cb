"""Probing from a store: what the same inputs give on the fly, and what a store may be asked."""

import csv
import json

import numpy as np
import pytest
import torch

import vesalius as vs
from vesalius.data.images import open_images
from vesalius.methods.directions.probing import probing
from vesalius.questions import question, stored
from vesalius.store import harvest
from vesalius.testbed import curve_network, handwritten_induction, random_attn

SITES = ["resid_post@0", "resid_post@1"]
SHORT = {"kind": "ridge", "twins": 1, "contexts": 24, "length": 32}
DOCUMENTS = 24


@pytest.fixture(scope="module")
def model():
    return handwritten_induction()


@pytest.fixture(scope="module")
def asked(model):
    return question(model, "repeated", contexts=DOCUMENTS, length=32, images="shapes", n_images=1, seed=0)


@pytest.fixture(scope="module")
def store(model, asked, tmp_path_factory):
    ids = torch.tensor(asked.rows)
    return harvest(model, ids, SITES, to=tmp_path_factory.mktemp("acts"), dtype="float32", shard_rows=300)


def alike(one, other, *, within=1e-6):
    assert one.sites == other.sites and one.choices["rows"] == other.choices["rows"]
    for name in ("accuracy", "low", "high", "validation", "shuffled", "twins", "nats", "majority"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=within), name


@pytest.mark.parametrize("kind", ["ridge", "linear"])
def test_a_store_gives_what_the_same_texts_give_on_the_fly(model, store, kind):
    given = SHORT | {"kind": kind, "labels": "repeated"}
    live = probing(model, **given)
    alike(live, probing(model, store=store, **given), within=1e-4)
    one = probing(model, store=store.folder.place, sites="resid_post@1", **given)
    assert one.sites == SITES[1:] and torch.equal(one.accuracy, live.accuracy[1:])
    assert one.choices["rows_of_store"] == store.rows and "read the same" in one.choices["twins"]


@pytest.mark.parametrize(("dtype", "within"), [("float16", 0.01), ("int8", 0.15)])
def test_as_far_as_its_precision_goes(model, asked, dtype, within, tmp_path):
    small = harvest(model, torch.tensor(asked.rows), SITES, to=tmp_path / "acts", dtype=dtype)
    for network in (model, model.random_twin(1)):
        exact = stored(model, small, "repeated").answered(network, SITES).acts[SITES[1]]
        assert exact.dtype == (torch.float16 if dtype == "float16" else torch.float32)
    live, kept = (probing(model, labels="repeated", **SHORT, **extra) for extra in ({}, {"store": small}))
    alike(live, kept, within=within)


def test_labels_of_documents_and_of_rows_in_every_form(model, store, tmp_path):
    words = ["even" if number % 2 == 0 else "odd" for number in range(DOCUMENTS)]
    numbers = torch.arange(DOCUMENTS) % 2
    np.save(tmp_path / "parity.npy", numbers.numpy())
    with (tmp_path / "parity.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["label"], *([word] for word in words)])
    places = store.places()
    forms = [numbers, numbers.bool().int(), words, tmp_path / "parity.npy", str(tmp_path / "parity.csv")]
    results = [probing(model, store=store, labels=form, position="last", **SHORT) for form in forms]
    for result in results[1:]:
        assert torch.equal(result.accuracy, results[0].accuracy)
    assert results[2].classes == results[4].classes == ["even", "odd"] and results[3].question == "parity"
    assert sum(results[0].choices["rows"]) == DOCUMENTS
    by_row = stored(model, store, numbers[places.document])
    by_document = stored(model, store, numbers, position="all")
    assert torch.equal(by_row.rows, by_document.rows) and torch.equal(by_row.labels, by_document.labels)
    holes = torch.where(torch.arange(DOCUMENTS) < 6, -1, numbers)
    assert set(stored(model, store, holes, position="last").inputs.tolist()) == set(range(6, DOCUMENTS))


def test_positions(model, store):
    labels, places = torch.arange(DOCUMENTS) % 2, store.places()
    acts = dict(zip(SITES, store[SITES].rows(0, store.rows)))
    for position, rows in (("last", places.position == 31), (5, places.position == 5)):
        seen = stored(model, store, labels, position=position).answered(model, SITES)
        order = places.document[rows].argsort()
        assert torch.equal(seen.acts[SITES[1]], acts[SITES[1]][rows][order])
        assert torch.equal(seen.labels, labels)
    mean = stored(model, store, labels, position="mean").answered(model, SITES).acts[SITES[0]]
    assert torch.allclose(mean[3], acts[SITES[0]][places.document == 3].mean(0), atol=1e-5)
    each = probing(model, store=store, position="each", **SHORT | {"kind": "mass_mean"})
    live = probing(model, position="each", **SHORT | {"kind": "mass_mean"})
    alike(live, each, within=1e-4)
    assert each.positions == live.positions and len(each.sites) == 2 * len(set(each.positions))
    at = each.positions[1]
    assert isinstance(at, int) and torch.equal(each.probe(SITES[0], at).weight, each.weights[1])
    assert set(each.positions).isdisjoint(each.choices["positions_left_out"])
    assert len(each.figure().to_json()) and f"at position {each.positions[each.best]} by a" in each.summary()


def test_a_sample_is_of_whole_contexts_and_a_function_of_the_seed(model, store):
    few, again, other = (stored(model, store, "repeated", rows=330, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(few.rows, again.rows) and not torch.equal(few.rows, other.rows)
    assert few.inputs.unique(return_counts=True)[1].tolist() == [30] * 10
    with pytest.raises(vs.VesaliusError, match="3 rows were asked for; a context .* has 31"):
        stored(model, store, "repeated", rows=3)


def test_classes_of_tokens_and_labels_of_texts(tmp_path, small_network):
    reader = vs.load(str(small_network))
    texts = [{"text": f"The {noun} was {word} {n}, I say.", "label": word} for n in range(9)
             for noun in ("film", "meal") for word in ("great", "awful")]  # fmt: skip
    path = tmp_path / "moods.jsonl"
    path.write_text("\n".join(map(json.dumps, texts)))
    kept = harvest(reader, path, "resid_post@1", to=tmp_path / "acts", length=16)
    classes = stored(reader, kept, "next_class")
    tokens = kept.places_of(classes.rows.numpy()).token
    assert tokens is not None
    strings = reader.strings(tokens)
    following = {"The": "word", " was": "word", ",": "word", " I": "word"}
    for string, label, known in zip(strings, classes.labels.tolist(), classes.rows.tolist()):
        assert classes.classes[label] == following.get(string, classes.classes[label]), (string, known)
    result = probing(reader, store=kept, labels=path, kind="ridge", twins=1)
    assert result.classes == ["awful", "great"] and result.choices["position"] == "last"
    assert len(set(stored(reader, kept, path).inputs.tolist())) == len(stored(reader, kept, path).labels) > 30
    path.write_text(path.read_text().replace("film", "book"))
    with pytest.raises(vs.VesaliusError, match="not those that"):
        probing(reader, store=kept, labels=path)


def test_a_store_of_pictures(tmp_path):
    model, given = curve_network(), {"kind": "ridge", "twins": 1, "n_images": 48, "images": "shapes:48"}
    live = probing(model, sites=model.layer_sites()[0], **given)
    kept = harvest(model, open_images("shapes:48"), live.sites, to=tmp_path / "acts", dtype="float32")
    alike(live, probing(model, store=kept, **given), within=1e-4)
    labels = torch.arange(48) % 2
    without = probing(model, store=kept, labels=labels, kind="ridge")
    assert without.choices["twins"] == "none" and without.twins.shape == (0, 1)
    assert without.headlines() and without.figure().to_json()
    with pytest.raises(vs.VesaliusError, match="other pictures than shapes"):
        probing(model, store=kept)


def test_what_cannot_be_is_said_in_a_sentence(model, store, tmp_path):
    other = random_attn(d_vocab=model.d_vocab, seed=5)
    for call, said in (
        (lambda: probing(other, store=store), "other weights"),
        (
            lambda: probing(model, store=store, labels=torch.zeros(7)),
            "7 labels; expected one for each of the 24",
        ),
        (lambda: probing(model, store=store, labels=torch.zeros(24, dtype=torch.long)), "every label is '0'"),
        (lambda: probing(model, store=store, labels=torch.rand(24)), "whole numbers or words"),
        (lambda: probing(model, store=store, sites="mlp_out@0"), "no .*mlp_out|is not in"),
        (lambda: probing(model, store=store, sites="attn_out@0"), "'attn_out@0' is not in"),
        (lambda: probing(model, store=store, labels="repeats"), "no question.*nearest is repeated"),
        (lambda: probing(model, store=store, position="mean"), "asked of every token"),
        (lambda: probing(model, store=store, position="lost"), "expected auto, all, last"),
        (lambda: probing(model, store=store, position=99), "no row at position 99"),
        (lambda: probing(model, position=99), "no input is asked 'repeated' at position 99"),
        (lambda: probing(model, store=store, text="a b"), "a text and a store"),
        (lambda: probing(model, labels=torch.zeros(3)), "expected store="),
        (lambda: probing(model, store=tmp_path / "no"), "does not exist"),
    ):
        with pytest.raises(vs.VesaliusError, match=said):
            call()
