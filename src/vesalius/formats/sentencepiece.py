"""SentencePiece vocabularies (Kudo & Richardson 2018, arXiv 1808.06226) for the `tokenizers` library.

The merges of a byte-pair vocabulary are not stored beside its pieces: every way to split a piece in two
pieces is a merge, and the pieces' scores order them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def sentencepiece_bpe(
    pieces: list[str], scores: list[float], *, unknown: int, prefix_space: bool
) -> "Tokenizer":
    """A byte-fallback BPE tokenizer; `prefix_space` puts a space before the text, as Llama does."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    vocab = {piece: index for index, piece in enumerate(pieces)}
    model = BPE(
        vocab,
        merges(vocab, scores),
        unk_token=pieces[unknown],
        fuse_unk=True,
        byte_fallback=True,
        dropout=None,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix_space else spaces
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix_space else []))
    return tokenizer


def merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, the best-scored piece first."""
    found = []
    for piece, index in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[index], vocab[left], vocab[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
