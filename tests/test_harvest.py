"""What lies in a store is what the network computed, whatever stopped the harvest on the way."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import vesalius as vs
from vesalius.access import record
from vesalius.architectures.toy import ToyTransformer
from vesalius.errors import VesaliusError
from vesalius.store import harvest, open_store
from vesalius.store.precision import LEVELS

SITES = ["resid_post@0", "neurons@1"]
IDS = torch.randint(1, 40, (23, 12), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = 0


@pytest.fixture(scope="module")
def model():
    module = ToyTransformer(n_layers=2, d_model=16, n_heads=2, d_vocab=40, n_ctx=12, d_mlp=24, seed=1)
    return vs.Model(module, bos=0, name="toy")


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if not file.name.startswith(".")
    }


def expected(model, site, store, **given):
    """The values at the places of all rows, straight from one forward."""
    with torch.no_grad(), record(model, site) as acts:
        model(IDS)
    places = store.places()
    return acts[site][places.context, places.position]


@pytest.mark.parametrize(
    ("dtype", "near"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 2e-2)]
)
def test_rows_are_the_activations_at_their_places(model, tmp_path, dtype, near):
    store = harvest(model, IDS, SITES, to=tmp_path, dtype=dtype, shard_rows=50, batch=3)
    assert store.sites == tuple(SITES) and store.widths == (16, 24) and len(store.plan.sites) == 2
    assert store.rows == 23 * 11, "all but BOS"
    assert len(store.shards) == 6 and store.verify() == []
    for site in SITES:
        (rows,) = store[site].rows(0, store.rows)
        wanted = expected(model, site, store)
        assert (rows - wanted).abs().max() <= near * wanted.abs().max()
    places = store.places()
    assert (places.token == IDS[places.context, places.position]).all()
    assert (places.token != 0).all()
    keys = places.context * 12 + places.position
    assert len(keys.unique()) == store.rows, "no row twice"
    assert (keys.sort().values != keys).any(), "permuted within the shards"


def test_int8_is_what_the_manifest_says(model, tmp_path):
    exact = harvest(model, IDS, "neurons@1", to=tmp_path / "exact", dtype="float32", shard_rows=50)
    store = harvest(model, IDS, "neurons@1", to=tmp_path / "eight", dtype="int8", shard_rows=50)
    (wanted,), (rows,) = exact["neurons@1"].rows(0, 253), store["neurons@1"].rows(0, 253)
    scale = wanted.abs().amax(1, keepdim=True) / LEVELS
    assert torch.equal(rows, (wanted / scale).round() * scale)
    assert (
        "largest magnitude of the row / 127"
        in json.loads((tmp_path / "eight/manifest.json").read_text())["stored"]
    )


def test_special_tokens_and_a_sample_of_each_context(model, tmp_path):
    whole = harvest(model, IDS, "resid_post@0", to=tmp_path / "whole", include_special=True, shard_rows=50)
    assert whole.rows == 23 * 12 and (whole.places().position == 0).sum() == 23
    some = harvest(model, IDS, "resid_post@0", to=tmp_path / "some", per_context=4, shard_rows=50)
    places = some.places()
    assert places.context.bincount().tolist() == [4] * 23 and (places.position > 0).all()
    assert len(places.position.unique()) == 11, "drawn from all positions"
    other = harvest(model, IDS, "resid_post@0", to=tmp_path / "other", per_context=4, shard_rows=90)
    keys = [sorted((s.places().context * 12 + s.places().position).tolist()) for s in (some, other)]
    assert keys[0] == keys[1], "the sample does not depend on the cut"
