"""What lies in a store is what the network computed, whatever stopped the harvest on the way."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from architectures_tiny import TINY, randomised

import vesalius as vs
from vesalius.access import record
from vesalius.architectures.toy import ToyTransformer
from vesalius.data.images import open_images
from vesalius.errors import VesaliusError
from vesalius.latents.inputs import activations_of, inputs_of
from vesalius.store import harvest, open_store
from vesalius.store.covariance import Covariance, Density
from vesalius.store.folder import LocalFolder
from vesalius.store.precision import LEVELS
from vesalius.store.reducers import Moments, TopExamples, restore
from vesalius.testbed import curve_network

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


# ----------------------------------------------------------------------------------------- stopped, damaged, full


class Killed(BaseException):
    """What no code of ours catches."""


def test_stopped_at_any_write_it_ends_with_the_same_bytes(model, tmp_path, monkeypatch):
    given = dict(shard_rows=60, batch=2, per_context=7, reducers={"moments": Moments})
    harvest(model, IDS, SITES, to=tmp_path / "whole", **given)
    wanted, write, stops = digests(tmp_path / "whole"), LocalFolder.write, 0
    for stop in range(len(wanted) + 6):
        left = [stop]

        def dying(folder, name, parts, left=left):
            left[0] -= 1
            if left[0] < 0:
                (folder.path / f".{name}-x.partial").write_bytes(b"half")
                raise Killed
            write(folder, name, parts)

        monkeypatch.setattr(LocalFolder, "write", dying)
        to = tmp_path / f"stopped-{stop}"
        to.mkdir()
        try:
            harvest(model, IDS, SITES, to=to, **given)
        except Killed:
            stops += 1
        monkeypatch.setattr(LocalFolder, "write", write)
        store = harvest(model, IDS, SITES, to=to, **given)
        assert digests(to) == wanted and not list(to.glob(".*")), f"stopped at write {stop}"
    assert stops >= len(wanted), "every file was once the last"
    assert store.verify() == []


SCRIPT = """
import sys, torch, vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.store import harvest
module = ToyTransformer(n_layers=2, d_model=32, n_heads=2, d_vocab=40, n_ctx=32, d_mlp=64, seed=1)
ids = torch.randint(1, 40, (600, 32), generator=torch.Generator().manual_seed(0))
print("ready", flush=True)
sys.stdin.readline()
harvest(vs.Model(module, bos=0), ids, ["resid_post@0", "neurons@1"], to=sys.argv[1], shard_rows=640, batch=8)
print("done", flush=True)
"""


def harvested(folder: Path, *, kill_after: float | None) -> tuple[int, float]:
    """Harvest in a process of its own, which may be killed; its exit code, and seconds from its start to its end."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        started = time.perf_counter()
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        return process.wait(), time.perf_counter() - started


@pytest.mark.slow
def test_killed_at_random_moments_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    code, seconds = harvested(tmp_path / "whole", kill_after=None)
    assert code == 0
    draw, codes, shards = random.Random(0), [], []
    for _ in range(6):
        codes.append(harvested(tmp_path / "killed", kill_after=draw.uniform(0, seconds / 3))[0])
        shards.append(len(list((tmp_path / "killed").glob("0*.safetensors"))))
    assert codes.count(-signal.SIGKILL) >= 3 and shards == sorted(shards), "what is whole stays"
    assert harvested(tmp_path / "killed", kill_after=None)[0] == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "emptied"])
