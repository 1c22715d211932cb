"""G16, cross-engine equality: what is recorded is what plain tensor algebra computes, and no trace stays.

Truth: the forward pass written out below from the weights alone, for three kinds of positions, with and
without norms and MLP. Edits and recordings compose in the order they were opened, act on every row of a
batch for itself, pass gradients, and are gone after the block, whatever happened inside. Methods do not
write into what was recorded.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import _get_current_function_mode_stack

import vesalius as vs
from vesalius import access
from vesalius.architectures.toy import angles, turn
from vesalius.dictionaries import SparseDictionary
from vesalius.errors import Inapplicable
from vesalius.method import methods
from vesalius.testbed import handwritten_induction, random_attn

FAMILIES = [
    {"positions": positions, "norm": norm, "d_mlp": d_mlp}
    for positions in ("shortformer", "residual", "rotary")
    for norm, d_mlp in ((False, 0), (True, 96))
]
IDS = torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(0))


def plain_forward(model: vs.Model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every point of the forward pass by its address, from `model.weight` and einsum."""
    w, points, shape = model.weight, {}, model.module.shape
    norm, kind, length = shape["norm"], shape["positions"], ids.shape[1]

    def normed(x, role, layer=None):
        return F.layer_norm(x, x.shape[-1:], w(role, layer), w(f"{role}_bias", layer)) if norm else x

    x = w("W_E")[ids] + (w("W_pos")[:length] if kind == "residual" else 0)
    for layer in range(model.n_layers):
        points[f"resid_pre@{layer}"] = x
        read = normed(x, "norm1", layer)
        placed = read + (w("W_pos")[:length] if kind == "shortformer" else 0)
        q, k, v = (
            torch.einsum("bpd,hdi->bhpi", source, w(role, layer))
            for source, role in ((placed, "W_Q"), (placed, "W_K"), (read, "W_V"))
        )
        if kind == "rotary":
            turned = angles(torch.arange(length)[None], model.d_head)
            q, k = turn(q, turned), turn(k, turned)
        scores = torch.einsum("bhqi,bhki->bhqk", q, k) / model.d_head**0.5
        pattern = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
        z = pattern @ v
        attn_out = torch.einsum("bhpi,hid->bpd", z, w("W_O", layer))
        x = x + attn_out
        inside = {"q": q, "k": k, "v": v, "pattern": pattern, "z": z, "attn_out": attn_out}
        points |= {f"{role}@{layer}": value for role, value in inside.items()}
        if shape["d_mlp"]:
            points[f"resid_mid@{layer}"] = x
            neurons = F.gelu(normed(x, "norm2", layer) @ w("W_in", layer) + w("b_in", layer))
            mlp_out = neurons @ w("W_out", layer) + w("b_out", layer)
            points |= {f"neurons@{layer}": neurons, f"mlp_out@{layer}": mlp_out}
            x = x + mlp_out
        points[f"resid_post@{layer}"] = x
    points["logits"] = normed(x, "norm_final") @ w("W_U")
    return points


def hooks(model: vs.Model) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.module.modules()
    )


def untouched(model: vs.Model, before: torch.Tensor) -> bool:
    """Same bits as before, no hook, no function mode."""
    return torch.equal(model(IDS), before) and hooks(model) == 0 and not _get_current_function_mode_stack()


@pytest.mark.parametrize(
    "family", FAMILIES, ids=lambda f: f"{f['positions']}-{'norm-mlp' if f['norm'] else 'attn'}"
)
def test_every_recorded_point_is_what_plain_algebra_gives(family):
    model = random_attn(seed=1, **family)
    alone, plain = model(IDS), plain_forward(model, IDS)
    with vs.record(model, list(plain)) as acts:
        recorded = model(IDS)
    assert torch.equal(recorded, alone), "recording changed the output"
    assert set(acts) == set(plain)
    for site, value in plain.items():
        torch.testing.assert_close(
            acts[site], value, atol=1e-5, rtol=1e-5, msg=lambda text, site=site: f"{site}: {text}"
        )
    torch.testing.assert_close(acts["pattern@1[2]"], plain["pattern@1"][:, 2], atol=1e-5, rtol=0)
    assert untouched(model, alone)


def test_edits_compose_outermost_first_and_a_recording_sees_them_all():
    model = random_attn()
    with (
        vs.record(model, "resid_post@0") as before_all,
        vs.intervene(model, {"resid_post@0": lambda x: x + 1}),
        vs.intervene(model, {"resid_post@0": lambda x: x * 2}),
        vs.record(model, "resid_post@0") as after_all,
    ):
        model(IDS)
    with vs.record(model, "resid_post@0") as clean:
        model(IDS)
    expected = (clean["resid_post@0"] + 1) * 2
    assert torch.equal(after_all["resid_post@0"], expected)
    assert torch.equal(before_all["resid_post@0"], expected), "a recording sees the value that flows on"


