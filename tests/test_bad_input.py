"""Bad input gets one sentence: what was given, expected, the nearest valid thing. Nothing half-written stays."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vesalius as vs
from vesalius import cli


def sentence(raised: pytest.ExceptionInfo) -> str:
    """The message, which must be one sentence on one line."""
    text = str(raised.value)
    assert "\n" not in text and 10 < len(text) < 600, text
    return text


@pytest.fixture(scope="module")
def model(small_network) -> vs.Model:
    return vs.load(small_network)


@pytest.fixture
def copied(small_network, tmp_path) -> Path:
    """A copy of the small network to damage."""
    return shutil.copytree(small_network, tmp_path / "damaged")


# ----------------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zoo/attn-2", "zoo/attn-2"),
        ("zoo/attn-2l/step-7", "zoo/attn-2l"),
        ("no/such/model", "no/such/model"),
        ("./nowhere", "./nowhere"),
        ("nowhere.gguf", "nowhere.gguf"),
        ("", "the name"),
    ],
)
def test_an_unknown_model(name, said):
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(name)
    assert said in sentence(raised)


def test_a_misspelt_network_of_the_zoo_is_answered_with_the_nearest(small_network, tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))
    shutil.copytree(small_network, tmp_path / "zoo" / "small-2l")
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load("zoo/smal-2l")
    assert "the nearest is zoo/small-2l" in sentence(raised)


def test_a_folder_that_holds_no_network(tmp_path):
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(tmp_path)
    assert "config.json" in sentence(raised)


@pytest.mark.parametrize("keep", [0, 5, 300, -10])
def test_a_truncated_safetensors_file(copied, keep):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(copied)
    assert "model.safetensors" in sentence(raised)


@pytest.mark.parametrize("content", ["", "{", '{"name": "x"}', "[]", '{"shape": {"n_layers": 2}}'])
def test_a_damaged_card(copied, content):
    (copied / "card.json").write_text(content)
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(copied)
    assert "card.json" in sentence(raised)


def test_weights_that_are_not_those_of_the_card(copied):
    state = load_file(copied / "model.safetensors")
    del state["unembed.weight"]
    save_file(state, copied / "model.safetensors")
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(copied)
    assert "unembed.weight" in sentence(raised)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(copied, value):
    state = load_file(copied / "model.safetensors")
    state["blocks.1.attn.q_proj.weight"][3, 2] = value
    save_file(state, copied / "model.safetensors")
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(copied)
    assert "blocks.1.attn.q_proj.weight" in sentence(raised)


def test_a_damaged_tokenizer(copied):
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(copied)
    assert "tokenizer.json" in sentence(raised)


class Ran(Exception):
    """Raised by a pickle that was run."""


class Payload:
    def __reduce__(self):
        return (exec, ("raise Ran",))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})
    )
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(tmp_path)
    assert "pytorch_model.bin" in sentence(raised)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"PK\x03\x04 not a gguf file"]
)
def test_a_damaged_gguf_file(tmp_path, content):
    (tmp_path / "net.gguf").write_bytes(content)
    with pytest.raises(vs.VesaliusError) as raised:
        vs.load(tmp_path / "net.gguf")
    assert "net.gguf" in sentence(raised)


# ------------------------------------------------------------------------------------------------------------- sites


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("blocks.0.atn", "blocks.0.attn"),
        ("patern@0", "pattern"),
        ("pattern@2", "layers 0 to 1"),
        ("pattern@0-5", "layer"),
        ("pattern@x", "'pattern@x'"),
        ("pattern", "layer"),
        ("logits@0", "'logits'"),
        ("blocks.0.attn:zz", "port"),
        ("blocks.0.norm1:pattern", "pattern"),
        ("mlp_out@0", "mlp_out"),
        ("pattern@0[7]", "7"),
        ("pattern@0[a]", "[a]"),
        ("embed#3", "embed#3"),
        ("a b c", "a b c"),
    ],
)
def test_a_site_that_is_not_there(model, site, said):
    with pytest.raises(vs.VesaliusError) as raised, vs.record(model, site):
        model(torch.tensor([[0, 1, 2]]))
    assert said in sentence(raised)


def test_a_site_that_exists_but_never_fires(model):
    with pytest.raises(vs.VesaliusError) as raised, vs.record(model, "unembed"):
        pass
    assert "unembed" in sentence(raised)
    with pytest.raises(vs.VesaliusError) as raised, vs.intervene(model, {"z@0": vs.zero()}):
        pass
    assert "z@0" in sentence(raised)


def test_a_module_that_runs_twice_needs_its_call_named():
    layer = nn.Linear(2, 2)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer(x))

    net = vs.Model(Twice())
    with pytest.raises(vs.VesaliusError) as raised, vs.record(net, "layer"):
        net(torch.zeros(1, 2))
    assert "layer#0" in sentence(raised)


def test_an_edit_of_another_shape(model):
    with pytest.raises(vs.VesaliusError) as raised, vs.intervene(model, {"z@0": lambda z: z[:, :1]}):
        model(torch.tensor([[0, 1, 2]]))
    assert "z@0" in sentence(raised)
    with pytest.raises(vs.VesaliusError) as raised, vs.intervene(model, {"z@0": vs.patch(torch.zeros(9))}):
        model(torch.tensor([[0, 1, 2]]))
    assert "(9,)" in sentence(raised)


# ------------------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("", "empty"),
        (["", "a"], "empty"),
        (torch.zeros(1, 3), "token ids"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "[batch, position]"),
        (torch.zeros(1, 0, dtype=torch.long), "(1, 0)"),
        (torch.full((1, 65), 1), "at most 64"),
        ("word " * 200, "at most 64"),
        (torch.tensor([[2048]]), "0 to 2047"),
        (torch.tensor([[-1]]), "-1"),
    ],
    ids=[
        "empty text",
        "empty text in a list",
        "floats",
        "3-d",
        "no position",
        "too long",
        "long text",
        "id too large",
        "negative",
    ],
)
def test_inputs_that_a_model_cannot_read(model, inputs, said):
    with pytest.raises(vs.VesaliusError) as raised:
        model(inputs)
    assert said in sentence(raised)


def test_a_token_that_is_several_tokens_or_none(model):
    with pytest.raises(vs.VesaliusError) as raised:
        model.token("photosynthesis")
    assert "single token" in sentence(raised)
    with pytest.raises(vs.VesaliusError) as raised:
        model.token("")
    assert "single token" in sentence(raised)


def test_text_without_a_tokenizer():
    from vesalius.testbed import random_attn

    with pytest.raises(vs.VesaliusError) as raised:
        random_attn(n_layers=1)("text")
    assert "no tokenizer" in sentence(raised)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(model, value):
    with pytest.raises(vs.VesaliusError) as raised, vs.intervene(model, {"resid_post@0": vs.set_to(value)}):
        model.logits(torch.tensor([[0, 1, 2]]))
    assert "NaN or infinite" in sentence(raised)


def test_weights_and_layers_that_are_not_there(model):
    with pytest.raises(vs.VesaliusError) as raised:
        model.weight("W_Qq", 0)
    assert "the nearest is W_Q" in sentence(raised)
    with pytest.raises(vs.VesaliusError) as raised:
        model.weight("W_Q", 2)
    assert "0 to 1" in sentence(raised)


# ---------------------------------------------------------------------------------------------------------- analyses


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["copying-heads", "--heads", "5.0"], "5.0"),
        (["copying-heads", "--heads", "one"], "one"),
        (["induction-heads", "--length", "4000"], "64"),
        (["induction-heads", "--length", "-3"], "-3"),
        (["induction-heads", "--batch", "0"], "0"),
        (["term-importance", "--order", "-1"], "-1"),
        (["term-importance", "--text", ""], "empty"),
        (["term-importance", "--text", "short"], "fewer"),
        (["direct-logit-attribution", "--text", ""], "empty"),
        (["logit-lens", "--text", ""], "empty"),
        (["attention-patterns", "--text", ""], "empty"),
        (["skip-trigrams", "--source", "photosynthesis"], "single token"),
        (["copying-heads", "--figure", "figure.bmp"], "figure.bmp"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_parameters_out_of_range(small_network, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run([words[0], str(small_network), *words[1:]]) == cli.BAD_INPUT
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("vesalius: ") and said in shown[-1] and len(shown) == 1
    assert not list(tmp_path.iterdir())


def test_an_analysis_that_does_not_fit(small_network):
    net = vs.Model(nn.Linear(2, 2), name="linear")
    with pytest.raises(vs.VesaliusError) as raised:
        vs.copying_heads(net)
    assert "linear" in sentence(raised)
    with pytest.raises(vs.VesaliusError) as raised:
        vs.dissect(net)
    assert "linear" in sentence(raised)
    with pytest.raises(vs.VesaliusError) as raised:
        vs.copying_heads(vs.load(small_network), draw=3)
    assert "the nearest is draws" in sentence(raised)
    with pytest.raises(vs.VesaliusError) as raised:
        vs.copying_heads(nn.Linear(2, 2))
    assert "expected a Model" in sentence(raised)


# ----------------------------------------------------------------------------------------------------------- writing

WRITERS = {
    "a saved result": ["copying-heads", "MODEL", "--save", "OUT/saved"],
    "a figure": ["copying-heads", "MODEL", "--figure", "OUT/figure.html"],
    "a study": ["dissect", "MODEL", "--out", "OUT/study"],
}


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_a_disk_that_is_full_leaves_nothing(small_network, tmp_path, words):
    """A limit on the size of files makes the kernel refuse a write in the middle, as a full disk does."""
    words = [word.replace("MODEL", str(small_network)).replace("OUT", str(tmp_path)) for word in words]
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", sys.executable, "-m", "vesalius.cli", *words]
    run = subprocess.run(
        limited, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert run.returncode == cli.BAD_INPUT, run.stderr
    assert "Traceback" not in run.stderr and run.stderr.splitlines()[-1].startswith("vesalius: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_a_place_that_cannot_be_written(small_network, tmp_path, words, capsys):
    (tmp_path / "file").touch()
    words = [
        word.replace("MODEL", str(small_network)).replace("OUT", str(tmp_path / "file")) for word in words
    ]
    assert cli.run(words) == cli.BAD_INPUT
    assert capsys.readouterr().err.splitlines()[-1].startswith("vesalius: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("damage", ["result.json", "tensors.safetensors"])
def test_a_saved_result_that_is_damaged(model, tmp_path, damage):
    folder = vs.copying_heads(model, draws=100).save(tmp_path / "saved")
    (folder / damage).write_bytes((folder / damage).read_bytes()[:20])
    with pytest.raises(vs.VesaliusError) as raised:
        vs.Result.load(folder)
    assert "damaged" in sentence(raised)


def test_a_folder_that_is_no_result_and_no_study(tmp_path):
    for load in (vs.Result.load, vs.Study.load):
        with pytest.raises(vs.VesaliusError) as raised:
            load(tmp_path / "nothing")
        assert "nothing" in sentence(raised)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(vs.VesaliusError):
        vs.Study(tmp_path / "photos")
