"""Learning sparse dictionaries: the recipe to the letter, gradients against dense ones, and runs that go on."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from vesalius.dictionaries.kernels import Everywhere, Support, decode, preactivations
from vesalius.dictionaries.resampling import SHARE, drawn, resample
from vesalius.dictionaries.rows import TensorRows
from vesalius.dictionaries.sparse import SparseDictionary
from vesalius.dictionaries.stream import Stream
from vesalius.dictionaries.train import fit_many, fit_sae
from vesalius.dictionaries.training import Plan, Training
from vesalius.dictionaries.transcoders import fit_cross_layer_transcoder, fit_crosscoder, fit_transcoder
from vesalius.dictionaries.variants import VARIANTS, variant_of
from vesalius.dictionaries.variants.largest import largest_of_batch
from vesalius.errors import VesaliusError

RELU = "relu_l1(0.01, resample_at=(4, 6, 8, 10), dead_after=2, scored=128)"
KINDS = [RELU, "april(1.0)", "gated(0.01)", "topk(3)", "batch_topk(3)", "matryoshka(3)", "jump_relu(0.01)"]


def rows(count=512, width=8, sites=1, seed=0):
    generator = torch.Generator().manual_seed(seed + 99)
    tensors = tuple(torch.randn(count, width, generator=generator).relu() for _ in range(sites))
    return TensorRows(tuple(f"site@{i}" for i in range(sites)), tensors)


def training(activation, *, latents=24, batch=64, steps=20, data=None, **plan):
    stream = Stream(data or rows(), batch, 0, "cpu")
    return Training(
        stream, Plan(latents, activation, **plan), steps=steps, folder=None, product="float32", name="test"
    )


# ----------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("kind", ["listed", "everywhere"])
@pytest.mark.parametrize("shift", [0.0, 1.0, 99.0], ids=["crowded", "few", "none"])
def test_sparse_gradients_are_the_dense_ones(shift, kind):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.double)  # noqa: E731
    x, parameters = draw(7, 5), [draw(11, 5), draw(11) - shift, draw(5), draw(11, 5)]
    for parameter in parameters:
        parameter.requires_grad_()

    def dense(encoder, bias, centre, decoder):
        return ((x - centre) @ encoder.T + bias).relu() @ decoder

    def sparse(encoder, bias, centre, decoder):
        with torch.no_grad():
            pre = (x - centre) @ encoder.T + bias
            support = (
                Support.of_mask(pre > 0) if kind == "listed" else Everywhere(*pre.shape, device=pre.device)
            )
        before = preactivations(support, support.of(pre), x - centre.detach(), encoder, bias, centre)
        return decode(support, before.relu(), decoder)

    upstream = draw(7, 5)
    torch.testing.assert_close(sparse(*parameters), dense(*parameters))
    torch.testing.assert_close(
        torch.autograd.grad(sparse(*parameters), parameters, upstream),
        torch.autograd.grad(dense(*parameters), parameters, upstream),
    )
    assert torch.autograd.gradcheck(sparse, tuple(parameters))


def test_unordered_latents_have_the_same_gradients():
    """`topk` gives the latents of a row in any order."""
    generator = torch.Generator().manual_seed(2)
    pre, decoder = torch.randn(6, 40, generator=generator), torch.randn(40, 5, generator=generator)
    values, latents = pre.topk(4, sorted=False)
    support, codes = Support.of_latents(latents, 40), values.flatten().requires_grad_()
    decoder.requires_grad_()
    upstream = torch.randn(6, 5, generator=generator)
    ours = torch.autograd.grad(decode(support, codes, decoder), [codes, decoder], upstream)
    made = torch.zeros(6, 40).index_put((support.rows, support.latents), codes) @ decoder
    torch.testing.assert_close(ours, torch.autograd.grad(made, [codes, decoder], upstream))


@pytest.mark.parametrize("kind", ["relu_l1(0.01)", "april(1.0)"])
def test_whole_matrices_at_the_start_compute_what_lists_compute(kind, monkeypatch):
    """A rectifier lets half pass at first; rows are taken in parts, some of which may be crowded and some not."""

    def learned(crowded: float, part: int) -> tuple[Training, set]:
        monkeypatch.setattr("vesalius.dictionaries.variants.variant.CROWDED", crowded)
        monkeypatch.setattr("vesalius.dictionaries.training.PART", part)
        run = training(kind, lr=0.003)
        supports = set()
        for step in range(6):
            supports.add(type(run.forward(run.stream.batch(step)).support))
            run.advance(run.stream.batch(step))
        return run, supports

    lists, kinds = learned(2.0, 2**22)
    assert kinds == {Support}
    for crowded, part, expected in ((0.2, 2**22, Everywhere), (0.2, 24 * 16, Everywhere), (0.5, 24, Support)):
        whole, kinds = learned(crowded, part)
        assert expected in kinds
        for ours, theirs in zip(whole.weights.named().values(), lists.weights.named().values()):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole.window, lists.window)
        assert whole.last.equal(lists.last)


def test_largest_of_batch_is_exact():
    pre = torch.randn(300, 50, generator=torch.Generator().manual_seed(3))
    support, values = largest_of_batch(pre, k=4)
    assert torch.equal(values.sort().values, pre.flatten().topk(1200).values.sort().values)
    torch.testing.assert_close(values, pre[support.rows, support.latents])


# ---------------------------------------------------------------------------------------------------------- variants


def test_every_kind_is_tried_here():
    assert {kind.partition("(")[0] for kind in KINDS} == set(VARIANTS)


@pytest.mark.parametrize("kind", KINDS)
def test_error_falls_and_vectors_keep_their_length(kind):
    run = training(kind, lr=0.003, steps=40)
    for step in range(run.steps):
        run.advance(run.stream.batch(step))
        if run.variant.unit_norm:
            assert (run.weights.decoder.norm(dim=1) - 1).abs().max() < 1e-6
    assert run.window[-1][0] < run.window[0][0] or kind.startswith("april")  # whose penalty only begins
    assert str(variant_of(str(run.variant))) == str(run.variant)


@pytest.mark.parametrize("kind", ["topk(3)", "gated(0.01)", "jump_relu(0.01)", "april(1.0)", RELU])
def test_dictionary_computes_what_was_trained(kind):
    """Scales, gates and thresholds folded into one dictionary in the units of the activations."""
    run = training(kind, lr=0.01)
    for step in range(run.steps):
        run.advance(run.stream.batch(step))
    sites = run.stream.batch(3)
    with torch.no_grad():
        p = run.forward(sites)
    dictionary = run.dictionary()
    torch.testing.assert_close(dictionary.reconstruct(sites[0]), p.made / run.scale_out, atol=1e-4, rtol=1e-4)
    assert int((dictionary.encode(sites[0]) > 0).sum()) == int((p.codes > 0).sum())


def test_threshold_of_batch_topk_keeps_about_k():
    data = rows(4096, 16)
    dictionary = fit_sae(data, latents=64, activation="batch_topk(5)", steps=60, batch=256)
    assert dictionary.k is None and dictionary.threshold.unique().numel() <= 64
    assert 4 < (dictionary.encode(data.tensors[0]) > 0).sum(1).float().mean() < 6.5


def test_auxk_reaches_the_encoder_of_dead_latents_and_no_other():
    """In other libraries it leaves the encoder as it was, so that the dead stay dead."""
    run = training("topk(2)")
    run.weights.b_enc.data[:5] = -100.0
    run.dead = torch.arange(5)
    p = run.forward(run.stream.batch(0))
    run.variant.loss(p).backward()
    with_aux = run.weights.encoder.grad
    assert with_aux is not None and not (p.support.latents < 5).any()
    assert float(with_aux[:5].abs().max()) == 0.0  # activations far below 0 have no gradient either
    run.weights.b_enc.data[:5] = -1.0
    for parameter in run.weights.named().values():
        parameter.grad = None
    p = run.forward(run.stream.batch(0))
    alive = p.support.latents.unique()
    run.variant.loss(p).backward()
    dead = [i for i in range(5) if i not in alive.tolist()]
    assert dead and run.weights.encoder.grad[dead].abs().sum() > 0


def test_dead_count_is_exact():
    run = training("topk(2, dead_after=10)", steps=12)
    run.weights.b_enc.data[[3, 7, 11]] = -1e6
    fired = torch.zeros(24, dtype=torch.long)
    for step in range(run.steps):
        run.advance(run.stream.batch(step))
        with torch.no_grad():
            pass
    fired = run.last
    assert run.log()["dead"] == int((run.steps - fired >= 10).sum()) >= 3
    assert fired[[3, 7, 11]].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("given", "said"),
    [("topkk(3)", "topk"), ("topk(three)", "does not read as topk"), ("topk(kk=3)", "unexpected keyword")],
)
def test_kinds_that_are_none(given, said):
    with pytest.raises(VesaliusError, match=said):
        variant_of(given)


# --------------------------------------------------------------------------------------------------------- resampling


def test_resampling_sets_exactly_the_dead_anew():
    run = training(RELU, lr=0.01)
    for step in range(3):
        run.advance(run.stream.batch(step))
    w, dead = run.weights, torch.tensor([2, 9, 17])
    others = torch.ones(24, dtype=torch.bool).index_fill_(0, dead, False)
    before = {name: part.detach().clone() for name, part in w.named().items()}
    moments = {name: run.optimiser.state[part]["exp_avg"].clone() for name, part in w.named().items()}
    inputs = 7 * torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    resample(w, run.optimiser, dead=dead, read=inputs, written=inputs)

    unit = inputs / inputs.norm(dim=1, keepdim=True)
    torch.testing.assert_close(w.decoder[dead], unit)
    torch.testing.assert_close(w.encoder[dead], SHARE * before["encoder"][others].norm(dim=1).mean() * unit)
    assert w.b_enc[dead].tolist() == [0, 0, 0]
    for name in ("encoder", "decoder", "b_enc"):
        state = run.optimiser.state[w.named()[name]]
        assert not state["exp_avg"][dead].any() and not state["exp_avg_sq"][dead].any()
        assert torch.equal(state["exp_avg"][others], moments[name][others]) and moments[name][others].any()
        assert torch.equal(w.named()[name][others], before[name][others])
    assert torch.equal(run.optimiser.state[w.b_dec]["exp_avg"], moments["b_dec"])


def test_inputs_are_drawn_by_the_square_of_their_loss():
    from scipy.stats import chisquare

    losses, draws = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), 3000
    generator = torch.Generator().manual_seed(0)
    counts = (
        torch.stack([drawn(losses, 1, generator=generator) for _ in range(draws)])
        .flatten()
        .bincount(minlength=5)
    )
    assert counts[0] == 0
    assert chisquare(counts[1:].numpy(), (draws * losses[1:] ** 2 / 30).numpy()).pvalue > 0.01
    assert drawn(losses, 9, generator=generator).sort().values.tolist() == [1, 2, 3, 4]


def test_resampling_stops_after_its_four_steps(monkeypatch):
    seen = []
    run = training(RELU)
    monkeypatch.setattr(
        "vesalius.dictionaries.training.resample",
        lambda w, o, *, dead, read, written: seen.append(dead.tolist()),
    )
    for step in range(run.steps):
        run.weights.b_enc.data[:4] = -1e6
        run.advance(run.stream.batch(step))
    assert len(seen) == 4 and all(set(range(4)) <= set(dead) for dead in seen)


def test_no_activation_comes_twice_within_an_epoch():
    data = TensorRows(("site@0",), (torch.arange(640.0)[:, None].expand(-1, 4).contiguous(),))
    stream = Stream(data, 64, 5, "cpu")
    seen = torch.cat([stream.batch(step)[0][:, 0] for step in range(stream.epoch)])
    assert seen.unique().numel() == 640
    shared = torch.cat(
        [stream.batch(step, rank=rank, world=2)[0][:, 0] for step in range(10) for rank in (0, 1)]
    )
    assert shared.unique().numel() == 640


# --------------------------------------------------------------------------------------------------- runs and folders


@pytest.mark.parametrize("kind", [RELU, "topk(3, dead_after=3)"])
def test_a_stopped_run_goes_on_to_the_same_bits(kind, tmp_path):
    make = dict(steps=12, batch=64, save_every=5, log_every=3)
    whole = fit_many(rows(), {"a": Plan(24, kind)}, to=tmp_path / "whole", **make)["a"]
    fit_many(rows(), {"a": Plan(24, kind)}, to=tmp_path / "cut", stop_at=7, **make)
    again = fit_many(rows(), {"a": Plan(24, kind)}, to=tmp_path / "cut", **make)["a"]
    assert again.hash == whole.hash
    first, second = (
        [
            {**json.loads(line), "seconds": 0}
            for line in (tmp_path / name / "a" / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    )
    assert [entry["step"] for entry in first] == [3, 5, 6, 9, 10, 12] and len(second) == len(first)
    assert second[2:] != [] and second[-2:] == first[-2:]
    saved = SparseDictionary.load(tmp_path / "cut" / "a" / "dictionary.safetensors")
    assert saved.hash == whole.hash and saved.about["activation"] == str(variant_of(kind))


def test_several_on_one_stream_are_as_each_alone():
    plans = {"a": Plan(16, "topk(3)"), "b": Plan(24, "gated(0.01)", seed=1)}
    together = fit_many(rows(), plans, steps=6, batch=64)
    for name, plan in plans.items():
        assert fit_many(rows(), {name: plan}, steps=6, batch=64)[name].hash == together[name].hash


def test_a_folder_with_another_run_is_refused(tmp_path):
    fit_sae(rows(), latents=16, activation="topk(2)", steps=3, batch=64, to=tmp_path)
    with pytest.raises(VesaliusError, match="holds a run with latents 16, and 24 was given"):
        fit_sae(rows(), latents=24, activation="topk(2)", steps=3, batch=64, to=tmp_path)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_divergence_is_told_and_the_good_state_kept(tmp_path):
    make = dict(latents=24, activation="april(1.0)", batch=64, save_every=2, log_every=2, lr=1e9)
    with pytest.raises(VesaliusError, match=r"diverged at step \d+: .* learning rate of .*lower lr"):
        fit_sae(rows(), steps=400, to=tmp_path, **make)
    good = tmp_path / "state.safetensors"
    if good.exists():
        from safetensors.torch import load_file

        assert all(tensor.isfinite().all() for tensor in load_file(good).values())


def test_too_many_latents_and_too_few_rows():
    with pytest.raises(VesaliusError, match="give fewer latents or smaller batches"):
        fit_sae(rows(), latents=10**12, steps=1, batch=64)
    with pytest.raises(VesaliusError, match="there are 512 rows"):
        fit_sae(rows(), latents=8, steps=1, batch=4096)


def test_rows_that_are_no_numbers_are_refused():
    data = rows()
    data.tensors[0][17, 3] = math.nan
    with pytest.raises(VesaliusError, match="1 of 512 rows of site@0 hold NaN"):
        fit_sae(data, latents=8, steps=1, batch=64)


def test_watchers_are_told_each_entry(capsys):
    from vesalius.dictionaries.watchers import terminal

    fit_sae(rows(), latents=8, activation="topk(2)", steps=4, batch=64, log_every=2, watch=terminal())
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 2 of 4") and second.startswith("step 4 of 4") and "active" in second


SCRIPT = """
import sys, torch
sys.path[:0] = [{tests!r}]
torch.set_num_threads(1)
if {world} > 1:
    torch.distributed.init_process_group("gloo")
