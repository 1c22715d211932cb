"""Studies come back as they were written, never half; the report says everything and trusts nothing typed."""

import json
import math
import os
import re
from dataclasses import dataclass, field
from html import escape

import pytest
import torch
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.figures import Figure, bars
from vesalius.report import write_report
from vesalius.result import Headline, Result
from vesalius.study import INDEX, Study
from vesalius.testbed import random_attn

PROVENANCE = {"method": "weighing", "model": "scales", "parameters": {"seed": 3}}
HOSTILE = "</script><b>bold</b> & \u2028"


@dataclass(frozen=True)
class Weighed(Result):
    """A result for these tests: a few scores, a choice, and whatever words it is given."""

    scores: Tensor
    words: str = "ground truth"
    choices: dict = field(default_factory=lambda: {"ablation": "mean over positions"})
    provenance: dict = field(default_factory=lambda: dict(PROVENANCE), kw_only=True)

    def headlines(self) -> list[Headline]:
        return [
            Headline(f"heads that {self.words}", 0.75, 0.125, (0.5, 0.875), True, "found in every draw"),
            Headline("heads that sleep", "2 of 8", "3 of 8", evidence=False),
            Headline("heads in all", float("nan")),
        ]

    def figure(self) -> Figure:
        return bars(["0.0", "0.1"], {self.words: self.scores}, title=self.words, y_label="score")


def weighed(words: str = "copy") -> Weighed:
    return Weighed(torch.tensor([1.0, 2.0]), words)


@pytest.fixture
def study(tmp_path):
    study = Study(tmp_path / "study", title="Of heads", text="First.\n\nSecond.", model=random_attn())
    study.add(weighed(), text="What was weighed.", claims=["Head 0.1 copies."])
    study.skip("logit_lens", "the model has no layers")
    return study


def test_a_study_comes_back_as_written(study):
    loaded = Study.load(study.folder)
    assert (loaded.title, loaded.text, loaded.card, loaded.skipped) == (
        study.title, study.text, study.card, study.skipped,
    )  # fmt: skip
    [entry] = loaded.entries
    assert (entry.folder, entry.name, entry.claims) == ("01-weighing", "weighing", ("Head 0.1 copies.",))
    assert entry.headlines[:2] == tuple(weighed().headlines()[:2])
    assert math.isnan(entry.headlines[2].value)
    assert torch.equal(loaded.result(entry).scores, weighed().scores)


def test_a_loaded_study_goes_on(study):
    loaded = Study.load(study.folder)
    assert loaded.add(weighed("move")).name == "02-weighing"
    assert len(Study.load(study.folder).entries) == 2


def test_a_result_that_cannot_be_saved_is_not_in_the_study(study):
    before = (study.folder / INDEX).read_bytes()
    with pytest.raises(TypeError):
        study.add(Weighed(torch.zeros(2), choices={"seed": object()}))
    assert (study.folder / INDEX).read_bytes() == before
    assert sorted(path.name for path in study.folder.iterdir()) == ["01-weighing", INDEX]


def test_an_index_is_replaced_whole_or_not_at_all(study, monkeypatch):
    before = (study.folder / INDEX).read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        study.skip("composition", "interrupted")
    monkeypatch.undo()
    assert (study.folder / INDEX).read_bytes() == before
    assert sorted(path.name for path in study.folder.iterdir()) == ["01-weighing", INDEX]


def test_what_is_not_a_study_is_told(study, tmp_path):
    with pytest.raises(VesaliusError, match="expected a folder with"):
        Study.load(tmp_path)
    with pytest.raises(VesaliusError, match="opens it"):
        Study(study.folder)
    os.rename(study.folder / "01-weighing", study.folder / "elsewhere")
    with pytest.raises(VesaliusError, match="lacks 01-weighing"):
        Study.load(study.folder)
    index = study.folder / INDEX
    index.write_text(json.dumps({"schema": 99}), encoding="utf-8")
    with pytest.raises(VesaliusError, match="schema 99"):
        Study.load(study.folder)
    index.write_text("{", encoding="utf-8")
    with pytest.raises(VesaliusError, match="damaged"):
        Study.load(study.folder)


def test_the_report_says_everything(study, tmp_path):
    text = write_report(study, tmp_path / "report.html").read_text(encoding="utf-8")
    words = [
        "Of heads", "What was weighed.", "Head 0.1 copies.", "heads that copy", "found in every draw",
        "0.75", "0.125", "[0.5, 0.875]", "2 of 8", "3 of 8", "● evidence", "○ no evidence", "– descriptive",
        "mean over positions", "Logit lens", "the model has no layers", study.card["hash"], "d_model",
        escape("vs.weighing(vs.load('scales'), seed=3)", quote=True),
    ]  # fmt: skip
    assert not [word for word in words if word not in text]
    assert "1 stand against their control, 1 do not, and 1 only describe" in text
    links = re.findall(r'href="#([^"]+)"', text)
    assert links and all(f'id="{link}"' in text for link in links)


def test_the_report_stands_alone_and_trusts_nothing_typed(tmp_path):
    study = Study(tmp_path / "study", title=HOSTILE, text=HOSTILE)
    study.add(weighed(HOSTILE), text=HOSTILE, claims=[HOSTILE])
    study.skip(HOSTILE, HOSTILE)
    text = write_report(study, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>bold" not in text and escape(HOSTILE, quote=True) in text
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:|//)""", text)
    assert len(text) < 1_000_000
    [data] = re.findall(r'<script type="application/vesalius-figure\+json">(.*?)</script>', text, re.DOTALL)
    assert Figure(**json.loads(data)) == weighed(HOSTILE).figure()
