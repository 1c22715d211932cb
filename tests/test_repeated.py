import pytest
import torch

from vesalius.data.repeated import repeated_random_tokens
from vesalius.errors import VesaliusError


def test_rows_are_bos_and_the_same_distinct_tokens_again():
    rows = repeated_random_tokens(50, length=20, batch=6, bos=3, exclude=(4, 5), seed=1)
    assert rows.shape == (6, 41) and (rows[:, 0] == 3).all()
    assert torch.equal(rows[:, 1:21], rows[:, 21:])
    assert all(len(set(row.tolist())) == 20 and not {3, 4, 5} & set(row.tolist()) for row in rows[:, 1:21])
    assert torch.equal(rows, repeated_random_tokens(50, length=20, batch=6, bos=3, exclude=(4, 5), seed=1))


def test_a_vocabulary_with_nothing_left_is_refused():
    with pytest.raises(VesaliusError, match="only 1 of 3"):
        repeated_random_tokens(3, length=2, batch=1, exclude=(0, 1))