def test_a_damaged_shard_is_named_and_made_anew_alone(model, tmp_path, damage):
    given = dict(to=tmp_path, shard_rows=50)
    store = harvest(model, IDS, SITES, **given)
    wanted, file = digests(tmp_path), tmp_path / "000002.safetensors"
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in wanted if name.startswith("0")}
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(data[:-100])
    elif damage == "flipped":
        data[-50] ^= 1
        file.write_bytes(data)
    elif damage == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
    (told,) = open_store(tmp_path).verify()
    assert "000002.safetensors" in told
    if damage != "flipped":
        with pytest.raises(VesaliusError, match=r"000002\.safetensors"):
            open_store(tmp_path)["neurons@1"]
    store = harvest(model, IDS, SITES, **given)
    assert store.verify() == [] and digests(tmp_path) == wanted
    remade = [name for name, time in times.items() if (tmp_path / name).stat().st_mtime_ns != time]
    assert remade == ["000002.safetensors"]


def test_a_full_disk_is_one_sentence_and_a_store_that_goes_on(model, tmp_path, monkeypatch):
    sync, left = os.fsync, [12]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VesaliusError, match="no space left for .* run the same again"):
        harvest(model, IDS, SITES, to=tmp_path, shard_rows=50)
    monkeypatch.setattr(os, "fsync", sync)
    assert not list(tmp_path.glob(".*")) and 0 < len(list(tmp_path.glob("0*"))) < 6
    with pytest.raises(VesaliusError, match="stopped after .* of 6 shards; run it again"):
        open_store(tmp_path)
    assert harvest(model, IDS, SITES, to=tmp_path, shard_rows=50).verify() == []


# --------------------------------------------------------------------------------------------------- other inputs


def test_a_store_of_something_else_is_refused(model, tmp_path):
    harvest(model, IDS, SITES, to=tmp_path, shard_rows=50)
    with pytest.raises(VesaliusError, match="model_hash"):
        harvest(model.random_twin(0), IDS, SITES, to=tmp_path, shard_rows=50)
    with pytest.raises(VesaliusError, match="dtype float16, and int8"):
        harvest(model, IDS, SITES, to=tmp_path, shard_rows=50, dtype="int8")
    with pytest.raises(VesaliusError, match="data_hash"):
        harvest(model, IDS.flip(0), SITES, to=tmp_path, shard_rows=50)
    store = open_store(tmp_path)
    assert store.verify() == [], "what lay there is not touched"
    assert store.of(model.hash) is store
    with pytest.raises(VesaliusError, match="other weights"):
        store.of(model.random_twin(0).hash)
    with pytest.raises(VesaliusError, match=r"neurons@0.*nearest is neurons@1"):
        store["neurons@0"]


@pytest.mark.parametrize("file", ["data.pt", "notes.md"])
def test_folders_of_other_things_are_refused(model, tmp_path, file):
    (tmp_path / file).write_text("x")
    with pytest.raises(VesaliusError, match="pickles" if file == "data.pt" else "no manifest"):
        open_store(tmp_path)
    with pytest.raises(VesaliusError, match="is no activation store"):
        harvest(model, IDS, SITES, to=tmp_path)
    assert (tmp_path / file).read_text() == "x"


def test_mixed_widths_and_dtypes_are_named(model, tmp_path):
    harvest(model, IDS, SITES, to=tmp_path / "a", shard_rows=50)
    harvest(model, IDS, SITES, to=tmp_path / "b", shard_rows=50, dtype="float32")
    (tmp_path / "a/000001.safetensors").write_bytes((tmp_path / "b/000001.safetensors").read_bytes())
    with pytest.raises(VesaliusError, match=r"000001.*float32.*manifest says torch\.float16"):
        open_store(tmp_path / "a")["neurons@1"]
    assert "not the file of the manifest" in open_store(tmp_path / "a").verify()[0]


