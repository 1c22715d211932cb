"""The dossier: seven arguments about one feature, each with its verdict, on the network whose answer is known."""

import json
import sys

import pytest

import vesalius as vs
from vesalius import cli
from vesalius.arguments import ARGUMENTS, verdict
from vesalius.testbed import curve_network

QUICK = {"steps": 24, "n_images": 48}


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return vs.dossier(curve_network(), "3b:3", out=tmp_path_factory.mktemp("study") / "curve", **QUICK)


def test_all_seven_are_made_and_stand_for_a_curve_that_was_written_as_one(findings):
    assert [entry.name for entry in findings.study.entries] == list(ARGUMENTS) and not findings.failed
    assert all(verdict(entry.headlines) is True for entry in findings.study.entries)
    assert "7 of 7 arguments stand" in findings.study.text
    assert "it stands for one orientation" in findings.study.text


def test_every_argument_ends_in_one_verdict_line(findings):
    for entry in findings.study.entries:
        assert len(entry.claims) == 1 and "Verdict: " in entry.claims[0]
    assert findings.report.stat().st_size < 8e6


def test_a_random_network_supports_no_claim(tmp_path):
    twin = curve_network().random_twin(5)
    found = vs.dossier(twin, "curves[3]", out=tmp_path / "twin", **QUICK)
    stand = [entry.name for entry in found.study.entries if verdict(entry.headlines)]
    assert len(stand) <= 1, stand
    assert "do not support a claim" in found.study.text


def test_a_feature_that_does_not_exist_writes_nothing(tmp_path):
    with pytest.raises(vs.VesaliusError, match="expected 0 to 23"):
        vs.dossier(curve_network(), "curves[24]", out=tmp_path / "study")
    assert not list(tmp_path.iterdir())


def test_a_network_of_text_has_none(tmp_path):
    from vesalius.testbed import random_attn

    found = vs.dossier(random_attn(), "resid_post@0[3]", out=tmp_path / "study")
    assert not found.study.entries and set(found.study.skipped) == set(ARGUMENTS)


def test_the_command_prints_verdicts_and_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["vesalius.model"], "load", lambda name: curve_network())
    out = tmp_path / "study"
    arguments = ["feature", "zoo/any", "3b:3", "--out", str(out), "--steps", "8", "--n-images", "32"]
    assert cli.run(arguments) == 0
    shown = capsys.readouterr().out
    assert "feature_visualization: Do pictures made to raise it raise it? Verdict: " in shown
    assert f"report: {out / 'report.html'}" in shown
    assert json.loads((out / "study.json").read_text())["results"]


def test_a_convnet_is_dissected_without_what_is_about_one_feature(tmp_path):
    dissection = vs.dissect(curve_network(), out=tmp_path / "study")
    made = {entry.name for entry in dissection.study.entries}
    assert not dissection.failed
    assert {"find_curve_detectors", "equivariance"} <= made
    assert "vesalius feature" in dissection.study.skipped["joint_tuning"]
