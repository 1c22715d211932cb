"""Any part of a shuffled epoch is known without the rest, and over all ranks each row comes exactly once in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.errors import VesaliusError
from vesalius.store.order import BLOCK, Order, permuted


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_a_permutation_is_one(size, key):
    moved = permuted(np.arange(size), size, key=key)
    assert sorted(moved.tolist()) == list(range(size))
    some = np.arange(size)[:: max(1, size // 7)]
    assert (permuted(some, size, key=key) == moved[some]).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 1200), st.integers(1, 5), st.integers(20, 900), st.integers(10, 700), st.integers(0, 2**31)
)
def test_each_row_comes_once_in_an_epoch_over_all_ranks(rows, world, pool, size, seed):
    world = min(world, rows)
    for epoch in (0, 3):
        seen = []
        for rank in range(world):
            order = Order(rows, seed=seed, rank=rank, world=world, pool=pool)
            low, high = order.share
            length = high - low
            steps = range(epoch * length // size, ((epoch + 1) * length - 1) // size + 1)
            stream = np.concatenate([order.at(step * size, size) for step in steps])
            begin = epoch * length - steps[0] * size
            seen.append(stream[begin : begin + length])
        assert sorted(np.concatenate(seen).tolist()) == list(range(rows))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 4000), st.integers(0, 30_000), st.integers(1, 3000))
def test_pools_are_at_least_as_large_as_announced(rows, pool, first, count):
    order = Order(rows, pool=pool)
    pieces = list(order.pieces(first, count))
    assert sum(stop - start for _, start, stop in pieces) == count
    assert all(piece.rows >= min(pool, rows) for piece, _, _ in pieces)
    for piece, _, _ in pieces:
        assert order.after(piece) != piece


def test_rows_are_mixed_within_the_pool_and_read_in_blocks():
    order = Order(100_000, seed=1, pool=10_000)
    (pool, _, _), *_ = order.pieces(0, 1)
    rows = order.within(pool)
    assert len(np.unique(rows // BLOCK)) <= pool.rows // BLOCK + 3, "a pool is few blocks"
    batch = order.at(0, 1000)
    assert len(np.unique(batch // BLOCK)) >= 36, "and a batch is of nearly all of them"
    assert abs(np.corrcoef(np.arange(pool.rows), rows)[0, 1]) < 0.05
    assert (order.at(0, 100_000) != order.at(100_000, 100_000)).mean() > 0.99, "each epoch has another order"


def test_where_an_epoch_has_its_last_rows_changes():
    last = [Order(1000, seed=seed).at(0, 1000).tolist().index(999) for seed in range(40)]
    assert min(last) < 250 and max(last) > 750


@pytest.mark.parametrize("given", [dict(rank=2, world=2), dict(world=11), dict(pool=0), dict(rank=-1)])
def test_impossible_shares_are_refused(given):
    with pytest.raises(VesaliusError, match="rank"):
        Order(10, **given)
