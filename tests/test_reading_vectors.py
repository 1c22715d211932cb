"""Reading vectors: pairs from files, templates, places, and what is said where they do not fit."""

import functools
import json
from importlib.resources import files

import pytest
import torch

import vesalius as vs
from vesalius.concepts.concept_vectors import concept_activations
from vesalius.concepts.prompts import answers_of, preference, token_rows, values_at
from vesalius.concepts.readers import fold_of
from vesalius.data.concepts import CONCEPTS
from vesalius.data.pairs import TEMPLATES, open_pairs
from vesalius.methods.directions.lat_scan import lat_scan
from vesalius.methods.directions.reading_vectors import reading_vectors
from vesalius.testbed import random_attn
from vesalius.testbed.planted_direction import planted_direction, planted_texts


@functools.cache
def reader(seed: int = 0) -> vs.Model:
    """A random transformer with the tokenizer of the zoo."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    module = random_attn(
        d_model=32, n_heads=4, d_vocab=tokenizer.get_vocab_size(), n_ctx=96, norm=True, d_mlp=64, seed=seed
    ).module
    return vs.Model(module, tokenizer=tokenizer, bos=0, name="random-reader")


def written(path, rows, *, header=None):
    if path.suffix == ".csv":
        lines = [",".join(header), *[",".join(map(str, row)) for row in rows]]
    else:
        lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


# ------------------------------------------------------------------------------------------------------------ pairs


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_built_in_concept_has_pairs_that_differ_and_questions(concept):
    pairs = open_pairs(concept)
    assert len(pairs) >= 64 and len(set(pairs.groups)) >= 32
    assert all(p != n for p, n in zip(pairs.positive, pairs.negative, strict=True))
    assert len(set(zip(pairs.positive, pairs.negative, strict=True))) == len(pairs)
    assert len(pairs.questions) >= 8 and all(pairs.follow)
    answers_of(reader(), pairs.questions)


def test_files_of_pairs_and_of_labelled_texts_read_alike(tmp_path):
    texts = [(f"it is good {n}", f"it is bad {n}", f"g{n}") for n in range(5)]
    as_pairs = written(
        tmp_path / "a.jsonl", [{"positive": p, "negative": n, "group": g} for p, n, g in texts]
    )
    labelled = [(g, text, label) for p, n, g in texts for text, label in ((n, 0), (p, "true"))]
    as_labels = written(tmp_path / "b.csv", labelled, header=["group", "text", "label"])
    first, second = open_pairs(as_pairs), open_pairs(as_labels)
    assert first.positive == second.positive and first.negative == second.negative
    assert first.groups == second.groups
    assert open_pairs(first.save(tmp_path / "c.jsonl")).positive == first.positive


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": f"a {n}", "label": 1} for n in range(8)], "expected both labels"),
        ([{"text": f"a {n}", "label": n % 3 == 0} for n in range(9)], "do not align"),
        ([{"positive": "a", "negative": "b"}, {"positive": "c"}], "row 2 of x.jsonl has no negative"),
        ([{"good": "a", "bad": "b"}], "expected positive and negative, or text and label"),
        ([{"text": "a", "label": "perhaps"}], "has the label 'perhaps'"),
        ([{"positive": "a", "negative": "b"}] * 3, "3 groups of pairs; expected at least 4"),
        ([], "holds no rows"),
    ],
)
def test_a_file_that_does_not_pair_is_refused_in_one_sentence(tmp_path, rows, message):
    with pytest.raises(vs.VesaliusError, match=message) as error:
        open_pairs(written(tmp_path / "x.jsonl", rows))
    assert "\n" not in str(error.value)


def test_a_damaged_file_and_an_unknown_concept(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"positive": "a"\n')
    with pytest.raises(vs.VesaliusError, match=r"x\.jsonl is damaged"):
        open_pairs(tmp_path / "x.jsonl")
    with pytest.raises(vs.VesaliusError, match="the nearest is sentiment"):
        open_pairs("sentimnt")


# ------------------------------------------------------------------------------------------------- templates, places


def test_a_template_whose_beginning_becomes_other_tokens_is_refused():
    with pytest.raises(vs.VesaliusError, match="becomes other tokens before"):
        token_rows(reader(), ["They saw the film.", "They saw the fire."], template="They saw the fi{text}")
    with pytest.raises(vs.VesaliusError, match="0 places for a text"):
        reading_vectors(reader(), template="They said:")
    with pytest.raises(vs.VesaliusError, match="the nearest is concept"):
        reading_vectors(reader(), template="concpt")


def test_the_templates_by_name_hold_a_text():
    positive, negative = open_pairs("sentiment").filled("concept")
    assert positive[0].endswith("The amount of positive sentiment is") and "wonderful" in positive[0]
    assert len(positive) == len(negative) == 96 and set(TEMPLATES) == {"plain", "concept"}


def test_a_position_past_the_end_is_refused():
    for position in (-40, 40):
        with pytest.raises(vs.VesaliusError, match=f"position {position} is past the end of a prompt"):
            reading_vectors(reader(), position=position, n_pairs=8)


def test_values_are_those_of_each_prompt_alone():
    model = reader()
    rows = token_rows(model, ["The film was good.", "I think", "They said that the day was long and cold."])
    values = values_at(model, rows, "resid_post", positions=[-1, 0], batch=2)
    heads = values_at(model, rows, "z", layers=[1])
    for number, row in enumerate(rows):
        with vs.record(model, ["resid_post@*", "z@1"]) as acts:
            model(torch.tensor([row]))
        alone = acts.stack("resid_post@*")[:, 0]
        torch.testing.assert_close(values[number, 0], alone[:, -1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values[number, 1], alone[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(heads[number, 0, 0], acts["z@1"][0, :, -1], atol=1e-5, rtol=1e-5)


def test_a_preference_is_the_difference_of_two_log_probabilities():
    model = reader()
    answers = answers_of(model, [("The film was", " good", " very bad"), ("I think that", " so", " not")])
    expected = []
    for prompt, towards, away in (("The film was", " good", " very bad"), ("I think that", " so", " not")):
        total = 0.0
        for sign, answer in ((1, towards), (-1, away)):
            ids, start = model.tokens(prompt + answer), model.tokens(prompt).shape[1]
            chances = model.logits(ids).log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
            total += sign * float(chances[start - 1 :].sum().detach())
        expected.append(total)
    torch.testing.assert_close(preference(model, answers), torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_group_is_never_split():
    groups = [f"g{n % 11}" for n in range(100)]
    fold = fold_of(groups, folds=5, seed=3)
    assert len(set(fold.tolist())) == 5
    for group in set(groups):
        assert len({int(f) for f, g in zip(fold, groups, strict=True) if g == group}) == 1


# ---------------------------------------------------------------------------------------------------------- results


def test_held_out_words_mean_nothing_to_a_random_network():
    alarms = [
        seed
        for seed in range(6)
        if any(h.evidence for h in reading_vectors(reader(seed), seed=seed).headlines())
    ]
    assert not alarms


def test_an_instruction_is_told_apart_by_a_random_network_and_is_no_evidence():
    result = reading_vectors(reader(), pairs="truthful", n_pairs=64)
    assert result.accuracy.max() > 0.9  # the words differ, which any network keeps
    assert result.headlines()[0].evidence is False


def test_the_result_gives_a_control_vector_of_the_network():
    model = reader()
    vector = reading_vectors(model, n_pairs=24, twins=1, draws=2).control_vector
    assert vector.layers == [0, 1] and vector.check(model) is vector
    acts = concept_activations(model, open_pairs("sentiment").take(24), layers=[1])
    difference = (acts.positive - acts.negative).mean(0)[0]
    torch.testing.assert_close(vector.directions[1], difference, atol=1e-4, rtol=1e-4)


def test_a_scan_is_on_the_scale_of_the_pairs(tmp_path):
    model, path = planted_direction(), planted_texts().save(tmp_path / "planted.jsonl")
    scan = lat_scan(model, text="the film was good3 . so day is bad3 .", pairs=path)
    assert scan.scores.shape == (1, len(scan.tokens)) and scan.tokens[3].strip() == "good3"
    assert scan.scores[0, 3] > 0 and scan.scores[0].argmax() == 3
    figure = scan.figure().to_json()
    assert "tokens" in json.dumps(figure)
