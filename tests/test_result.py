"""A result is saved whole or not at all, and read back equal."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.result import Headline, Result


@dataclass(frozen=True)
class Sample(Result):
    scores: Tensor
    eigenvalues: Tensor
    table: list
    parts: dict
    note: str | None = None

    def headlines(self):
        return [
            Headline("largest", float(self.scores.max()), control=0.1, interval=(0.5, 2.0), evidence=True)
        ]


@pytest.fixture
def sample():
    return Sample(
        scores=torch.tensor([1.0, float("nan")]),
        eigenvalues=torch.tensor([1 + 2j, 3j]),
        table=[["a", 1], ["b", 2.5]],
        parts={"inner": torch.arange(3), "deep": [torch.ones(2), {"x": torch.zeros(1)}]},
        provenance={"method": "sample", "parameters": {"seed": 0}},
    )


def test_saved_and_loaded_is_the_same(sample, tmp_path):
    loaded = Result.load(sample.save(tmp_path / "run"))
    assert isinstance(loaded, Sample)
    assert torch.equal(loaded.scores.isnan(), sample.scores.isnan())
    assert torch.equal(loaded.eigenvalues, sample.eigenvalues)
    assert torch.equal(loaded.parts["deep"][1]["x"], torch.zeros(1))
    assert loaded.table == sample.table
    assert loaded.provenance == sample.provenance
    assert Sample.load(tmp_path / "run").to_json() == sample.to_json()


def test_json_holds_only_finite_numbers(sample):
    text = json.dumps(sample.to_json(), allow_nan=False)
    assert json.loads(text)["eigenvalues"] == [[1.0, 2.0], [0.0, 3.0]]
    assert json.loads(text)["scores"] == [1.0, None]


def test_saving_again_replaces_and_saving_over_something_else_is_refused(sample, tmp_path):
    sample.save(tmp_path / "run")
    sample.save(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(VesaliusError, match="not a saved result"):
        sample.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_save_that_fails_leaves_nothing(sample, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vesalius.result.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        sample.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_old_result(sample, tmp_path, monkeypatch):
    sample.save(tmp_path / "run")
    monkeypatch.setattr("vesalius.result.save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        sample.save(tmp_path / "run")
    assert Result.load(tmp_path / "run").table == sample.table
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_damaged_or_foreign_folders_are_named(sample, tmp_path):
    folder = sample.save(tmp_path / "run")
    with pytest.raises(VesaliusError, match="not a saved result"):
        Result.load(tmp_path)
    (folder / "tensors.safetensors").write_bytes(b"short")
    with pytest.raises(VesaliusError, match="damaged"):
        Result.load(folder)
    document = json.loads((folder / "result.json").read_text())
    (folder / "tensors.safetensors").unlink()
    (folder / "result.json").write_text(json.dumps({**document, "kind": "Smaple"}))
    with pytest.raises(VesaliusError, match="nearest is Sample"):
        Result.load(folder)


def test_the_summary_prints_value_interval_control_and_verdict(sample):
    assert sample.summary() == "largest: nan [0.5, 2] (control 0.1) – evidence"


def test_a_tuple_comes_back_as_one(tmp_path):
    @dataclass(frozen=True)
    class Ranged(Result):
        bounds: tuple
        pair: tuple[float, float]
        values: list

        def headlines(self):
            return []

    kept = Ranged((1, 2), (0.5, 1.0), [1, 2])
    try:
        loaded = Result.load(kept.save(tmp_path / "ranged"))
        assert (loaded.bounds, loaded.pair, loaded.values) == ((1, 2), (0.5, 1.0), [1, 2])
    finally:
        del Result._kinds["Ranged"]


def test_a_result_opens_in_a_process_that_has_not_met_its_kind(tmp_path):
    from vesalius.testbed import handwritten_induction

    folder = vs.copying_heads(handwritten_induction()).save(tmp_path / "run")
    program = f"import vesalius as vs; print(type(vs.Result.load({str(folder)!r})).__name__)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "CopyingHeads", ran.stderr
