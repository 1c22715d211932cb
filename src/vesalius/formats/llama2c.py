"""The format of llama2.c (github.com/karpathy/llama2.c): 7 integers, then a small Llama's weights as float32.

The header is dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size says
that the unembedding is stored too. A tokenizer `tok*.bin` beside the file is read with it: the longest
piece's length, then score, length and bytes of each piece.
"""

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.formats import Parts
from vesalius.formats.huggingface import transformers_module
from vesalius.formats.sentencepiece import SPACE, sentencepiece_bpe
from vesalius.formats.weights import halves_from_pairs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HEADER = struct.Struct("<7i")
BOS, EOS = 1, 2


def read(path: Path, *, dtype: torch.dtype = torch.float32) -> Parts:
    """A Llama out of a llama2.c checkpoint, with its tokenizer if there is exactly one beside it.

    Raises VesaliusError if the file's length is not what its header says.
    """
    if not path.is_file():
        raise VesaliusError(f"There is no file {path}; expected a llama2.c checkpoint.")
    raw = path.read_bytes()
    if len(raw) < HEADER.size:
        raise VesaliusError(f"{path.name} has {len(raw)} bytes; expected a llama2.c checkpoint.")
    dim, hidden, layers, heads, kv_heads, vocab, context = HEADER.unpack_from(raw)
    if min(dim, hidden, layers, heads, kv_heads, abs(vocab), context) < 1 or dim % heads or heads % kv_heads:
        raise VesaliusError(
            f"{path.name} does not begin with the sizes of a Llama; expected a llama2.c checkpoint."
        )
    sizes = {
        "vocab_size": abs(vocab),
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": vocab > 0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    module = transformers_module("Llama", sizes, tensors(raw, sizes, path.name), dtype=dtype, name=path.name)
    beside = sorted(path.parent.glob("tok*.bin"))
    tokenizer = read_tokenizer(beside[0], n_pieces=abs(vocab)) if len(beside) == 1 else None
    return Parts(module, tokenizer, BOS, path.stem)


def tensors(raw: bytes, sizes: dict, name: str) -> dict[str, Tensor]:
    """The checkpoint's matrices under transformers' names."""
    dim, hidden, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    d_head = dim // heads
    block = "model.layers.{}"
    layout = {
        "model.embed_tokens": (sizes["vocab_size"], dim),
        f"{block}.input_layernorm": (dim,),
        f"{block}.self_attn.q_proj": (dim, dim),
        f"{block}.self_attn.k_proj": (kv_heads * d_head, dim),
        f"{block}.self_attn.v_proj": (kv_heads * d_head, dim),
        f"{block}.self_attn.o_proj": (dim, dim),
        f"{block}.post_attention_layernorm": (dim,),
        f"{block}.mlp.gate_proj": (hidden, dim),
        f"{block}.mlp.down_proj": (dim, hidden),
        f"{block}.mlp.up_proj": (hidden, dim),
        "model.norm": (dim,),
        "rotary angles": (2, sizes["max_position_embeddings"], d_head // 2),
        "lm_head": (0 if sizes["tie_word_embeddings"] else sizes["vocab_size"], dim),
    }
    copies = {part: layers if "{}" in part else 1 for part in layout}
    expected = HEADER.size + 4 * sum(copies[part] * math.prod(shape) for part, shape in layout.items())
    if len(raw) != expected:
        raise VesaliusError(
            f"{name} has {len(raw)} bytes; its header needs {expected}, so it is damaged or cut short."
        )
    turned = {f"{block}.self_attn.q_proj": heads, f"{block}.self_attn.k_proj": kv_heads}
    state, at = {}, HEADER.size
    for part, shape in layout.items():
        for layer in range(copies[part]):
            values = np.frombuffer(raw, "<f4", math.prod(shape), at)
            at += values.nbytes
            weight = torch.from_numpy(values.reshape(shape).copy())
            weight = halves_from_pairs(weight, turned[part]) if part in turned else weight
            state[f"{part.format(layer)}.weight"] = weight
    return {key: weight for key, weight in state.items() if weight.numel() and key != "rotary angles.weight"}


def read_tokenizer(path: Path, *, n_pieces: int) -> "Tokenizer":
    """The SentencePiece vocabulary of a llama2.c `tokenizer.bin`; pieces 3 to 258 are the bytes."""
    raw, at, pieces, scores = path.read_bytes(), 4, [], []
    for _ in range(n_pieces):
        if at + 8 > len(raw):
            raise VesaliusError(f"{path.name} holds {len(pieces)} pieces; expected {n_pieces}.")
        score, length = struct.unpack_from("<fi", raw, at)
        pieces.append(raw[at + 8 : at + 8 + length].decode().replace(" ", SPACE))
        scores.append(score)
        at += 8 + length
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    tokenizer = sentencepiece_bpe(pieces, scores, unknown=0, prefix_space=True)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer
