"""Recording never changes a network, edits do exactly what they say, and nothing is left behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.errors import VesaliusError

IDS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(0))
CLASSIC = ["resid_pre@*", "resid_post@*", "attn_out@*", "q@*", "k@*", "v@*", "pattern@*", "z@*", "logits"]


@pytest.fixture
def model():
    return vs.Model(ToyTransformer(n_layers=2, d_model=32, n_heads=4, d_vocab=50, n_ctx=16), name="toy")


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Twice(nn.Module):
    """One linear layer that runs twice, then an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.linear(self.linear(x)))


def test_outputs_are_bit_identical_while_recording(model):
    alone = model(IDS)
    with vs.record(model, CLASSIC) as acts:
        recorded = model(IDS)
    assert torch.equal(alone, recorded)
    assert len(acts) == 8 * 2 + 1
    assert torch.equal(acts["logits"], alone)
    assert hooks(model.module) == 0


def test_the_attention_identities(model):
    with vs.record(model, CLASSIC) as acts:
        model(IDS)
    assert torch.allclose(acts["pattern@1"] @ acts["v@1"], acts["z@1"], atol=1e-6)
    assert torch.allclose(acts["pattern@1"].sum(-1), torch.ones(2, 4, 10))
    assert torch.equal(acts["z@1[2]"], acts["z@1"][:, 2])
    assert torch.equal(acts["resid_post@0"], acts["resid_pre@1"])
    assert acts.stack("z@*").shape == (2, 2, 4, 10, 8)


def test_a_recorded_value_is_a_copy_that_in_place_operations_do_not_reach():
    net = Twice()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with vs.record(net, ["linear#1", "relu"]) as acts:
        net(x)
    assert (acts["linear#1"] < 0).any()
    assert (acts["relu"] >= 0).all()


def test_a_module_that_runs_twice_needs_its_call_named():
    net = Twice()
    with pytest.raises(VesaliusError, match="linear:out#0|linear#0"), vs.record(net, "linear"):
        net(torch.zeros(1, 4))
    assert hooks(net) == 0


def test_a_call_that_does_not_happen_never_fired():
    net = Twice()
    with pytest.raises(VesaliusError, match="never fired"), vs.record(net, "linear#2"):
        net(torch.zeros(1, 4))


def test_a_recording_sees_the_value_after_every_edit_wherever_it_was_opened(model):
    with (
        vs.record(model, "z@0") as before,
        vs.intervene(model, {"z@0[3]": vs.zero()}),
        vs.record(model, "z@0") as after,
    ):
        model(IDS)
    assert torch.equal(before["z@0"], after["z@0"])
    assert before["z@0[3]"].abs().max() == 0
    assert before["z@0[2]"].abs().max() > 0


def test_nested_edits_compose_outermost_first(model):
    double, increment = (lambda value: value * 2), (lambda value: value + 1)
    with vs.record(model, "embed") as plain:
        model(IDS)
    with (
        vs.intervene(model, {"embed": double}),
        vs.intervene(model, {"embed": increment}),
        vs.record(model, "embed") as acts,
    ):
        model(IDS)
    assert torch.allclose(acts["embed"], plain["embed"] * 2 + 1)


def test_zeroing_a_head_takes_exactly_its_write_away(model):
    with vs.record(model, ["z@0", "attn_out@0"]) as acts:
        model(IDS)
    with vs.intervene(model, {"z@0[1]": vs.zero()}), vs.record(model, "attn_out@0") as ablated:
        model(IDS)
    write = acts["z@0[1]"] @ model.weight("W_O", 0)[1]
    assert torch.allclose(acts["attn_out@0"] - write, ablated["attn_out@0"], atol=1e-6)


@pytest.mark.parametrize("port", ["q", "k", "v", "pattern", "z"])
def test_every_port_inside_attention_can_be_replaced(model, port):
    alone = model(IDS)
    with vs.intervene(
        model, {f"{port}@1": lambda value: value * 0.5 if port != "pattern" else value.roll(1, -1)}
    ):
        assert not torch.allclose(model(IDS), alone)
    with vs.intervene(model, {f"{port}@1": lambda value: value.clone()}):
        assert torch.allclose(model(IDS), alone, atol=1e-6)


def test_gradients_flow_through_recorded_sites(model):
    for site in ("resid_post@0", "pattern@1", "z@0", "q@1"):
        with vs.record(model, site, gradients=True) as acts:
            loss = model(IDS).square().sum()
        (gradient,) = torch.autograd.grad(loss, acts[site])
        assert gradient.shape == acts[site].shape
        assert gradient.abs().sum() > 0


def test_the_gradient_at_a_site_is_the_effect_of_a_small_edit(model):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    module = model.module.double()
    with vs.record(model, "resid_post@0", gradients=True) as acts:
        loss = module(IDS).square().sum()
    (gradient,) = torch.autograd.grad(loss, acts["resid_post@0"])
    losses = []
    for scale in (-1e-5, 1e-5):
        with vs.intervene(model, {"resid_post@0": vs.add(direction, scale)}):
            losses.append(module(IDS).square().sum())
    assert torch.allclose((losses[1] - losses[0]) / 2e-5, (gradient @ direction.double()).sum(), rtol=1e-4)


def test_a_forward_stops_at_the_last_recorded_site(model):
    ran = []
    handle = model.module.unembed.register_forward_hook(lambda *_: ran.append(1))
    with vs.record(model, ["resid_post@0", "pattern@0"], stop=True) as acts:
        assert model(IDS) is None
    handle.remove()
    assert not ran
    assert acts["resid_post@0"].shape == (2, 10, 32)
    assert hooks(model.module) == 0
    with vs.record(model.module, "blocks.0", stop=True) as acts:
        model.module(IDS)
    assert "blocks.0" in acts


def test_an_exception_leaves_no_hook_and_no_mode_behind(model):
    alone = model(IDS)

    def fail(value):
        raise RuntimeError("on purpose")

    with (
        pytest.raises(RuntimeError, match="on purpose"),
        vs.record(model, "pattern@*"),
        vs.intervene(model, {"z@1": fail}),
    ):
        model(IDS)
    assert hooks(model.module) == 0
    assert torch.equal(model(IDS), alone)
    assert F.softmax(torch.zeros(1, 1, 1, 2), -1).sum() == 1


def test_several_forwards_are_kept_apart(model):
    with vs.record(model, "z@0") as acts:
        model(IDS)
        model(IDS[:1])
    assert [run["z@0"].shape[0] for run in acts.runs] == [2, 1]
    with pytest.raises(VesaliusError, match="2 forwards"):
        acts["z@0"]


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("blocks.0.atn:pattern", "nearest is blocks.0.attn"),
        ("pattern@7", "layers 0 to 1"),
        ("embed:pattern", "never fired: no attention"),
        ("pattern@0[9]", "expected 0 to 3"),
        ("mlp_out@0", "has no 'mlp_out'"),
    ],
)
def test_a_site_that_cannot_be_says_why(model, site, said):
    with pytest.raises(VesaliusError, match=said), vs.record(model, site):
        model(IDS)
    assert hooks(model.module) == 0


def test_a_site_that_is_never_reached_raises_for_edits_too(model):
    with pytest.raises(VesaliusError, match="never fired"), vs.intervene(model, {"pattern@0": vs.zero()}):
        pass


def test_an_edit_must_keep_the_shape(model):
    with (
        pytest.raises(VesaliusError, match=r"returned \(2, 10, 31\)"),
        vs.intervene(model, {"resid_pre@1": lambda v: v[..., 1:]}),
    ):
        model(IDS)


def test_a_role_of_an_unknown_architecture_says_so():
    with (
        pytest.raises(VesaliusError, match="not a known architecture"),
        vs.record(nn.Linear(2, 2), "resid_post@0"),
    ):
        pass


def test_images_index_channels_on_the_first_axis():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with vs.record(net, ["0[4]", "1"]) as acts:
        net(x)
    assert torch.equal(acts["0[4]"], net[0](x)[:, 4])
    with vs.intervene(net, {"0[4]": vs.zero()}):
        assert net(x)[:, 4].abs().max() == 0


def test_padded_texts_are_read_as_if_alone(model):
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    with vs.record(model, "pattern@1") as acts:
        model({"input_ids": IDS, "attention_mask": mask})
    with vs.record(model, "pattern@1") as alone:
        model(IDS[1:, :6])
    assert torch.allclose(acts["pattern@1"][1, :, :6, :6], alone["pattern@1"][0], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_kept(model, dtype):
    model.module.to(dtype)
    with vs.record(model, CLASSIC) as acts, vs.intervene(model, {"z@0": vs.add(torch.ones(8))}):
        model(IDS)
    assert {value.dtype for value in acts.values()} == {dtype}
