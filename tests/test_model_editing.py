"""Model editing: what an edit of the weights does is what it was to do, and in random networks it is nothing."""

from importlib.resources import files

import pytest
import torch

from vesalius.dictionaries.probe import ProbeDictionary
from vesalius.errors import VesaliusError
from vesalius.methods.directions.model_editing import model_editing
from vesalius.model import Model
from vesalius.testbed import handwritten_induction, random_attn
from vesalius.weights.weight_diff import WeightDiff


def test_what_says_a_token_is_taken_away_and_only_that(tmp_path):
    model = handwritten_induction()
    result = model_editing(model, target="#7", to=tmp_path / "no-seven")
    assert result.headlines()[0].evidence and result.effect > 1
    edited = WeightDiff.load(tmp_path / "no-seven.safetensors").apply(model)
    row = torch.tensor([[0, 7, 8, 9, 7, 8]])
    said = edited.logits(row)[0].argmax(-1)
    assert said[4] == 8 and said[5] == 9 and model.logits(row)[0, 4].argmax() == 8
    asked = torch.tensor([[0, 5, 7, 9, 5]])
    assert model.logits(asked)[0, -1].argmax() == 7 != edited.logits(asked)[0, -1].argmax()
    assert result.diff(model).child_hash == edited.hash == result.choices["child_hash"]
    with pytest.raises(VesaliusError, match="was made for"):
        result.diff(edited)


def test_random_networks_give_no_evidence():
    shape = {"d_model": 64, "n_heads": 4, "d_vocab": 40, "n_ctx": 48}
    results = [model_editing(random_attn(**shape, seed=seed), seed=seed) for seed in range(20)]
    fired = [seed for seed, result in enumerate(results) if result.headlines()[0].evidence]
    assert len(fired) <= 1, fired


def test_a_direction_can_be_a_unit_or_a_probe(tmp_path):
    model = random_attn(seed=1)
    weight = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    probe = ProbeDictionary("resid_post@0", weight, torch.zeros(2), ("no", "yes"))
    file = probe.save(tmp_path / "probe")
    by_probe = model_editing(model, direction=f"{file}[yes]", draws=2)
    (right,) = {tuple(matrix.shape) for name, matrix in by_probe.right.items() if name == "embed.weight"}
    assert right == (1, 64)
    unit = torch.nn.functional.normalize(probe["yes"].read, dim=0)
    assert torch.allclose(by_probe.right["embed.weight"][0].float(), unit, atol=1e-6)
    assert model_editing(model, direction="resid_post@1[5]", draws=2).right["embed.weight"][0].argmax() == 5


def test_an_association_is_learned_by_one_mlp():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    shape = {"d_model": 32, "d_vocab": tokenizer.get_vocab_size(), "n_ctx": 64, "norm": True, "d_mlp": 64}
    model = Model(random_attn(n_layers=3, positions="residual", **shape).module, tokenizer=tokenizer, bos=0)
    given = {
        "edit": "with_association",
        "prompts": ["The tower is in", "We know the tower is in"],
        "subject": "tower",
    }
    result = model_editing(model, **given, target=" the", layer=0, contexts=8, draws=3)
    assert result.effect > 0.2 and all(after > before for _, before, after in result.prompts)
    assert result.effect > result.random_effects.abs().max() and list(result.left) == [
        "blocks.0.mlp.down.weight"
    ]
    for changed, said in (
        ({"layer": 2}, "the last"),
        ({"subject": "church"}, "does not occur"),
        ({"subject": "towe"}, "does not end where a token ends"),
        ({"prompts": None}, "needs prompts"),
    ):
        with pytest.raises(VesaliusError, match=said):
            model_editing(model, **{**given, "target": " the", "layer": 0, **changed})


def test_a_target_that_never_comes_next_is_told():
    with pytest.raises(VesaliusError, match="never comes next"):
        model_editing(handwritten_induction(), target="#0", draws=2)
