"""G2, an induction circuit written by hand: every number of it is known.

Truth, on [BOS, r, r] with 24 different tokens: head 0.0 attends to the previous token and head 1.0 to what
followed last time, both with all their attention; all repeated tokens are right, and none is without head
0.0; head 1.0 copies; head 0.0 composes with its keys, 1/√40 = .158 (40 tokens are written), and with its
queries and values not at all. No path reads the embedding straight, so order 0 loses ln 41 nats; what is
gained, is gained by single heads with frozen patterns, and virtual heads add nothing. Without BOS the first
token has two matches, and the prefix score is (24 - ½)/24. Measured: all of it, to 1e-4.
"""

import math

import pytest

import vesalius as vs
from vesalius.data.repeated import repeated_random_tokens
from vesalius.methods.circuits.copying_heads import copying_heads
from vesalius.methods.circuits.induction_heads import induction_heads
from vesalius.methods.circuits.term_importance import term_importance
from vesalius.testbed import handwritten_induction
from vesalius.weights.composition import composition_matrix

LENGTH = 24


@pytest.fixture(scope="module")
def model():
    return handwritten_induction()


@pytest.fixture(scope="module")
def found(model):
    return induction_heads(model, length=LENGTH, batch=8)


def accuracy(model: vs.Model) -> float:
    """Share of repeated tokens that are predicted; the first of the repetition cannot be."""
    ids = repeated_random_tokens(model, length=LENGTH, batch=64, seed=5)
    guesses = model.logits(ids).argmax(-1)[:, LENGTH + 1 : -1]
    return (guesses == ids[:, LENGTH + 2 :]).float().mean().item()


def test_every_repeated_token_is_right_and_none_without_the_previous_token_head(model):
    assert accuracy(model) == 1.0
    with vs.intervene(model, {"z@0[0]": vs.zero()}):
        assert accuracy(model) == 0.0
    with vs.intervene(model, {"z@0[1]": vs.zero(), "z@1[1]": vs.zero()}):
        assert accuracy(model) == 1.0


def test_induction_and_previous_token_heads_are_found_and_score_one(found):
    assert found.found == [[1, 0]] and found.top == (1, 0)
    assert found.scores["prefix"][1, 0] == pytest.approx(1.0, abs=1e-4)
    assert found.scores["previous"][0, 0] == pytest.approx(1.0, abs=1e-4)
    assert found.scores["prefix"][0].max() < 0.1 and found.scores["prefix"][1, 1] < 0.1
    assert found.unrepeated[1, 0] < 0.1 and found.chance < 0.5
    assert all(headline.evidence is not False for headline in found.headlines())


def test_the_weights_alone_say_copying_and_matching(model, found):
    assert found.copying[1, 0] == pytest.approx(1.0, abs=1e-4)
    assert found.matching[1, 0] == pytest.approx(1.0, abs=1e-4)
    result = copying_heads(model)
    assert result.copying == ["1.0"]
    best = result.heads.index("1.0")
    assert result.scores[best] == pytest.approx(1.0, abs=1e-4)
    assert result.top_1[best] >= 40 / 41


def test_composition_is_through_keys_and_nothing_else(model):
    scores = {mode: composition_matrix(model, mode)[0, 0, 1, 0].item() for mode in "QKV"}
    assert scores["K"] == pytest.approx(1 / math.sqrt(40), abs=1e-4)
    assert scores["Q"] == scores["V"] == 0.0


def test_single_heads_explain_the_loss_and_virtual_heads_nothing(model):
    result = term_importance(model, length=2 * LENGTH + 1, batch=8)
    assert result.losses[0] == pytest.approx(math.log(41), abs=1e-4)
    assert result.reductions[0] == pytest.approx(0.0, abs=1e-4)
    assert result.reductions[2] == pytest.approx(0.0, abs=1e-4)
    assert result.losses[2] == pytest.approx(result.full_loss, abs=1e-4)
    assert result.alone[1] == pytest.approx(result.reductions[1].item(), abs=1e-4)


def test_without_bos_the_first_repeated_token_has_two_matches(model):
    ids = repeated_random_tokens(model, length=LENGTH, batch=8)[:, 1:]
    with vs.record(model, "pattern@1[0]") as acts:
        model(ids)
    prefix = acts["pattern@1[0]"].diagonal(1 - LENGTH, dim1=-2, dim2=-1)[:, 1:].mean()
    assert prefix == pytest.approx((LENGTH - 0.5) / LENGTH, abs=1e-4)


def test_the_random_twin_has_no_induction_head(model):
    result = induction_heads(model.random_twin(seed=9), length=LENGTH, batch=8)
    assert result.found == [] and not any(headline.evidence for headline in result.headlines())
