"""A probe is a dictionary: it reads, writes, edits and is saved."""

import pytest
import torch
from safetensors.torch import save_file

import vesalius as vs
from vesalius.dictionaries import Dictionary
from vesalius.dictionaries.probe import ProbeDictionary
from vesalius.testbed import random_attn


def probe(width: int = 64) -> ProbeDictionary:
    weight = torch.randn(width, 3, generator=torch.Generator().manual_seed(0))
    classes = ("empty", "mine", "theirs")
    return ProbeDictionary("resid_post@0", weight, torch.arange(3.0), classes, name="c4", about={"rows": 9})


def test_codes_are_the_values_of_the_features():
    given, acts = probe(), torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1))
    assert isinstance(given, Dictionary)
    codes = given.encode(acts)
    for index, name in enumerate(given.classes):
        assert torch.allclose(codes[..., index], given[name].value(acts), atol=1e-4)
    assert torch.allclose(given.encode(given.decode(codes)), codes, atol=1e-3)
    assert str(given["mine"]) == "c4: mine" and str(given.difference("mine", "theirs")) == "c4: mine − theirs"


def test_it_is_saved_whole(tmp_path):
    given = probe()
    loaded = ProbeDictionary.load(given.save(tmp_path / "probe"))
    assert loaded.hash == given.hash and loaded.classes == given.classes and loaded.about == {"rows": 9}
    assert torch.equal(loaded.weight, given.weight) and loaded.name == "c4"


def test_its_features_go_into_edits():
    model, mine = random_attn(), probe().difference("mine", "theirs")
    ids = torch.tensor([[1, 2, 3]])
    with vs.intervene(model, {mine.site: vs.project_out(mine.read)}), vs.record(model, mine.site) as acts:
        model(ids)
    assert mine.value(acts[mine.site]).abs().max() < 1e-4


def test_what_cannot_be_is_said_in_a_sentence(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for call, said in (
        (lambda: probe()["min"], "no class 'min'.*mine"),
        (lambda: probe()[3], "class 3"),
        (lambda: probe().encode(torch.zeros(1, 5)), "5 units were given to a probe of 64"),
        (lambda: ProbeDictionary("a", torch.zeros(3, 1), torch.zeros(1), ("one",)), "two or more"),
        (lambda: ProbeDictionary.load(tmp_path / "none.safetensors"), "cannot be read"),
        (lambda: ProbeDictionary.load(tmp_path / "other.safetensors"), "not a probe"),
    ):
        with pytest.raises(vs.VesaliusError, match=said):
            call()
