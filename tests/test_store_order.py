"""Any part of a shuffled epoch is known without the rest, and over all ranks each row comes exactly once in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.errors import VesaliusError
from vesalius.store.order import Order, permuted, run_of


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_a_permutation_is_one(size, key):
    moved = permuted(np.arange(size), size, key=key)
    assert sorted(moved.tolist()) == list(range(size))
    some = np.arange(size)[:: max(1, size // 7)]
    assert (permuted(some, size, key=key) == moved[some]).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 600), st.integers(1, 5), st.integers(1, 200), st.integers(10, 700), st.integers(0, 2**31)
)
def test_each_row_comes_once_in_an_epoch_over_all_ranks(rows, world, run, size, seed):
    world = min(world, rows)
    for epoch in (0, 3):
        seen = []
        for rank in range(world):
            order = Order(rows, seed=seed, rank=rank, world=world, run=run)
            low, high = order.share
            length = high - low
            steps = range(epoch * length // size, ((epoch + 1) * length - 1) // size + 1)
            stream = np.concatenate([order.at(step * size, size) for step in steps])
            begin = epoch * length - steps[0] * size
            seen.append(stream[begin : begin + length])
        assert sorted(np.concatenate(seen).tolist()) == list(range(rows))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 300), st.integers(0, 50_000), st.integers(0, 3000))
def test_any_part_of_the_order_is_known_without_the_rest(rows, run, first, count):
    order = Order(rows, seed=5, run=run)
    counts = order.runs(first, count).counts
    assert counts.sum() == count and counts.max(initial=1) <= run and (counts > 0).all()
    assert (order.at(first, count) == order.at(first - first % 97, count + first % 97)[first % 97 :]).all()


def test_a_batch_is_of_runs_from_all_over_the_store():
    order = Order(1_000_000, seed=1, run=16)
    rows = order.at(5000, 4096)
    assert (np.diff(rows) == 1).mean() > 0.93, "runs"
    places = np.sort(order.runs(5000, 4096).firsts) / order.rows
    assert abs(places - np.linspace(0, 1, len(places))).max() < 0.1, "uniform over all rows (Kolmogorov, 1 %)"
    assert abs(np.corrcoef(order.runs(5000, 4096).firsts[:-1], order.runs(5000, 4096).firsts[1:])[0, 1]) < 0.2
    assert (order.at(0, 100_000) != order.at(1_000_000, 100_000)).mean() > 0.99, (
        "each epoch has another order"
    )
    begins = {int(order.runs(epoch * order.rows, 400).firsts[1]) % 16 for epoch in range(9)}
    assert len(begins) > 3, "and other rows beside each"


def test_small_shards_have_short_runs():
    assert [run_of(contexts) for contexts in (1, 3, 12, 400, 100_000)] == [1, 1, 3, 100, 128]


def test_where_an_epoch_has_its_last_rows_changes():
    last = [Order(1000, seed=seed).at(0, 1000).tolist().index(999) for seed in range(40)]
    assert min(last) < 250 and max(last) > 750


@pytest.mark.parametrize("given", [dict(rank=2, world=2), dict(world=11), dict(run=0), dict(rank=-1)])
def test_impossible_shares_are_refused(given):
    with pytest.raises(VesaliusError, match="rank"):
        Order(10, **given)
