"""What is kept of a stream equals what numpy makes of all of it, however the stream is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.errors import VesaliusError
from vesalius.store.reducers import (
    Histogram,
    Moments,
    Quantiles,
    Spectrum,
    TopExamples,
    draw,
    restore,
    state,
    uniform,
)

UNITS = 4


@st.composite
def streams(draw):
    """Values `[example, unit, position]` of unlike units, with ties, and a way to cut and order them."""
    count, positions = draw(st.integers(2, 40)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    values = torch.randn(count, UNITS, positions, generator=generator)
    values *= torch.tensor([1.0, 10.0 ** draw(st.integers(-15, 15)), 3.0, 1.0])[:, None]
    values[:, 2] = values[:, 2].relu()
    values[:, 3] = draw(st.sampled_from([0.0, -7.25, 1e6]))
    order = torch.randperm(count, generator=generator) if draw(st.booleans()) else torch.arange(count)
    return values, order.split(draw(st.integers(1, count)))


def fed(reducer, values, parts):
    for examples in parts:
        reducer.add(values[examples], examples)
    return reducer


def makers():
    return {
        "moments": lambda: Moments(UNITS),
        "top": lambda: TopExamples(UNITS, 5),
        "bottom": lambda: TopExamples(UNITS, 5, sign=-1),
        "histogram": lambda: Histogram(UNITS, bins=8),
        "drawn": lambda: Histogram(UNITS, bins=8, draws=2, seed=3),
        "spectrum": lambda: Spectrum(UNITS, bins=8, size=3),
        "everything": lambda: Spectrum(UNITS, bins=8, size=3, draws=None),
        "quantiles": lambda: Quantiles(UNITS, size=6),
    }


@settings(max_examples=40, deadline=None)
@given(streams())
def test_the_cut_and_the_order_do_not_matter(stream):
    values, parts = stream
    whole = [torch.arange(len(values))]
    for name, make in makers().items():
        one, other = state(fed(make(), values, whole)), state(fed(make(), values, parts))
        for key in one:
            if name == "moments":
                torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-30)
            else:
                assert torch.equal(one[key], other[key]), f"{name}.{key}"


@settings(max_examples=40, deadline=None)
@given(streams())
def test_moments_are_numpys(stream):
    values, parts = stream
    moments = fed(Moments(UNITS), values, parts)
    flat = values.double().numpy().transpose(1, 0, 2).reshape(UNITS, -1)
    scale = np.abs(flat).max(1)
    assert moments.count == flat.shape[1]
    assert np.allclose(moments.mean.numpy() / scale.clip(1e-30), flat.mean(1) / scale.clip(1e-30), atol=1e-6)
    assert np.allclose(moments.sd.numpy(), flat.std(1), rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(streams())
def test_the_top_is_numpys(stream):
    values, parts = stream
    for sign in (1, -1):
        top = fed(TopExamples(UNITS, 5, sign=sign), values, parts)
        best = (sign * values).amax(2).T.double()
        order = np.argsort(-best.numpy(), axis=1, kind="stable")[:, :5]
        width = order.shape[1]
        assert np.array_equal(top.examples[:, :width].numpy(), order)
        for unit in range(UNITS):
            for value, example, position in zip(
                top.values[unit, :width], top.examples[unit], top.positions[unit]
            ):
                assert value == values[example, unit, position] == sign * best[unit, example]
        assert (top.examples[:, width:] == -1).all() and top.values[:, width:].isinf().all()


@settings(max_examples=40, deadline=None)
@given(streams())
def test_the_histogram_is_numpys(stream):
    values, parts = stream
    histogram = fed(Histogram(UNITS, bins=8), values, parts)
    for unit in range(UNITS):
        edges = histogram.edges[unit].numpy()
        counts, _ = np.histogram(values[:, unit].double().numpy(), bins=edges)
        inside = values[:, unit].double().numpy() == edges[-1]  # numpy closes its last bin
        assert counts.sum() - inside.sum() == histogram.counts[unit].sum() == values[:, unit].numel()
        assert np.array_equal(counts, histogram.counts[unit].numpy())
        assert np.ptp(np.diff(edges)) == 0 and np.log2(np.diff(edges)[0]).is_integer()
    used = (histogram.counts[:3] > 0).long() * torch.arange(1, 9)
    still = torch.from_numpy(np.ptp(values[:, :3].numpy(), axis=(0, 2)) == 0)
    assert ((used.amax(1) >= 4) | still).all(), "at least half of the bins span values that vary"


@settings(max_examples=40, deadline=None)
@given(streams())
def test_the_spectrum_holds_one_example_of_each_image_in_its_right_bin(stream):
    values, parts = stream
    spectrum = fed(Spectrum(UNITS, bins=8, size=3, draws=None), values, parts)
    for unit in range(UNITS):
        edges, counts = spectrum.histogram.edges[unit], spectrum.histogram.counts[unit]
        for number, kept in enumerate(spectrum.bins(unit)):
            low, high = edges[number], edges[number + 1]
            inside = (values[:, unit] >= low) & (values[:, unit] < high)
            assert len(kept["values"]) == min(3, int(inside.any(1).sum()))
            assert counts[number] == inside.sum()
            assert len(set(kept["examples"].tolist())) == len(kept["examples"])
            for value, example, position in zip(kept["values"], kept["examples"], kept["positions"]):
                assert value == values[example, unit, position] and low <= value < high


@settings(max_examples=40, deadline=None)
@given(streams())
def test_quantiles_of_a_small_stream_are_numpys(stream):
    values, parts = stream
    quantiles = fed(Quantiles(UNITS, size=40, seed=1), values, parts)
    drawn, positions = draw(values, torch.arange(len(values)), draws=1, seed=1)
    assert torch.equal(drawn, values.gather(2, positions))
    shares = torch.tensor([0.0, 0.1, 0.5, 1.0])
    expected = np.quantile(drawn[:, :, 0].double().numpy(), shares.double().numpy(), axis=0).T
    assert np.allclose(quantiles.at(shares).numpy(), expected, rtol=1e-6)


def test_a_reservoir_is_a_fair_sample():
    """Every example of a bin is as likely to be kept as any other, whatever its place in the stream."""
    kept = torch.zeros(50)
    values = torch.full((50, 1, 1), 0.3)
    for seed in range(400):
        spectrum = fed(Spectrum(1, bins=4, size=5, seed=seed), values, torch.arange(50).split(7))
        kept[next(b["examples"] for b in spectrum.bins(0) if len(b["examples"]))] += 1
    assert kept.sum() == 2000
    assert kept.sub(40).square().sum() / 36 < 85.4, "chi-squared with 49 degrees of freedom, 0.999"


def test_random_numbers_are_uniform_and_the_seed_matters():
    numbers = uniform(0, torch.arange(100_000))
    counts = torch.histc(numbers.float(), 20, 0, 1)
    assert counts.sub(5000).square().sum() / 5000 < 43.8, "chi-squared with 19 degrees of freedom, 0.999"
    assert abs(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]) < 0.02
    assert not torch.equal(numbers, uniform(1, torch.arange(100_000)))


def test_a_saved_state_goes_on(tmp_path):
    from safetensors.torch import load_file, save_file

    values = torch.randn(30, UNITS, 6, generator=torch.Generator().manual_seed(0))
    for make in makers().values():
        half = fed(make(), values, [torch.arange(11)])
        save_file(
            {key: part.contiguous() for key, part in state(half).items()}, tmp_path / "state.safetensors"
        )
        resumed = make()
        restore(resumed, load_file(tmp_path / "state.safetensors"))
        fed(resumed, values, [torch.arange(11, 30)])
        whole = fed(make(), values, [torch.arange(11), torch.arange(11, 30)])
        for key, part in state(whole).items():
            assert torch.equal(part, state(resumed)[key]), key
    with pytest.raises(VesaliusError, match="same arguments"):
        restore(TopExamples(UNITS, 6), state(TopExamples(UNITS, 5)))


def test_memory_does_not_grow_with_the_stream():
    spectrum, values = Spectrum(UNITS, bins=8, size=3), torch.randn(16, UNITS, 9)
    for number in range(200):
        spectrum.add(values, torch.arange(16) + 16 * number)
    waiting = sum(len(part[0]) for part in spectrum.reservoir._waiting)
    assert waiting <= spectrum.reservoir.keys.numel()
    assert len(spectrum.reservoir._waiting) < 200


@pytest.mark.parametrize("name", ["top", "histogram", "spectrum", "quantiles"])
def test_what_is_not_a_number_is_refused(name):
    values = torch.zeros(2, UNITS, 1)
    values[1, 2, 0] = torch.nan
    with pytest.raises(VesaliusError, match="NaN or infinite"):
        makers()[name]().add(values, torch.arange(2))
