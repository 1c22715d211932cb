"""One pass over sparse codes finds what looking at all of them finds."""

import pytest
import torch

from vesalius.dictionaries.codes import Codes
from vesalius.latents.co_moments import CoFiring, CoMoments
from vesalius.latents.examples import LatentExamples

EXAMPLES, PLACES, LATENTS = 40, 30, 7


@pytest.fixture(scope="module")
def dense():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(EXAMPLES, PLACES, LATENTS, generator=generator)
    scale = torch.linspace(0.1, 30, EXAMPLES)[:, None, None]  # larger values come later: bins have to merge
    values = (values - 0.8).clamp(min=0) * scale
    values[..., 6] = 0
    return values


def streamed(dense, batch, **arguments):
    kept = LatentExamples(LATENTS, seed=3, **arguments)
    for numbers in torch.arange(EXAMPLES).split(batch):
        examples, positions = numbers.repeat_interleave(PLACES), torch.arange(PLACES).repeat(len(numbers))
        kept.add(examples, positions, Codes.of(dense[numbers].flatten(0, 1)))
    return kept


def test_nothing_depends_on_the_batches(dense, monkeypatch):
    monkeypatch.setattr("vesalius.latents.examples.WAITING", 50)
    first, second = (streamed(dense, batch).picked() for batch in (1, 40))
    for name, part in vars(first).items():
        assert torch.equal(part, getattr(second, name)), name


def test_the_top_is_the_top(dense):
    picked = streamed(dense, 7, top=5).picked()
    for latent in range(LATENTS - 1):
        inside = slice(picked.starts[latent], picked.starts[latent + 1])
        top = picked.groups[inside] == -1
        best = dense[:, :, latent].amax(1).topk(5)
        torch.testing.assert_close(picked.values[inside][top], best.values)
        assert torch.equal(picked.examples[inside][top], best.indices)
        places = picked.positions[inside][top]
        assert torch.equal(dense[best.indices, places, latent], best.values)


def test_windows_are_what_the_latent_did_around(dense):
    picked = streamed(dense, 7, window=2).picked()
    latent = torch.repeat_interleave(picked.starts.diff())
    padded = torch.nn.functional.pad(dense, (0, 0, 2, 2))
    for offset in range(5):
        expected = padded[picked.examples, picked.positions + offset, latent]
        torch.testing.assert_close(picked.windows[:, offset], expected, rtol=1e-3, atol=1e-3)


def test_windows_of_maps_do_not_run_over_the_edge(dense):
    picked = streamed(dense, 7, window=1, columns=6).picked()
    maps = torch.nn.functional.pad(dense.view(EXAMPLES, 5, 6, LATENTS), (0, 0, 1, 1, 1, 1))
    latent = torch.repeat_interleave(picked.starts.diff())
    down, across = picked.positions // 6, picked.positions % 6
    for number, (row, column) in enumerate((r, c) for r in range(3) for c in range(3)):
        expected = maps[picked.examples, down + row, across + column, latent]
        torch.testing.assert_close(picked.windows[:, number], expected, rtol=1e-3, atol=1e-3)


def test_intervals_are_even_and_their_samples_uniform(dense):
    kept = streamed(dense, 7, intervals=4, per_interval=3)
    picked = kept.picked()
    latent = torch.repeat_interleave(picked.starts.diff())
    sampled = picked.groups >= 0
    expected = (picked.values / dense.amax((0, 1))[latent] * 4).long().clamp(max=3)
    assert torch.equal(picked.groups[sampled], expected[sampled])
    assert (picked.groups[sampled][:, None] == torch.arange(4)).any(0).all()
    for group in range(4):  # all that fired are equally likely, over many seeds
        drawn = []
        for seed in range(60):
            again = LatentExamples(LATENTS, seed=seed, intervals=4, per_interval=3)
            places = torch.arange(EXAMPLES).repeat_interleave(PLACES), torch.arange(PLACES).repeat(EXAMPLES)
            again.add(*places, Codes.of(dense.flatten(0, 1)))
            found = again.picked()
            mine = (found.groups[: found.starts[1]] == group).nonzero()[:, 0]
            drawn.append(found.values[mine])
        values = dense[:, :, 0].flatten()
        values = values[((values / values.max() * 4).long().clamp(max=3) == group) & (values > 0)]
        mean, error = torch.cat(drawn).mean(), values.std() / len(torch.cat(drawn)) ** 0.5
        assert abs(mean - values.mean()) < 4 * error + 0.02 * values.mean()


def test_counts_sums_and_maxima(dense):
    kept = streamed(dense, 7)
    flat = dense.flatten(0, 1)
    assert torch.equal(kept.counts, (flat > 0).sum(0))
    torch.testing.assert_close(kept.sums, flat.double().sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept.maxima, flat.amax(0))


def test_correlations_are_those_of_all_rows_together(dense):
    flat = dense.flatten(0, 1)
    other = torch.randn(len(flat), 5, generator=torch.Generator().manual_seed(1)) + flat[:, :5] + 100
    pairs = CoMoments(LATENTS, 5)
    for rows in torch.arange(len(flat)).split(100):
        pairs.add(Codes.of(flat[rows]), other[rows])
    expected = torch.corrcoef(torch.cat([flat, other], 1).T.double())[:LATENTS, LATENTS:].nan_to_num()
    torch.testing.assert_close(pairs.correlations(), expected.float(), rtol=1e-4, atol=1e-4)


def test_cosines_where_one_of_two_fires(dense):
    flat = dense.flatten(0, 1)
    other = flat.roll(1, 1) + flat
    pairs = CoFiring(LATENTS, LATENTS)
    for rows in torch.arange(len(flat)).split(100):
        pairs.add(Codes.of(flat[rows]), Codes.of(other[rows]))
    found = pairs.cosines()
    for a in range(LATENTS):
        for b in range(LATENTS):
            x, y = flat[:, a], other[:, b]
            where = [
                torch.cosine_similarity(x[m], y[m], dim=0) if m.any() else torch.tensor(0.0)
                for m in (x > 0, y > 0)
            ]
            expected = max(where) if (x > 0).any() and (y > 0).any() else torch.tensor(0.0)
            torch.testing.assert_close(found[a, b], expected, rtol=1e-4, atol=1e-4)
