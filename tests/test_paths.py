"""Paths add up to the logits, exactly without norms and up to biases with them."""

import pytest
import torch

from vesalius.access import intervene, record
from vesalius.edits import freeze, set_to
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.testbed import random_attn
from vesalius.weights.circuits import full_ov
from vesalius.weights.paths import path_expansion


def some_ids(model, length=7, batch=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(model.d_vocab, (batch, length), generator=draw)


@pytest.mark.parametrize("positions", ["shortformer", "residual", "rotary"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
def test_paths_sum_to_the_logits(n_layers, norm, positions):
    model = random_attn(n_layers=n_layers, n_heads=2, norm=norm, positions=positions)
    if norm:  # gains matter, biases have no path
        for name, weight in model.module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.data += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    terms = path_expansion(model, some_ids(model))
    assert len(terms) == len(list(terms)) == 3**n_layers
    torch.testing.assert_close(sum(terms.values()), terms.total)
    assert terms.remainder.relative < 1e-4 and terms.remainder.largest < 1e-3
    for length, together in enumerate(terms.by_order):
        alone = sum(term for path, term in terms.items() if len(path) == length)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    of_sources = sum(terms.of(source).total for source in terms.sources)
    torch.testing.assert_close(of_sources, terms.total, rtol=1e-4, atol=1e-4)


def test_what_has_no_path_is_the_remainder():
    model = random_attn(norm=True, d_mlp=32)
    terms = path_expansion(model, some_ids(model))
    assert terms.remainder.relative > 0.1
    torch.testing.assert_close(terms.total + terms.remainder.values, terms.logits)
    assert f"{terms.remainder.relative:.2%}" in str(terms) and "norm scales" in str(terms)
    short = path_expansion(random_attn(), some_ids(model), order=1)
    assert len(short) == 9 and short.remainder.relative > 1e-3


def test_only_what_is_asked_for():
    model = random_attn()
    ids = some_ids(model)
    whole = path_expansion(model, ids)
    part = path_expansion(model, ids, positions=[6, 2], tokens=[3])
    for path in [(), ((1, 2),), ((0, 3), (1, 1))]:
        torch.testing.assert_close(part[path], whole[path][:, [6, 2]][:, :, [3]])
    torch.testing.assert_close(part.total, whole.total[:, [6, 2]][:, :, [3]], rtol=1e-4, atol=1e-4)


def test_a_term_is_its_pattern_times_its_circuit():
    model = random_attn(positions="shortformer")
    ids = some_ids(model)
    terms = path_expansion(model, ids)
    table = full_ov(model, 0, 3, norm="ignore").dense()
    torch.testing.assert_close(terms[((0, 3),)], terms.pattern(((0, 3),)) @ table[ids])
    virtual = terms.pattern(((0, 3), (1, 1)))
    torch.testing.assert_close(virtual, terms.pattern(((1, 1),)) @ terms.pattern(((0, 3),)))
    torch.testing.assert_close(virtual.sum(-1), torch.ones(2, 7))
    assert torch.equal(terms.pattern(()), torch.eye(7).expand(2, 7, 7))


def test_frozen_attention_is_linear_in_the_embedding():
    model = random_attn()
    ids = some_ids(model)
    x, y = torch.randn(2, 2, 7, model.d_model, generator=torch.Generator().manual_seed(2))
    with record(model, ["pattern@0", "pattern@1"]) as acts:
        model(ids)
    frozen = {f"pattern@{layer}": freeze(acts[f"pattern@{layer}"]) for layer in range(2)}

    def logits(embedding):
        with intervene(model, frozen | {"embed": set_to(embedding)}):
            return model.logits(ids)

    both, apart = logits(2 * x - 3 * y), 2 * logits(x) - 3 * logits(y)
    assert ((both - apart).norm() / both.norm()).item() <= 1e-5


def test_mixed_products():
    """(A ⊗ B)(C ⊗ D) = AC ⊗ BD, what makes patterns and weights multiply apart."""
    draw = torch.Generator().manual_seed(0)
    A, B, C, D = (torch.randn(5, 5, generator=draw, dtype=torch.float64) for _ in range(4))
    apart = torch.kron(A, B) @ torch.kron(C, D)
    torch.testing.assert_close(apart, torch.kron(A @ C, B @ D), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name, sizes", [("Olmo2", {"num_key_value_heads": 2}), ("Llama", {"num_key_value_heads": 1})]
)
def test_norms_before_and_after_attention(name, sizes):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=19, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        attn_implementation="sdpa", pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes,
    )  # fmt: skip
    model = Model(getattr(transformers, f"{name}ForCausalLM")(config))
    draw = torch.Generator().manual_seed(3)
    for parameter, weight in model.module.named_parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * (0 if "down_proj" in parameter else 0.3)
    assert path_expansion(model, some_ids(model)).remainder.relative < 1e-4


def test_paths_out_of_reach_are_refused():
    model = random_attn()
    terms = path_expansion(model, some_ids(model))
    for path in [((1, 0), (0, 0)), ((0, 4),), ((2, 0),), ((0, 1), (0, 2))]:
        with pytest.raises(VesaliusError, match="Path"):
            terms[path]
    with pytest.raises(VesaliusError, match="begin with tokens"):
        terms.of("positions")
    for wrong in ({"order": -1}, {"positions": [7]}, {"tokens": [-1]}):
        with pytest.raises(VesaliusError):
            path_expansion(model, some_ids(model), **wrong)
