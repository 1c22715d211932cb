"""The command line: derived from the methods, one sentence for what a person can put right, nothing half-written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

import vesalius as vs
from vesalius import cli
from vesalius.dissection import battery, dissect
from vesalius.errors import Inapplicable
from vesalius.method import method, methods
from vesalius.result import Headline, Result
from vesalius.terminal import duration


@dataclass(frozen=True)
class LayersCounted(Result):
    """How many layers a model has."""

    layers: int

    def headlines(self):
        return [Headline("layers", float(self.layers), control=0.0, evidence=True)]

    def figure(self):
        from vesalius.figures import table

        return table(["layers"], [[self.layers]], title="Layers")


@pytest.fixture
def two_methods(monkeypatch):
    """A registry of three analyses: one that counts, one whose behaviour a test sets, one that nothing fits."""
    monkeypatch.setattr(sys.modules["vesalius.method"], "_registry", {})
    behaviour = {}

    @method()
    def counted(model: vs.Model, *, times: int = 1) -> LayersCounted:
        """Count the layers."""
        return LayersCounted(model.n_layers * times)

    @method()
    def ending(model: vs.Model) -> LayersCounted:
        """End as the test says."""
        raise behaviour["error"]

    @method(needs=("eyes",))
    def seeing(model: vs.Model) -> LayersCounted:
        """See."""
        return LayersCounted(0)

    registry = dict(sys.modules["vesalius.method"]._registry)
    monkeypatch.setattr(sys.modules["vesalius.dissection"], "methods", lambda: registry)
    return behaviour


# ------------------------------------------------------------------------------------------- derived from signatures


def test_help_lists_every_analysis_and_the_version_is_the_package_s(capsys):
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name.replace("_", "-") in shown for name in methods())
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"vesalius {vs.__version__}\n"


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_parameter_of_a_method_is_an_option_of_its_command(name, capsys):
    assert cli.run([name.replace("_", "-"), "--help"]) == 0
    shown = capsys.readouterr().out
    for parameter in methods()[name].parameters.values():
        assert cli.option_type(parameter.annotation) is not None, (
            f"{name}: {parameter} cannot be given on the command line"
        )
        assert f"--{parameter.name.replace('_', '-')}" in shown


def test_an_analysis_prints_a_table_or_json_and_saves_and_draws(small_network, tmp_path, capsys):
    assert cli.run(["copying-heads", str(small_network)]) == 0
    assert "copying_heads" in capsys.readouterr().out
    arguments = ["--draws", "200", "--heads", "0.0", "--heads", "1.1", "--json"]
    saved, drawn = tmp_path / "saved", tmp_path / "drawn.html"
    assert (
        cli.run(
            ["copying-heads", str(small_network), *arguments, "--save", str(saved), "--figure", str(drawn)]
        )
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["provenance"]["parameters"]["draws"] == 200
    assert answer["heads"] == vs.Result.load(saved).heads == ["0.0", "1.1"]
    assert drawn.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


def test_sites_and_models_are_listed(small_network, capsys):
    assert cli.run(["sites", str(small_network)]) == 0
    shown = capsys.readouterr().out
    assert "pattern@0-1" in shown and "blocks.0.attn … blocks.1.attn" in shown
    assert cli.run(["models"]) == 0
    assert "zoo/attn-2l" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- dissect


def test_dissect_writes_a_study_and_tells_what_it_left_out(small_network, tmp_path, capsys):
    out = tmp_path / "study"
    assert cli.run(["dissect", str(small_network), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    fitting, skipped = battery(vs.load(small_network))
    study = vs.Study.load(out)
    assert [entry.name for entry in study.entries] == [name for name in fitting if name not in study.skipped]
    assert len(study.entries) >= 8
    assert skipped.items() <= study.skipped.items()
    assert all(name in shown.out for name in fitting)
    assert str(out / "report.html") in shown.out and (out / "report.html").stat().st_size > 10_000
    assert "about" in shown.err and f"[{len(fitting)}/{len(fitting)}]" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_dissect_goes_on_after_an_analysis_that_cannot(small_network, tmp_path, capsys, two_methods):
    two_methods["error"] = vs.VesaliusError("there is nothing to end")
    assert cli.run(["dissect", str(small_network), "--out", str(tmp_path / "study")]) == 2
    study = vs.Study.load(tmp_path / "study")
    assert [entry.name for entry in study.entries] == ["counted"]
    assert study.skipped == {"ending": "failed: there is nothing to end", "seeing": "the model has no eyes"}
    assert "failed: there is nothing to end" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device", "x"), ZeroDivisionError()]
)
def test_a_dissection_that_breaks_off_leaves_nothing_and_keeps_what_was_there(
    small_network, tmp_path, two_methods, error
):
    two_methods["error"] = vs.VesaliusError("first")
    model = vs.load(small_network)
    dissect(model, out=tmp_path / "study")
    before = (tmp_path / "study" / "study.json").read_text()
    two_methods["error"] = error
    with pytest.raises(type(error)):
        dissect(model, out=tmp_path / "study")
    with pytest.raises(type(error)):
        dissect(model, out=tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
    assert (tmp_path / "study" / "study.json").read_text() == before


def test_dissect_skips_an_analysis_that_finds_it_does_not_apply(small_network, tmp_path, two_methods):
    two_methods["error"] = Inapplicable("there is one layer, and it takes two")
    assert cli.run(["dissect", str(small_network), "--out", str(tmp_path / "study")]) == 0
    assert vs.Study.load(tmp_path / "study").skipped["ending"] == "there is one layer, and it takes two"


def test_dissect_replaces_a_study_and_refuses_any_other_folder(small_network, tmp_path, two_methods):
    two_methods["error"] = vs.VesaliusError("first")
    model = vs.load(small_network)
    for _ in range(2):
        dissect(model, out=tmp_path / "study")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(vs.VesaliusError, match="not a study"):
        dissect(model, out=tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_ctrl_c_ends_with_one_sentence_and_no_study(small_network, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vesalius.cli",
        "dissect",
        str(small_network),
        "--out",
        str(tmp_path / "study"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stderr.readline().startswith("[1/")
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "vesalius: interrupted" and "Traceback" not in said
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["copyng-heads", "x"], "there is no command 'copyng-heads'; the nearest is copying-heads"),
        (["copying-heads"], "Missing argument 'MODEL'"),
        (["copying-heads", "x", "--nomr", "fold"], "--norm"),
        (["copying-heads", "x", "--norm", "folded"], "'folded' is not one of 'fold', 'ignore'"),
        (["copying-heads", "x", "--seed", "one"], "--seed"),
        (["dissect", "zoo/attn-2"], "zoo/attn-2"),
        (["sites", "no/such-model"], "no/such-model"),
        (["train", "attn-9l"], "attn-9l"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(words, sentence, capsys):
    assert cli.run(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("vesalius: ") and shown.err.count("\n") == 1
    assert sentence in shown.err


def test_debug_shows_the_traceback():
    with pytest.raises(vs.VesaliusError):
        cli.run(["--debug", "dissect", "zoo/attn-2"])


def test_a_folder_that_cannot_be_written_is_one_sentence(small_network, capsys):
    assert cli.run(["copying-heads", str(small_network), "--save", "/proc/saved"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_durations_read_well():
    assert [duration(s) for s in (0.04, 12.3, 61, 3600)] == ["0.0 s", "12 s", "1 min 1 s", "1 h 0 min"]


def test_output_into_a_closed_pipe_is_no_error(small_network):
    command = f"{sys.executable} -m vesalius.cli sites {small_network} | true"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ))
    assert "Traceback" not in run.stderr
