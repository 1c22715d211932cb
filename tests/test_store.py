"""A store gives the same rows whatever it lies on and however it is read, and goes on where a run was stopped."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.data.corpora import contexts, open_corpus
from vesalius.dictionaries.rows import Rows
from vesalius.errors import VesaliusError
from vesalius.store import StoredRows, harvest, open_store
from vesalius.store.order import run_of

SITES = ["embed", "resid_post@0"]
IDS = torch.randint(1, 40, (200, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return vs.Model(
        ToyTransformer(n_layers=1, d_model=8, n_heads=2, d_vocab=40, n_ctx=12, seed=1), name="toy"
    )


@pytest.fixture(scope="module", params=["float16", "int8"])
def store(model, request, tmp_path_factory):
    return harvest(model, IDS, SITES, to=tmp_path_factory.mktemp("acts"), dtype=request.param, shard_rows=500)


def test_mapped_and_read_in_ranges_are_the_same(store):
    mapped, ranged = (StoredRows(store, ("embed", "resid_post@0"), mapped=how) for how in (True, False))
    assert isinstance(store[SITES], Rows) and mapped.mapped and not ranged.mapped
    for step in (0, 1, 2, 11, 5, 40):
        for a, b in zip(mapped.batch(step, 170, seed=4), ranged.batch(step, 170, seed=4), strict=True):
            assert torch.equal(a, b) and a.dtype == torch.float32 and a.shape == (170, 8)
    assert all(torch.equal(a, b) for a, b in zip(mapped.rows(400, 1300), ranged.rows(400, 1300)))
    assert store.rows == 2400 and mapped.run == run_of(store.plan.contexts_per_shard) == 10
    before = mapped.batch(0, 170)[0].clone()
    mapped.batch(0, 170)[0].zero_()
    assert torch.equal(mapped.batch(0, 170)[0], before), "what is handed out is not what is kept"


def test_each_row_comes_once_in_an_epoch_and_sites_stay_together(store):
    rows = store[SITES]
    batches = [
        torch.cat(rows.batch(step, 80, seed=2, rank=rank, world=3), 1)
        for rank in range(3)
        for step in range(10)
    ]
    seen, wanted = torch.cat(batches), torch.cat(rows.rows(0, 2400), 1)
    assert torch.equal(sorted_rows(seen), sorted_rows(wanted))


def test_a_run_that_was_stopped_goes_on_with_the_same_rows(store):
    whole = [store["embed"].batch(step, 333, seed=1)[0] for step in range(12)]
    again = open_store(store.folder.place)["embed"]
    assert all(torch.equal(again.batch(step, 333, seed=1)[0], whole[step]) for step in range(7, 12))
    assert not torch.equal(again.batch(0, 333, seed=2)[0], whole[0])


def test_a_store_behind_a_url_is_the_same(model, store, tmp_path):
    pytest.importorskip("fsspec")
    place = f"memory://acts-{store.plan.dtype}"
    remote = harvest(model, IDS, SITES, to=place, dtype=store.plan.dtype, shard_rows=500)
    assert remote.verify() == [] and [shard.sha256 for shard in remote.shards] == [
        s.sha256 for s in store.shards
    ]
    assert not remote["embed"].mapped
    assert torch.equal(remote["embed"].batch(3, 100)[0], store["embed"].batch(3, 100)[0])
    assert torch.equal(remote.places(450, 600).token, store.places(450, 600).token)
    with pytest.raises(VesaliusError, match="cannot be opened"):
        open_store("nowhere://acts")


class Files(SimpleHTTPRequestHandler):
    """A folder over HTTP, and ranges of its files."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        data = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[first : last + 1])


def test_a_store_behind_http_is_read_in_ranges(model, store):
    pytest.importorskip("aiohttp")
    pytest.importorskip("fsspec")
    handler = partial(Files, directory=store.folder.place)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        remote = open_store(place)
        assert torch.equal(remote["embed"].batch(3, 100)[0], store["embed"].batch(3, 100)[0])
        with pytest.raises(VesaliusError, match="can only be read"):
            remote.folder.write("x", [b"x"])
        server.shutdown()


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(VesaliusError, match="does not exist"):
        open_store(tmp_path / "nothing")


def sorted_rows(rows):
    order = (
        rows.double() @ torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).double()
    ).argsort()
    return rows[order]


# ------------------------------------------------------------------------------------------------------- corpora


class Letters:
    """A model that reads a letter as a token, 0 before each text."""

    n_ctx, d_vocab, bos, kinds = 16, 128, 0, frozenset({"tokens"})

    def tokens(self, text):
        return torch.tensor([[0, *map(ord, text)]])


def test_documents_of_all_kinds(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.jsonl").write_text('{"text": "zero"}\n\n{"text": "one"}\n')
    parquet.write_table(pyarrow.table({"text": ["three", None], "n": [1, 2]}), tmp_path / "c.parquet")
    corpus = open_corpus(tmp_path)
    assert list(corpus) == ["zero", "one", "two", "three", ""] == list(corpus), (
        "as often as they are asked for"
    )
    assert list(open_corpus(tmp_path / "b.txt")) == ["two"] and list(open_corpus("a text")) == ["a text"]
    assert (
        corpus.fingerprint(3) == open_corpus(["zero", "one", "two"]).fingerprint(3) != corpus.fingerprint(2)
    )


def test_contexts_are_cut_from_one_stream_and_know_their_documents():
    parts = list(contexts(Letters(), open_corpus(["abcde", "", "fg", "hijk"]), length=5))
    ids, documents = (torch.cat([torch.tensor(part[n]) for part in parts]).tolist() for n in (0, 1))
    assert ids == [[0, *map(ord, "abcd")], [0, ord("e"), 0, *map(ord, "fg")], [0, 0, *map(ord, "hij")]]
    assert documents == [[0] * 5, [0, 0, 2, 2, 2], [3] * 5]
    (limited,) = contexts(Letters(), open_corpus(["abcdefghijkl"]), length=5, limit=2)
    assert len(limited[0]) == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nowhere.txt", "does not exist"),
        ([{"body": "x"}], "the fields body"),
        ([3], "row 0 of list is int"),
        (iter(["x"]), "only once"),
        ({"train": ["x"]}, "train were given under their names; expected one"),
    ],
)
def test_bad_corpora_are_one_sentence(given, told, tmp_path):
    with pytest.raises(VesaliusError, match=told):
        list(open_corpus(given))


def test_a_column_that_is_not_there_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"texts": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(VesaliusError, match=r"no column 'text'.*nearest is texts"):
        list(open_corpus(tmp_path / "a.parquet"))
    assert list(open_corpus(tmp_path / "a.parquet", field="texts")) == ["x"]
    (tmp_path / "b.jsonl").write_text("{oh\n")
    with pytest.raises(VesaliusError, match="not JSON"):
        list(open_corpus(tmp_path / "b.jsonl"))
