from dataclasses import dataclass

import pytest
import torch

from vesalius.data.text import token_chunks
from vesalius.errors import VesaliusError


@dataclass
class Letters:
    n_ctx: int = 16
    d_vocab: int = 128
    bos: int | None = 0
    kinds: frozenset = frozenset({"tokenizer"})

    def tokens(self, text):
        ids = [ord(letter) for letter in text]
        return torch.tensor([ids if self.bos is None else [self.bos, *ids]])


def test_chunks_begin_with_bos_and_lose_nothing_but_the_end():
    rows = token_chunks(Letters(), "abcdefgh", length=4)
    assert rows.tolist() == [[0, 97, 98, 99], [0, 100, 101, 102]]
    without = token_chunks(Letters(bos=None), "abcdefgh", length=4)
    assert without.tolist() == [[97, 98, 99, 100], [101, 102, 103, 104]]


def test_limit_spreads_over_the_text():
    rows = token_chunks(Letters(bos=None), "abcdefghij", length=2, limit=3)
    assert rows[:, 0].tolist() == [ord("a"), ord("e"), ord("i")]


def test_too_short_a_text_is_refused():
    with pytest.raises(VesaliusError, match="fewer than one row"):
        token_chunks(Letters(), "ab", length=8)
