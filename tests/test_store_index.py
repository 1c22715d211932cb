"""The feature index says what the dense codes say, both ways, and answers questions in SQL."""

import pytest
import torch

import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.store import feature_index, harvest, open_index

IDS = torch.randint(1, 40, (30, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    model = vs.Model(
        ToyTransformer(n_layers=1, d_model=8, n_heads=2, d_vocab=40, n_ctx=12, seed=1), name="toy"
    )
    return harvest(
        model, IDS, "resid_post@0", to=tmp_path_factory.mktemp("acts"), dtype="float32", shard_rows=100
    )


@pytest.fixture(scope="module")
def dictionary():
    directions = torch.nn.functional.normalize(
        torch.randn(20, 8, generator=torch.Generator().manual_seed(2)), dim=1
    )
    return SparseDictionary.of_directions("resid_post@0", directions, k=4)


@pytest.fixture(scope="module")
def index(store, dictionary, tmp_path_factory):
    pytest.importorskip("pyarrow")
    return feature_index(store, dictionary, to=tmp_path_factory.mktemp("index"))


def test_examples_of_a_feature_are_the_strongest_rows(store, dictionary, index):
    codes = dictionary.encode(store["resid_post@0"].rows(0, store.rows)[0])
    assert index.latents == 20 and index.documents == 30
    assert torch.allclose(index.density, (codes > 0).float().mean(0))
    for feature in range(20):
        found, active = index.examples(feature, 7), int((codes[:, feature] > 0).sum())
        wanted = codes[:, feature].sort(descending=True).values[: min(7, active)]
        assert torch.allclose(found.values, wanted, rtol=2e-3)
        assert torch.allclose(codes[found.rows, feature], found.values, rtol=2e-3)
        assert (found.places.token == IDS[found.places.context, found.places.position]).all()


def test_features_of_a_document(store, dictionary, index):
    codes, documents = (
        dictionary.encode(store["resid_post@0"].rows(0, store.rows)[0]),
        store.places().document,
    )
    for document in (0, 7, 29):
        found, own = index.features(document, 100), codes[documents == document]
        assert sorted(found.features.tolist()) == (own > 0).any(0).nonzero()[:, 0].tolist()
        assert torch.allclose(found.values, own.amax(0)[found.features], rtol=2e-3)
        assert found.counts.tolist() == (own > 0).sum(0)[found.features].tolist()
        assert found.values.tolist() == sorted(found.values.tolist(), reverse=True)
    with pytest.raises(VesaliusError, match="document 30 was asked for; this index has 0 to 29"):
        index.features(30)


def test_duckdb_answers(index, store):
    pytest.importorskip("duckdb")
    again = open_index(store, index.folder.path)
    counted = dict(again.query("select feature, count(*) from features group by feature"))
    assert [counted.get(number, 0) for number in range(20)] == (
        index.density * store.rows
    ).round().int().tolist()
    (top,) = again.query("select row, value from features where feature = 3 order by value desc, row limit 1")
    assert top[0] == index.examples(3).rows[0] and top[1] == pytest.approx(index.examples(3).values[0].item())
    with pytest.raises(VesaliusError, match="DuckDB does not understand"):
        again.query("select nothing from nowhere")


def test_codes_come_back(store, dictionary, index):
    codes = dictionary.encode(store["resid_post@0"].rows(0, store.shards[0].rows)[0])
    assert torch.allclose(index.codes(0).dense(), codes, rtol=2e-3, atol=1e-4)


def test_a_dictionary_of_something_else_is_refused(store, dictionary, tmp_path):
    from dataclasses import replace

    with pytest.raises(VesaliusError, match="other weights"):
        feature_index(store, replace(dictionary, about={"model_hash": "x" * 64}), to=tmp_path)
    with pytest.raises(VesaliusError, match="nearest is resid_post@0"):
        feature_index(store, replace(dictionary, site="resid_post@1"), to=tmp_path)
    with pytest.raises(VesaliusError, match="no feature index"):
        _ = open_index(store, tmp_path).latents
