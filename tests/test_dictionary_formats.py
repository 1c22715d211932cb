"""Dictionaries that other packages wrote compute what those packages compute; what is no dictionary is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.formats.dictionaries import read_dictionary

HOME = Path(__file__).parent / "data" / "dictionaries"
WRITTEN = sorted(folder.parent.relative_to(HOME) for folder in HOME.glob("*/*/expected.safetensors"))


def check(folder: Path) -> SparseDictionary:
    """Codes and reconstructions equal to those of the package that wrote it."""
    found, expected = read_dictionary(folder), load_file(folder / "expected.safetensors")
    torch.testing.assert_close(found.encode(expected["rows"]), expected["codes"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.codes(expected["rows"]).dense(), expected["codes"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.reconstruct(expected["rows"]), expected["made"], atol=1e-5, rtol=1e-5)
    assert (expected["codes"] > 0).any() and (expected["codes"] == 0).any()
    return found


@pytest.mark.parametrize("folder", WRITTEN, ids=str)
def test_what_a_package_wrote_computes_the_same(folder):
    found = check(HOME / folder)
    if "transcoder" in folder.name:
        assert (found.source, found.site) == ("mlp_in@1", "mlp_out@1")
    else:
        assert found.site in ("resid_pre@1", "resid_post@1")


def test_every_kind_is_among_them():
    assert len(WRITTEN) == 15


@pytest.mark.slow
def test_what_the_installed_packages_write_today_computes_the_same(tmp_path):
    """With VESALIUS_PEERS naming a Python that has sae-lens and dictionary-learning."""
    python = os.environ.get("VESALIUS_PEERS", "")
    if not python:
        pytest.skip("VESALIUS_PEERS names no Python with sae-lens and dictionary-learning")
    subprocess.run([python, HOME / "written_by_their_packages.py", tmp_path], check=True)
    folders = [file.parent for file in tmp_path.glob("*/*/expected.safetensors")]
    assert len(folders) == len(WRITTEN)
    for folder in folders:
        check(folder)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_gemma_scope_is_a_threshold_for_each_latent(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    parts = {"W_enc": drawn(6, 12), "W_dec": drawn(12, 6, seed=1), "b_enc": drawn(12), "b_dec": drawn(6)}
    parts["threshold"] = drawn(12, seed=2).abs()
    np.savez(folder / "params.npz", **{name: part.numpy() for name, part in parts.items()})
    found, rows = read_dictionary(folder), drawn(30, 6, seed=3)
    assert (found.site, found.source) == ("resid_post@20", "")
    before = rows @ parts["W_enc"] + parts["b_enc"]
    codes = before.relu() * (before > parts["threshold"])
    torch.testing.assert_close(found.encode(rows), codes)
    torch.testing.assert_close(found.reconstruct(rows), codes @ parts["W_dec"] + parts["b_dec"])
    with pytest.raises(VesaliusError, match="which activations it is of"):
        (tmp_path / "params.npz").write_bytes((folder / "params.npz").read_bytes())
        read_dictionary(tmp_path)
    assert read_dictionary(tmp_path, site="resid_post@3").site == "resid_post@3"


def test_gemma_scope_2_has_a_way_around(tmp_path):
    parts = {"w_enc": drawn(6, 12), "w_dec": drawn(12, 6, seed=1), "b_enc": drawn(12), "b_dec": drawn(6)}
    parts |= {"threshold": drawn(12).abs(), "affine_skip_connection": drawn(6, 6, seed=5)}
    save_file(parts, tmp_path / "params.safetensors")
    found, rows = read_dictionary(tmp_path, site="mlp_out@1", source="mlp_in@1"), drawn(30, 6, seed=3)
    before = rows @ parts["w_enc"] + parts["b_enc"]
    made = before.relu() * (before > parts["threshold"]) @ parts["w_dec"] + parts["b_dec"]
    torch.testing.assert_close(found.reconstruct(rows), made + rows @ parts["affine_skip_connection"])


@pytest.mark.parametrize("activation", ["relu", "topk", "jump_relu"])
def test_circuit_tracer_says_hooks_and_activation_beside_the_layers(tmp_path, activation):
    (tmp_path / "config.yaml").write_text(
        "model_kind: transcoder_set\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: 'hook_mlp_out'\n"
        f"activation: {activation}\nk: 3\ntranscoders:\n  - hf://somewhere/else\n"
    )
    parts = {"W_enc": drawn(12, 6), "W_dec": drawn(12, 6, seed=1), "b_enc": drawn(12), "b_dec": drawn(6)}
    parts["W_skip"] = drawn(6, 6, seed=5)
    if activation == "jump_relu":
        parts["activation_function.threshold"] = drawn(12, seed=6).abs()
    save_file(parts, tmp_path / "layer_2.safetensors")
    found, rows = read_dictionary(tmp_path), drawn(30, 6, seed=3)
    assert (found.source, found.site) == ("resid_mid@2", "mlp_out@2")
    before = rows @ parts["W_enc"].T + parts["b_enc"]
    codes = {
        "relu": before.relu(),
        "topk": before.relu() * (before >= before.topk(3).values[:, -1:]),
        "jump_relu": before * (before > parts.get("activation_function.threshold", before)),
    }[activation]
    torch.testing.assert_close(found.encode(rows), codes)
    made = codes @ parts["W_dec"] + parts["b_dec"] + rows @ parts["W_skip"].T
    torch.testing.assert_close(found.reconstruct(rows), made)
    save_file(parts, tmp_path / "layer_3.safetensors")
    with pytest.raises(VesaliusError, match="holds 2 dictionaries"):
        read_dictionary(tmp_path)
    assert read_dictionary(tmp_path / "layer_3.safetensors").site == "mlp_out@3"


def test_our_own_comes_back_as_it_was(tmp_path):
    made = SparseDictionary.of_directions("neurons@0", drawn(12, 6), k=2)
    assert read_dictionary(made.save(tmp_path / "one")).hash == made.hash
    made.save(tmp_path / "folder" / "dictionary")
    assert (
        read_dictionary(tmp_path / "folder").hash == read_dictionary(str(tmp_path / "one")).hash == made.hash
    )


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


def refused(path: Path, words: str) -> None:
    with pytest.raises(VesaliusError, match=words) as raised:
        read_dictionary(path)
    assert "\n" not in str(raised.value)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "sae.pkl").write_bytes(pickle.dumps({"W_enc": [1.0]}))
    (tmp_path / "sae.pt").write_bytes(pickle.dumps(Harmful()))
    refused(tmp_path / "sae.pkl", "is a pickle, which may run anything")
    refused(tmp_path / "sae.pt", "is a pickle, which may run anything")
    folder = tmp_path / "harmful"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    torch.save({"encoder.weight": Harmful()}, folder / "ae.pt")
    refused(folder, "more than tensors")
    (folder / "ae.pt").write_bytes(b"torn")
    refused(folder, "is torn, or a bare pickle")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Harmful()], dtype=object))
    refused(tmp_path / "params.npz", "arrays of numbers")


def test_what_cannot_be_opened_says_why(tmp_path):
    refused(tmp_path / "nowhere", "no dictionary at")
    refused(tmp_path, "no dictionary in a known format")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    refused(tmp_path / "torn.safetensors", "cannot be read")
    for change, words in (
        ({"architecture": "standart"}, "the nearest is standard"),
        ({"normalize_activations": "layer_norm"}, "after 'layer_norm'"),
        ({"metadata": {}}, "which activations it is of"),
    ):
        folder = tmp_path / next(iter(change))
        folder.mkdir()
        source = HOME / "saelens" / "standard"
        (folder / "cfg.json").write_text(json.dumps(json.loads((source / "cfg.json").read_text()) | change))
        (folder / "sae_weights.safetensors").write_bytes((source / "sae_weights.safetensors").read_bytes())
        refused(folder, words)
    (folder / "cfg.json").write_text("{")
    refused(folder, "is not JSON")
    save_file({"W_dec": drawn(2, 2), "b_dec": drawn(2)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text("{}")
    refused(folder, "has no tensor 'W_enc'")


def test_nothing_of_a_pickle_runs(tmp_path):
    """In a process of its own, so that what would run is seen."""
    (tmp_path / "sae.pt").write_bytes(pickle.dumps(Harmful()))
    code = f"from vesalius.formats.dictionaries import read_dictionary as read; read({str(tmp_path / 'sae.pt')!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "VesaliusError" in ended.stderr and "harm" not in ended.stdout
