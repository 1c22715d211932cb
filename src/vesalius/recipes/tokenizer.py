"""The zoo's tokenizer: byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; Radford et al. 2019).

Small on purpose: at these widths the unembedding is most of the work, and a table of all pairs of tokens
fits on a screen. Token 0 is `<|bos|>`; every sequence starts with it, so that a head with nothing to do has
a place to rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS = "<|bos|>"
SHIPPED = Path(__file__).parent.parent / "zoo" / "tokenizer.json"


def train_tokenizer(documents: Iterable[str], *, d_vocab: int = 2048) -> Tokenizer:
    """Learn merges until there are `d_vocab` tokens; digits stay single."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def load_tokenizer(file: Path = SHIPPED) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def tokenizer_hash(file: Path = SHIPPED) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def encode(tokenizer: Tokenizer, documents: list[str]) -> Int[Tensor, " token"]:
    """All documents as one row of token ids (int16 or wider as needed), each followed by `<|bos|>`."""
    ids = [0]
    for start in range(0, len(documents), 256):
        for encoding in tokenizer.encode_batch_fast(documents[start : start + 256], add_special_tokens=False):
            ids += encoding.ids
            ids.append(0)
    return torch.tensor(ids, dtype=torch.int32)
