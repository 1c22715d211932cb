"""Tokenizers out of GGUF metadata, built with the `tokenizers` library.

Two kinds: byte-level BPE with stored merges (`gpt2`), whose way to cut text into words is named by
`tokenizer.ggml.pre`, and SentencePiece (`llama`), whose merges follow from the pieces' scores.
"""

from typing import TYPE_CHECKING, Any

from vesalius.errors import VesaliusError, nearest
from vesalius.formats.sentencepiece import sentencepiece_bpe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL, USER_DEFINED = 3, 4
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt-2": None,
    "default": None,
    "smollm": "digits",
    "llama-bpe": WORDS % r"\p{N}{1,3}",
    "qwen2": WORDS % r"\p{N}",
}
"""How text is cut into words before bytes are merged: GPT-2's way (None), that after digits, or a regex."""


def tokenizer_of(metadata: dict[str, Any], name: str) -> "tuple[Tokenizer, int | None]":
    """The tokenizer a file describes, and the token every text begins with, if there is one.

    Raises VesaliusError for a kind of tokenizer that is not known here.
    """
    kind = metadata["tokenizer.ggml.model"]
    build = {"gpt2": byte_bpe, "llama": sentencepiece}.get(kind)
    if build is None:
        raise VesaliusError(f"{name} has a '{kind}' tokenizer; expected gpt2 or llama.")
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    adds = metadata.get(
        "tokenizer.ggml.add_bos_token", kind == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    )
    return build(metadata, name), bos if adds else None


def byte_bpe(metadata: dict[str, Any], name: str) -> "Tokenizer":
    """Byte-level BPE (Sennrich et al. 2015, arXiv 1508.07909) with the merges of the file."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    cut = metadata.get("tokenizer.ggml.pre", "default")
    if cut not in CUTS:
        raise VesaliusError(
            f"{name} cuts text the '{cut}' way; expected one of {', '.join(CUTS)}{nearest(cut, CUTS)}"
        )
    pieces = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocab, merges, ignore_merges=cut == "llama-bpe"))
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if CUTS[cut] is None:
        tokenizer.pre_tokenizer = as_gpt2
    elif CUTS[cut] == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), as_gpt2]
        )
    else:
        words = pre_tokenizers.Split(Regex(CUTS[cut]), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, whole])
    tokenizer.decoder = decoders.ByteLevel()
    add_special(tokenizer, metadata)
    return tokenizer


def sentencepiece(metadata: dict[str, Any], name: str) -> "Tokenizer":
    """SentencePiece with byte fallback."""
    tokenizer = sentencepiece_bpe(
        metadata["tokenizer.ggml.tokens"],
        metadata["tokenizer.ggml.scores"],
        unknown=metadata.get("tokenizer.ggml.unknown_token_id", 0),
        prefix_space=metadata.get("tokenizer.ggml.add_space_prefix", True),
    )
    add_special(tokenizer, metadata)
    return tokenizer


def add_special(tokenizer: "Tokenizer", metadata: dict[str, Any]) -> None:
    """Mark control tokens, which no text spells, and tokens that were added by hand, which are never cut."""
    from tokenizers import AddedToken

    pieces, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    control = [AddedToken(piece, normalized=False) for piece, kind in zip(pieces, kinds) if kind == CONTROL]
    added = [
        AddedToken(piece, normalized=False) for piece, kind in zip(pieces, kinds) if kind == USER_DEFINED
    ]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(added)
