"""Probing: it finds what a network was made to hold, where it holds it, and nothing in a random one."""

import csv
import json
import sys
from importlib.resources import files

import pytest
import torch

import vesalius as vs
from vesalius.data.labelled_texts import read_labelled_texts
from vesalius.errors import Inapplicable
from vesalius.methods.directions.probing import probing
from vesalius.questions import answered, question
from vesalius.testbed import curve_network, handwritten_induction, random_attn

ASKED = {"contexts": 24, "length": 32, "images": "shapes", "n_images": 24, "seed": 0}


def reader() -> vs.Model:
    """A random transformer that reads text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    shape = {"d_model": 32, "d_vocab": tokenizer.get_vocab_size(), "n_ctx": 64, "norm": True, "d_mlp": 64}
    return vs.Model(random_attn(**shape).module, tokenizer=tokenizer, bos=0, name="random-reader")


def labelled_file(tmp_path, *, name: str = "moods.jsonl", one_class: bool = False):
    rows = [
        {"text": f"The {noun} was {word}.", "label": "good" if one_class or good else "bad", "group": noun}
        for noun in ("film", "meal", "book", "song", "trip", "play", "game", "talk", "shop", "town")
        for word, good in (("great", True), ("awful", False), ("lovely", True), ("dull", False))
    ]
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_token_that_was_there_is_known_after_the_induction_head_alone():
    result = probing(handwritten_induction())
    assert result.sites[result.best] == "resid_post@1" and result.headlines()[0].evidence
    assert result.accuracy[0] < result.chance < result.low[1]


@pytest.mark.parametrize("kind", ["linear", "ridge", "lda", "mass_mean", "sparse", "mlp"])
def test_a_perfect_tracker_is_read_perfectly(kind):
    """The truth stands in the residual stream, written by the embedding: whether a token's number is even."""
    model = random_attn(n_layers=1, d_vocab=40, seed=1)
    with torch.no_grad():
        model.module.embed.weight[:, 0] = 3 * (-1.0) ** torch.arange(40)
        model.module.blocks[0].attn.o_proj.weight[0] = 0
    asked = question(model, "repeated", **ASKED)
    even = [torch.tensor([-1, *(1 - torch.tensor(row[1:]) % 2)]) for row in asked.rows]
    planted = type(asked)("even", ("odd", "even"), asked.groups, tuple(even), asked.rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[probing.__module__], "question", lambda *args, **named: planted)
        result = probing(model, kind=kind, twins=1)
    assert result.accuracy[0] > 0.99 and result.shuffled.max() < 0.65


def test_the_probe_is_a_dictionary_and_its_direction_is_what_was_planted():
    model = random_attn(n_layers=1, d_vocab=40, seed=1)
    result = probing(model, twins=1, contexts=24)
    probe = result.probe(0)
    assert probe.classes == ("new", "repeated") and probe.site == "resid_post@0" and probe.width == 64
    assert result.probe("resid_post@0").hash == probe.hash
    assert str(probe["repeated"]) == "repeated: repeated"
    with pytest.raises(vs.VesaliusError, match="no probe at 'resid_post@1'"):
        result.probe("resid_post@1")
    with pytest.raises(vs.VesaliusError, match="no directions"):
        probing(model, kind="mlp", twins=1, contexts=12).probe(0)


def test_labelled_texts_of_one_group_stay_together(tmp_path):
    model, path = reader(), labelled_file(tmp_path)
    asked = question(model, path, **ASKED)
    assert asked.classes == ("bad", "good") and len(set(asked.groups)) == 10
    for position in ("last", "mean", "all"):
        result = probing(model, labels=path, position=position, kind="ridge", twins=1)
        assert sum(result.choices["rows"]) >= 40 and result.choices["groups"] == 10
    last = answered(model, asked, ["resid_post@1"], position="last")
    alone = answered(model, type(asked)(*vars(asked).values()), ["resid_post@1"], position="last")
    assert torch.equal(last.acts["resid_post@1"], alone.acts["resid_post@1"])
    with vs.record(model, "resid_post@1") as acts:
        model(model.tokens("The film was great."))
    row = (last.inputs == 0).nonzero()[0, 0]
    assert torch.allclose(last.acts["resid_post@1"][row], acts["resid_post@1"][0, -1], atol=1e-5)


def test_formats_of_labelled_texts_agree(tmp_path):
    lines = labelled_file(tmp_path)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    with (tmp_path / "moods.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label", "group"])
        writer.writeheader()
        writer.writerows(rows)
    assert read_labelled_texts(lines) == read_labelled_texts(tmp_path / "moods.csv")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "moods.parquet")
    assert read_labelled_texts(tmp_path / "moods.parquet") == read_labelled_texts(lines)


def test_pictures_are_probed_at_layers_of_different_widths():
    result = probing(curve_network(), n_images=24, kind="ridge", twins=1)
    assert result.question == "image_class" and len(result.sites) == len(result.accuracy) == 5
    assert {len(weight) for weight in result.weights} != {len(result.weights[0])}


def test_what_cannot_be_is_said_in_a_sentence(tmp_path):
    path, one = labelled_file(tmp_path), labelled_file(tmp_path, name="one.jsonl", one_class=True)
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    (tmp_path / "nolabel.jsonl").write_text('{"text": "a", "mood": "b"}')
    model = reader()
    for call, said in (
        (lambda: probing(model, labels="repeats"), "no question.*nearest is repeated"),
        (lambda: probing(model, labels=one), "every label.*'good'"),
        (lambda: probing(model, labels=tmp_path / "broken.jsonl"), "damaged"),
        (lambda: probing(model, labels=tmp_path / "nolabel.jsonl"), "no column 'label'"),
        (lambda: probing(model, labels=path, sites="z@0"), "one vector a position"),
        (lambda: probing(model, labels="repeated", position="last"), "asked of every token"),
        (lambda: probing(curve_network(), position="last"), "no last position"),
        (lambda: probing(model, labels="token_class", text="One paragraph."), "1 paragraphs"),
    ):
        with pytest.raises(vs.VesaliusError, match=said):
            call()
    with pytest.raises(Inapplicable):
        probing(handwritten_induction(), labels="token_class")
