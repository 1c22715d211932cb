"""Diffs of weights: applied, inverted to the bit, saved, and refused by any other network."""

import pytest
import torch

from vesalius.access import record
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.testbed import random_attn
from vesalius.weights.weight_diff import LowRank, WeightDiff
from vesalius.weights.weight_edits import (
    key_of,
    second_moment,
    value_for,
    with_association,
    without_direction,
)

SHAPE = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_vocab": 40, "n_ctx": 24, "d_mlp": 48}


def network(positions: str = "residual", norm: bool = False) -> Model:
    return random_attn(**SHAPE, positions=positions, norm=norm, seed=3)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", ["residual", "rotary", "shortformer"])
def test_nothing_is_written_along_an_ablated_direction(positions):
    model, direction = network(positions), drawn(32)
    with torch.no_grad():
        model.module.blocks[0].mlp.down.bias.copy_(drawn(32, seed=1))
    model = Model(model.module, bos=0, name="biased")
    edited = without_direction(model, direction).apply(model)
    with record(edited, "resid_post@*") as acts:
        edited(torch.arange(20)[None])
    along = acts.stack("resid_post@*") @ torch.nn.functional.normalize(direction, dim=0)
    assert along.abs().max() < 1e-5


def test_it_is_as_if_the_direction_were_projected_out_of_every_write():
    import vesalius as vs

    model, direction, ids = network(norm=True), drawn(32), torch.arange(20)[None]
    edited = without_direction(model, direction).apply(model)
    edits = {site: vs.project_out(direction) for site in ("embed", "attn_out@*", "mlp_out@*")}
    with vs.intervene(model, edits):
        wanted = model.logits(ids)
    assert torch.allclose(edited.logits(ids), wanted, atol=1e-4)


def test_gpt2_is_stored_the_other_way_round():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=24, vocab_size=40, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = Model(transformers.GPT2LMHeadModel(config), name="gpt2")
    diff = without_direction(model, drawn(32))
    edited = diff.apply(model)
    with record(edited, "resid_post@*") as acts:
        edited(torch.arange(20)[None])
    along = acts.stack("resid_post@*") @ torch.nn.functional.normalize(drawn(32), dim=0)
    assert along.abs().max() < 1e-5 and diff.about["tied"] and diff.invert(edited).hash == model.hash


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_diff_is_undone_to_the_bit(dtype, tmp_path):
    model = network()
    model = Model(model.module.to(dtype), bos=0, name="typed")
    diff = without_direction(model, drawn(32))
    edited = diff.apply(model)
    loaded = WeightDiff.load(diff.save(tmp_path / "diff"))
    assert loaded.apply(model).hash == edited.hash == diff.child_hash != model.hash
    assert loaded.invert(edited).hash == model.hash == diff.parent_hash and diff.rank == 1
    lost = [len(change.lost) / weight.numel() for change, weight in _changes(diff, model)]
    assert sum(lost) / len(lost) < 0.2


def _changes(diff: WeightDiff, model: Model):
    own = dict(model.module.named_parameters())
    return [(change, own[name]) for name, change in diff.changes.items() if isinstance(change, LowRank)]


def test_any_change_can_be_kept(tmp_path):
    model, other = network(), network()
    with torch.no_grad():
        other.module.blocks[1].mlp.up.weight[3] = 7.0
    diff = WeightDiff.between(model, other)
    assert list(diff.changes) == ["blocks.1.mlp.up.weight"] and diff.rank is None
    loaded = WeightDiff.load(diff.save(tmp_path / "diff.safetensors"))
    assert loaded.apply(model).hash == other.hash and loaded.invert(other).hash == model.hash
    assert (tmp_path / "diff.safetensors").stat().st_size < 4000


def test_an_association_is_what_the_mlp_then_says():
    model = network()
    ids = torch.randint(1, 40, (8, 20), generator=torch.Generator().manual_seed(0))
    rows, places, target = [ids[0][:12], ids[1][:9]], [5, 4], 17
    key, moment = key_of(model, 0, rows[:1], places[:1]), second_moment(model, 0, ids)
    value = value_for(model, 0, rows=rows[:1], places=places[:1], target=target, steps=40)
    diff = with_association(model, 0, key=key, value=value, second_moment=moment)
    edited = diff.apply(model)
    with record(edited, ["neurons@0", "mlp_out@0"]) as acts:
        edited(rows[0][None])
    assert torch.allclose(acts["mlp_out@0"][0, 5], value, atol=1e-3)
    before, after = (m.logits(rows[0][None])[0, -1].softmax(-1)[target] for m in (model, edited))
    assert after > 3 * before and diff.rank == 1 and list(diff.changes) == ["blocks.0.mlp.down.weight"]


def test_what_cannot_be_is_said_in_a_sentence(tmp_path):
    model, other = network(), network(positions="rotary")
    diff = without_direction(model, drawn(32))
    (tmp_path / "cut.safetensors").write_bytes(diff.save(tmp_path / "diff").read_bytes()[:100])
    for call, said in (
        (lambda: diff.apply(other), "made for random-attn.*nothing to apply"),
        (lambda: diff.invert(model), "nothing to invert"),
        (lambda: without_direction(model, drawn(31)), r"shape \[31\]"),
        (lambda: without_direction(model, torch.zeros(32)), "must not be 0"),
        (lambda: WeightDiff.between(model, other), "not the parameters"),
        (lambda: WeightDiff.load(tmp_path / "cut.safetensors"), "cannot be read"),
    ):
        with pytest.raises(VesaliusError, match=said):
            call()
