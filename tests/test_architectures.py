"""Every architecture through the same checks: its equations, sizes, recording, editing and padding."""

from dataclasses import replace

import pytest
import torch
from architectures_tiny import TINY
from torch import nn

import vesalius.architectures as architectures
from vesalius.access import intervene, record
from vesalius.edits import zero
from vesalius.equations import check_equations, example
from vesalius.errors import VesaliusError
from vesalius.model import Model

pytest.importorskip("transformers")
LAYERED = [name for name in TINY if "bigram" not in name]
TEXT = [name for name in LAYERED if name != "vit"]


def opened(name: str) -> Model:
    build, _ = TINY[name]
    return Model(build(), name=name)


def test_every_registered_architecture_has_an_instance_here():
    seen = {opened(name).architecture.name for name in TINY}
    families = (family for family in architectures.registered() if "maps" not in family.sites)
    known = {family.name for family in families if not family.name.endswith("bigram")}
    assert known <= seen


@pytest.mark.parametrize("name", TINY)
def test_equations_hold(name):
    model = opened(name)
    errors = check_equations(model)
    assert {"embed", "logits"} <= errors.keys()
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("name", TINY)
def test_sizes_are_right(name):
    _, shape = TINY[name]
    assert opened(name).shape == shape


@pytest.mark.parametrize("name", TINY)
def test_recording_everything_changes_nothing(name):
    model = opened(name)
    inputs = example(model, positions=7, seed=1)
    alone = model.logits(inputs)
    everything = [role if role in ("embed", "logits") else f"{role}@*" for role in model.architecture.sites]
    with record(model, everything if model.n_layers else ["embed", "logits"]) as acts:
        recorded = model.logits(inputs)
    assert torch.equal(alone, recorded)
    if model.n_layers:
        length = acts["resid_pre@0"].shape[1]
        assert acts["pattern@1"].shape == (2, model.n_heads, length, length)
        for port in "qkvz":
            assert acts[f"{port}@1"].shape == (2, model.n_heads, length, model.d_head)


@pytest.mark.parametrize("name", LAYERED)
def test_zero_ablating_a_head_takes_away_what_it_wrote(name):
    model = opened(name)
    inputs = example(model, positions=7, seed=2)
    alone = model.logits(inputs)
    with record(model, ["z@0", "attn_out@0"]) as clean:
        model(inputs)
    with intervene(model, {"z@0[2]": zero()}), record(model, ["z@0", "attn_out@0"]) as ablated:
        changed = model.logits(inputs)
    kept = [head for head in range(model.n_heads) if head != 2]
    assert torch.equal(ablated["z@0"][:, kept], clean["z@0"][:, kept])
    assert not ablated["z@0[2]"].any()
    assert not torch.allclose(alone, changed)
    if not model.has("norm1_post"):  # behind a norm a head's part is not additive
        lost = clean["z@0[2]"] @ model.weight("W_O", 0)[2]
        torch.testing.assert_close(ablated["attn_out@0"], clean["attn_out@0"] - lost, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LAYERED)
def test_an_edited_key_reaches_its_own_head_only(name):
    model = opened(name)
    inputs = example(model, positions=7, seed=3)
    with record(model, "pattern@1") as clean:
        model(inputs)
    with intervene(model, {"k@1[3]": zero()}), record(model, "pattern@1") as edited:
        model(inputs)
    assert torch.allclose(edited["pattern@1"][:, :3], clean["pattern@1"][:, :3], atol=1e-6)
    rows = edited["pattern@1[3]"]
    count = (rows > 0).sum(-1, keepdim=True)
    assert torch.allclose(rows, (rows > 0) / count, atol=1e-6)  # a key of zeros attends evenly


@pytest.mark.parametrize("name", TEXT)
def test_padding_on_the_right_changes_no_real_token(name):
    model = opened(name)
    ids = example(model, positions=5, seed=4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    output = model.module(input_ids=ids, attention_mask=mask)
    together = output if isinstance(output, torch.Tensor) else output.logits
    torch.testing.assert_close(together[0], model.logits(ids[:1])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[1, :3], model.logits(ids[1:, :3])[0], atol=1e-5, rtol=1e-4)


def test_a_wrong_table_is_named_by_its_equation():
    model = opened("llama")
    family = model.architecture
    weights = dict(family.weights)
    weights["W_V"] = lambda module, layer: family.weights["W_V"](module, layer).flip(0)
    model.architecture = replace(family, weights=weights)
    with pytest.raises(VesaliusError, match="'values' of the architecture llama at layer 0"):
        check_equations(model)


@pytest.mark.parametrize(
    "name", ["toy-shortformer-norm-mlp", "gpt2", "neox", "gemma2", "gemma3", "bert", "vit"]
)
def test_an_error_in_any_weight_is_seen(name):
    model = opened(name)
    family = model.architecture
    for role, reader in family.weights.items():

        def wrong(module, layer, reader=reader):
            weight = reader(module, layer)
            return weight + 0.05 * weight.abs().max().clamp(min=0.1) * torch.linspace(
                -1, 1, weight.numel() or 1
            ).reshape(weight.shape)

        model.architecture = replace(family, weights={**family.weights, role: wrong})
        with pytest.raises(VesaliusError, match="breaks the equation"):
            check_equations(model)
            pytest.fail(f"{role} may be wrong without being seen")


def test_an_unknown_module_has_no_architecture_and_no_equations():
    model = Model(nn.Linear(2, 2))
    assert model.architecture is None
    assert check_equations(model) == {}