def test_rows_that_are_not_finite_are_refused_or_counted(tmp_path):
    module = ToyTransformer(n_layers=1, d_model=8, n_heads=2, d_vocab=40, n_ctx=12, seed=1)
    module.embed.weight.data[7] = torch.nan
    model = vs.Model(module, bos=0, name="broken")
    with pytest.raises(VesaliusError, match="NaN or infinite"):
        harvest(model, IDS, "embed", to=tmp_path / "a")
    store = harvest(model, IDS, "embed", to=tmp_path / "a2", nonfinite="drop", shard_rows=50)
    assert store.dropped == int((IDS == 7).sum()) > 0 and store.rows + store.dropped == 23 * 11
    assert store["embed"].rows(0, store.rows)[0].isfinite().all() and (store.places().token != 7).all()
    module.embed.weight.data[7] = 1e5
    big = vs.Model(module, bos=0, name="large")
    with pytest.raises(VesaliusError, match="beyond the 65,504 of float16"):
        harvest(big, IDS, "embed", to=tmp_path / "b")
    assert harvest(big, IDS, "embed", to=tmp_path / "c", dtype="bfloat16").rows == 253


def test_sites_that_give_no_rows_are_refused(model, tmp_path):
    with pytest.raises(VesaliusError, match="a value for each head"):
        harvest(model, IDS, "pattern@0", to=tmp_path)
    assert harvest(model, IDS, "z@0[1]", to=tmp_path).widths == (8,)
    with pytest.raises(VesaliusError, match="nearest"):
        harvest(model, IDS, "blocks.0.mlq", to=tmp_path / "other")
    with pytest.raises(VesaliusError, match="expected at least 1"):
        harvest(model, IDS, "embed", to=tmp_path / "other", batch=0)