def test_an_edit_of_one_head_reaches_that_head_alone_and_flows_on():
    model = random_attn()
    with vs.intervene(model, {"z@0[3]": vs.zero()}), vs.record(model, ["z@0", "attn_out@0"]) as acts:
        edited = model(IDS)
    plain = plain_forward(model, IDS)
    z = plain["z@0"].clone()
    z[:, 3] = 0
    torch.testing.assert_close(acts["z@0"], z, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        acts["attn_out@0"], torch.einsum("bhpi,hid->bpd", z, model.weight("W_O", 0)), atol=1e-5, rtol=0
    )
    assert not torch.allclose(edited, plain["logits"])


def test_rows_of_a_batch_do_not_see_each_other():
    model = random_attn()
    with vs.record(model, ["pattern@*", "resid_post@1"]) as acts, vs.intervene(model, {"z@0[1]": vs.zero()}):
        together = model(IDS)
    for row in range(len(IDS)):
        with (
            vs.record(model, ["pattern@*", "resid_post@1"]) as one,
            vs.intervene(model, {"z@0[1]": vs.zero()}),
        ):
            alone = model(IDS[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)
        for site in acts:
            torch.testing.assert_close(acts[site][row], one[site][0], atol=1e-5, rtol=0)


def test_gradients_pass_through_recordings_and_edits():
    model = random_attn()
    sites = ["resid_post@0", "z@1", "pattern@1"]
    with vs.record(model, sites, gradients=True) as acts:
        logits = model(IDS)
        grads = torch.autograd.grad(logits[:, -1, 7].sum(), [acts[site] for site in sites])
    upstream = model.weight("W_U")[:, 7]
    by_head = torch.einsum("hid,d->hi", model.weight("W_O", 1), upstream)
    expected = torch.zeros_like(acts["z@1"])
    expected[:, :, -1] = by_head
    torch.testing.assert_close(grads[1], expected, atol=1e-5, rtol=0)
    assert torch.isfinite(grads[0]).all() and grads[0].norm() > 0
    with vs.record(model, "v@1") as plain:
        model(IDS)
    towards = torch.einsum("bhki,hi->bhk", plain["v@1"], by_head)  # d logit / d pattern[last query]
    torch.testing.assert_close(grads[2][:, :, -1], towards, atol=1e-5, rtol=0)
    nudge = torch.zeros(model.d_model, requires_grad=True)
    with vs.intervene(model, {"resid_post@1": lambda x: x + nudge}):
        model(IDS)[:, -1, 7].sum().backward()
    torch.testing.assert_close(nudge.grad, len(IDS) * upstream, atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["resid_post@0", "pattern@0", "z@1[2]", "blocks.1.attn:in"])
def test_nothing_survives_an_exception(site):
    model = random_attn()
    before = model(IDS)

    def explode(value):
        raise ZeroDivisionError("in an edit")

    with (
        pytest.raises(ZeroDivisionError),
        vs.record(model, "pattern@*"),
        vs.intervene(model, {site: explode}),
    ):
        model(IDS)
    assert untouched(model, before)
    with pytest.raises(KeyError), vs.intervene(model, {site: vs.zero()}), vs.record(model, site):
        model(IDS)
        raise KeyError("in the block")
    assert untouched(model, before)
    with pytest.raises(vs.VesaliusError), vs.record(model, [site, "pattern@9"]):
        model(IDS)
    assert untouched(model, before)


def test_a_site_that_never_fires_raises():
    model = random_attn()
    with pytest.raises(vs.VesaliusError, match="never fired"), vs.record(model, "pattern@0"):
        pass
    with pytest.raises(vs.VesaliusError, match="never fired"), vs.intervene(model, {"pattern@0": vs.zero()}):
        pass
    assert hooks(model) == 0


def test_stopping_early_records_the_same_and_leaves_nothing():
    model = random_attn()
    before, plain = model(IDS), plain_forward(model, IDS)
    with vs.record(model, "pattern@0", stop=True) as acts:
        assert model(IDS) is None
    torch.testing.assert_close(acts["pattern@0"], plain["pattern@0"], atol=1e-5, rtol=0)
    assert untouched(model, before)


def test_what_was_recorded_is_a_copy():
    model = random_attn()
    with vs.record(model, ["resid_post@0", "pattern@1"]) as acts:
        first = model(IDS)
    acts["resid_post@0"].zero_()
    acts["pattern@1"].fill_(7)
    assert untouched(model, first)


@pytest.mark.parametrize("name", sorted(name for name, m in methods().items() if "tokenizer" not in m.needs))
def test_methods_never_write_into_what_was_recorded(name, monkeypatch):
    method = methods()[name]
    if method.subject == "feature":
        pytest.skip("it is about a feature of pictures")
    model = random_attn(d_mlp=32) if method.subject == "dictionary" else handwritten_induction()
    if method.missing(model):
        pytest.skip(f"needs {', '.join(sorted(method.missing(model)))}")
    about = [SparseDictionary.of_directions("neurons@0", torch.eye(32))] if method.subject else []
    handed, copied = [], access._copied
    before = model.hash

    def watched(value, copies):
        kept = copied(value, copies)
        handed.append((kept, kept._version))
        return kept

    monkeypatch.setattr(access, "_copied", watched)
    try:
        method.function(model, *about)
    except Inapplicable as reason:
        pytest.skip(str(reason))
    assert all(kept._version == version for kept, version in handed), "a recorded tensor was changed in place"
    del model.hash
    assert model.hash == before and hooks(model) == 0
