"""Causal tracing: the state that is put back where the induction circuit reads it restores the answer."""

from importlib.resources import files

import pytest

from vesalius.errors import VesaliusError
from vesalius.methods.circuits.causal_tracing import causal_tracing
from vesalius.model import Model
from vesalius.testbed import handwritten_induction, random_attn


def test_the_answer_is_where_the_previous_token_head_has_put_it():
    result = causal_tracing(handwritten_induction(), noise=6.0, pairs=8)
    residual = result.effects["residual"]
    best = result.best["residual"]
    assert best["layer"] == 0 and result.tokens[best["position"]].startswith("[")
    assert residual[0, best["position"]] > 0.9 and result.headlines()[1].evidence
    assert residual[:, : best["position"] - 1].abs().max() < 1e-4  # before the subject nothing was hidden
    assert abs(residual[1, -1] - 1) < 1e-3  # at the end everything has come together


def test_random_networks_give_no_evidence():
    for seed in range(10):
        result = causal_tracing(random_attn(d_model=32, d_vocab=40, n_ctx=32, seed=seed), seed=seed, draws=2)
        assert not any(headline.evidence for headline in result.headlines())


def test_prompts_of_words_are_checked():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    module = random_attn(d_model=16, d_vocab=tokenizer.get_vocab_size(), n_ctx=32, norm=True, d_mlp=16).module
    model = Model(module, tokenizer=tokenizer, bos=0)
    given = {
        "prompts": ["The man is here with", "The new is here with"],
        "subjects": ["man", "new"],
        "answers": [" the", " a"],
    }
    result = causal_tracing(model, **given, draws=1)
    assert set(result.effects) == {"residual", "attention"} | ({"mlp"} if model.d_mlp else set())
    assert any(token.startswith("[") for token in result.tokens)
    for changed, said in (
        ({"subjects": ["man"]}, "1 subjects"),
        ({"subjects": ["man", "dog"]}, "does not occur"),
        ({"subjects": ["man", "here"]}, "same in all prompts"),
        ({"subjects": ["man", "ne"]}, "begin and end where tokens do"),
    ):
        with pytest.raises(VesaliusError, match=said):
            causal_tracing(model, **{**given, **changed}, draws=1)