from test_dictionary_training import rows
from vesalius.dictionaries.train import fit_sae
fit_sae(rows(4096), latents=64, activation={kind!r}, steps={steps}, batch=128, to={to!r}, save_every=10, log_every=5)
"""


def started(tmp_path, name, *, steps, world=1, kind="topk(3, dead_after=20)"):
    script = tmp_path / f"{name}.py"
    tests = os.path.dirname(os.path.abspath(__file__))
    script.write_text(
        SCRIPT.format(tests=tests, world=world, kind=kind, steps=steps, to=str(tmp_path / name))
    )
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    return subprocess.Popen(
        [sys.executable, *launch, str(script)], start_new_session=True, stderr=subprocess.DEVNULL
    )


def killed(process, log):
    """Kill a run, and all it started, once it has saved something."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) > 5:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bits(world, tmp_path):
    steps = 2000
    assert started(tmp_path, "whole", steps=steps, world=world).wait() == 0
    for _ in range(2):
        log = tmp_path / "cut" / "log.jsonl"
        killed(started(tmp_path, "cut", steps=steps, world=world), log)
        log.write_text(
            "".join(log.read_text().splitlines(True)[:-1])
        )  # as if the last line had not reached the disk
    assert started(tmp_path, "cut", steps=steps, world=world).wait() == 0
    first, second = (
        SparseDictionary.load(tmp_path / name / "dictionary.safetensors").hash for name in ("whole", "cut")
    )
    assert first == second


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """The same rows, shared out: equal up to the order of sums."""
    kind = "april(1.0)"
    assert started(tmp_path, "two", steps=20, world=2, kind=kind).wait() == 0
    assert started(tmp_path, "one", steps=20, kind=kind).wait() == 0
    one, two = (SparseDictionary.load(tmp_path / name / "dictionary.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(one.W_dec, two.W_dec, atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------------------------------------- between several sites


def test_transcoder_learns_a_map_and_its_way_around():
    data = rows(2048, 8)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(4))).Q
    pair = TensorRows(("in@0", "out@0"), (data.tensors[0], data.tensors[0] @ turned + 1.0))
    plain = fit_transcoder(pair, latents=32, activation="topk(4)", steps=150, batch=128, lr=0.01)
    around = fit_transcoder(pair, latents=32, activation="topk(4)", skip=True, steps=150, batch=128, lr=0.01)
    assert (plain.source, plain.site) == ("in@0", "out@0") and plain.W_skip is None
    error = [
        float((d.reconstruct(pair.tensors[0]) - pair.tensors[1]).square().mean()) for d in (plain, around)
    ]
    assert error[1] < error[0] < float(pair.tensors[1].var(0).mean())
    assert around.about["skip"] is True
    with pytest.raises(VesaliusError, match="expected two"):
        fit_transcoder(data, latents=8, steps=1)


def test_crosscoder_and_cross_layer_transcoder():
    data = rows(1024, 6, sites=4)
    crossed = fit_crosscoder(data, latents=16, steps=20, batch=64)
    assert crossed.site == "site@0+site@1+site@2+site@3" and crossed.width == 24
    layers = fit_cross_layer_transcoder(data, latents=16, activation="topk(4)", steps=20, batch=64)
    encoder, decoder = layers.W_enc.T, layers.W_dec
    assert layers.source == "site@0+site@1" and layers.site == "site@2+site@3"
    assert not encoder[:8, 6:].any() and not encoder[8:, :6].any() and encoder[:8, :6].any()
    assert not decoder[8:, :6].any() and decoder[:8].any() and math.isfinite(float(decoder.sum()))


def test_choosing_in_bfloat16_changes_little():
    exact, rough = (
        fit_sae(rows(), latents=24, activation="topk(3)", steps=30, batch=64, product=product)
        for product in ("float32", "bfloat16")
    )
    assert abs(exact.about["learned"]["fvu"] - rough.about["learned"]["fvu"]) < 0.05