def test_maps_of_pictures_become_rows(tmp_path):
    model = curve_network()
    site = model.layer_sites()[0]
    store = harvest(model, "shapes:9", site, to=tmp_path, dtype="float32", shard_rows=5000, batch=2)
    channels, height, width = model.map_shape(site)
    assert store.rows == 9 * height * width and store.widths == (channels,)
    places = store.places()
    with torch.no_grad(), record(model, site) as acts:
        model(torch.stack([open_images("shapes:9").fitted(n, model.pictures) for n in range(9)]))
    wanted = acts[site][places.document, :, places.position // width, places.position % width]
    assert torch.allclose(store[site].rows(0, store.rows)[0], wanted, atol=1e-5) and places.token is None
    some = harvest(model, "shapes:9", site, to=tmp_path / "some", per_context=3)
    assert some.places().document.bincount().tolist() == [3] * 9


def test_the_class_token_of_a_vision_transformer_is_left_out(tmp_path):
    pytest.importorskip("transformers")
    fit = vs.Preprocessing((8, 8))
    model = vs.Model(randomised(TINY["vit"][0]()), name="vit", preprocessing=fit)
    sites = ["resid_post@0", "neurons@1"]
    store = harvest(model, "shapes:5", sites, to=tmp_path / "patches", dtype="float32")
    whole = harvest(model, "shapes:5", sites, to=tmp_path / "all", dtype="float32", include_special=True)
    assert (store.rows, whole.rows) == (5 * 16, 5 * 17)
    assert set(store.places().position.tolist()) == set(range(1, 17)) and 0 in whole.places().position
    with torch.no_grad(), record(model, sites) as acts:
        model(torch.stack([open_images("shapes:5").fitted(n, fit) for n in range(5)]))
    rows = torch.cat([part.rows for part in activations_of(model, sites[0], inputs_of(model, n_images=5))])
    assert rows.shape == (5 * 16, 24)  # as what is asked of a dictionary reads them
    for one in (store, whole):
        places = one.places()
        for site in sites:
            wanted = acts[site][places.document, places.position]
            assert torch.allclose(one[site].rows(0, one.rows)[0], wanted, atol=1e-5)


def letters(*special):
    """A tokenizer of letters, after some special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def test_special_tokens_of_a_tokenizer_are_left_out(tmp_path):
    pytest.importorskip("transformers")
    tokenizer = letters("[PAD]", "[CLS]", "[SEP]")
    model = vs.Model(randomised(TINY["bert"][0]()), name="bert", tokenizer=tokenizer)
    ids = torch.tensor([[1, 4, 5, 6, 2, 0], [1, 7, 8, 2, 0, 0]])
    store = harvest(model, ids, "resid_post@0", to=tmp_path / "words")
    assert sorted(store.places().token.tolist()) == [4, 5, 6, 7, 8]
    whole = harvest(model, ids, "resid_post@0", to=tmp_path / "all", include_special=True)
    assert whole.rows == 12


@pytest.mark.parametrize("kind", ["binary", "struct"])
def test_pictures_in_parquet_are_those_of_a_folder(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    from PIL import Image
    from pyarrow import parquet

    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(7):
        pixels = (open_images("shapes:7")[number] * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = [(folder / f"{number}.png").read_bytes() for number in range(7)]
    cells = data if kind == "binary" else [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(data)]
    (tmp_path / "table").mkdir()
    table = pyarrow.table({"image": cells, "label": list(range(7))})
    parquet.write_table(table, tmp_path / "table/train-0.parquet", row_group_size=3)
    model = curve_network()
    site = model.layer_sites()[0]
    given = dict(per_context=4, dtype="float32", batch=3)
    wanted = harvest(model, folder, site, to=tmp_path / "a", **given)
    for number, source in enumerate((tmp_path / "table", tmp_path / "table/train-0.parquet")):
        store = harvest(model, source, site, to=tmp_path / f"b{number}", **given)
        assert store.plan.data_hash == wanted.plan.data_hash and store.shards == wanted.shards
    parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "none.parquet")
    with pytest.raises(VesaliusError, match=r"columns label \(int64\); expected exactly one of pictures"):
        harvest(model, tmp_path / "none.parquet", site, to=tmp_path / "c")
    cells[2] = b"broken" if kind == "binary" else {"bytes": None, "path": "nowhere.png"}
    parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "damaged.parquet")
    assert list(open_images(tmp_path / "damaged.parquet").skipped) == ["damaged.parquet row 2"]


def test_contexts_of_a_corpus_are_mixed_and_keep_their_documents(tmp_path):
    module = ToyTransformer(n_layers=1, d_model=8, n_heads=2, d_vocab=27, n_ctx=6, seed=1)
    model = vs.Model(module, bos=0, name="letters", tokenizer=letters("[BOS]"))
    texts = [chr(97 + number % 26) * 5 for number in range(300)]
    store = harvest(model, texts, "embed", to=tmp_path, length=6, shard_rows=50)
    places = store.places(0, store.rows)
    assert torch.equal(places.token, torch.tensor([1 + n % 26 for n in places.document.tolist()]))
    first = store.places(0, store.shards[0].rows).document
    assert first.max() - first.min() > 150, "a shard is a sample of the whole corpus"
    assert sorted(places.document.unique().tolist()) == list(range(300))


# ------------------------------------------------------------------------------------------------------ reducers


def test_reducers_see_what_is_stored(model, tmp_path):
    makers = {
        "moments": Moments,
        "top": lambda units: TopExamples(units, 3),
        "covariance": Covariance,
        "density": Density,
    }
    store = harvest(model, IDS, SITES, to=tmp_path, shard_rows=50, reducers=makers)
    (rows,) = store["neurons@1"].rows(0, store.rows)
    moments, top, covariance, density = (make(24) for make in makers.values())
    for name, reducer in zip(makers, (moments, top, covariance, density)):
        restore(reducer, store.reduced(name, "neurons@1"))
    assert torch.allclose(moments.mean, rows.double().mean(0), atol=1e-6)
    assert torch.allclose(moments.variance, rows.double().var(0, correction=0), rtol=1e-5)
    assert torch.allclose(covariance.covariance, rows.double().T.cov(correction=0), atol=1e-6)
    assert torch.allclose(density.density, (rows > 0).double().mean(0))
    assert torch.equal(top.values, rows.T.topk(3).values)
    assert top.examples.max() < 23 * 12
    with pytest.raises(VesaliusError, match="nearest is moments"):
        store.reduced("moment", "neurons@1")
