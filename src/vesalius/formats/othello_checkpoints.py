"""Published checkpoints of Othello-GPT, told by the shapes of their tensors, in a plain torch network.

Two layouts are read: that of minGPT (`tok_emb.weight`, `blocks.0.attn.key.weight`, …), in which Li et al. 2023 (arXiv
2210.13382) published theirs, and that of TransformerLens (`embed.W_E`, `blocks.0.attn.W_Q` [head, d_model, d_head], …),
in which Nanda et al. 2023 (arXiv 2309.00941) published the same weights. A file is safetensors, or a torch file of
tensors and nothing else; a pickle is never run. Without the tokens of a board of 4, 6 or 8 it is no such network.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.formats import Parts
from vesalius.formats.weights import fill, load_safetensors, load_torch
from vesalius.networks.othello_gpt import OthelloGPT, board_size

D_HEAD = 64
"""Of a minGPT checkpoint, which does not say how many heads it has; the published one has 8 of 64."""
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
BUFFERS = ("attn.mask", "attn.IGNORE", "attn.bias")

State = dict[str, Tensor]


def read(path: Path) -> Parts:
    """A network by its file.

    Raises VesaliusError for a file that is not there, is damaged, would run code, is of another layout, or is of a
    network whose sizes are not those of a player of Othello.
    """
    if not path.is_file():
        raise VesaliusError(f"There is no file {path}; expected a checkpoint of Othello-GPT")
    state = load_safetensors(path) if path.suffix == ".safetensors" else load_torch(path)
    state = {name: value for name, value in state.items() if not name.endswith(BUFFERS)}
    if "tok_emb.weight" in state:
        plain, heads = from_mingpt(state), None
    elif "embed.W_E" in state:
        plain, heads = from_transformer_lens(state, path.name), state["blocks.0.attn.W_Q"].shape[0]
    else:
        raise VesaliusError(
            f"{path.name} is no checkpoint of Othello-GPT: it has neither 'tok_emb.weight' (minGPT) nor "
            "'embed.W_E' (TransformerLens)"
        )
    d_vocab, d_model = plain["embed.weight"].shape
    n_ctx = len(plain["positions"])
    if board_size(d_vocab, n_ctx) is None:
        raise VesaliusError(
            f"{path.name} has {d_vocab} tokens and {n_ctx} positions; a network that plays Othello has 61 and 59 or "
            "60 (8×8), 33 and 31 or 32 (6×6), 13 and 11 or 12 (4×4)"
        )
    with torch.device("meta"):
        module = OthelloGPT(
            n_layers=1 + max(int(name.split(".")[1]) for name in plain if name.startswith("blocks.")),
            d_model=d_model,
            n_heads=heads or max(d_model // D_HEAD, 1),
            d_mlp=len(plain["blocks.0.mlp.up.weight"]),
            d_vocab=d_vocab,
            n_ctx=n_ctx,
        )
    fill(module, plain, name=path.name)
    return Parts(module, None, 0 if n_ctx == d_vocab - 1 else None, path.stem)


MINGPT = {
    "tok_emb": "embed",
    "ln_f": "norm",
    "head": "unembed",
    ".ln1.": ".norm1.",
    ".ln2.": ".norm2.",
    ".attn.query.": ".attn.q_proj.",
    ".attn.key.": ".attn.k_proj.",
    ".attn.value.": ".attn.v_proj.",
    ".attn.proj.": ".attn.o_proj.",
    ".mlp.0.": ".mlp.up.",
    ".mlp.2.": ".mlp.down.",
}


def from_mingpt(state: Mapping[str, Tensor]) -> State:
    """Its modules under our names; it has one axis more in its positions, and no bias in its last layer."""
    plain = {}
    for name, value in state.items():
        for theirs, ours in MINGPT.items():
            name = name.replace(theirs, ours, 1)
        plain[name] = value
    plain["positions"] = plain.pop("pos_emb")[0]
    return with_bias(plain)


def from_transformer_lens(state: Mapping[str, Tensor], name: str) -> State:
    """Its matrices, which are for row vectors and apart by heads, as `nn.Linear` has them.

    Norms that were folded into what reads them have no gain of their own; theirs is 1.
    """
    missing = sorted(
        {"pos_embed.W_pos", "unembed.W_U", "blocks.0.attn.W_Q", "blocks.0.mlp.W_in"} - state.keys()
    )
    if missing:
        raise VesaliusError(f"{name} looks like a network of TransformerLens, but lacks '{missing[0]}'")
    d_model = state["embed.W_E"].shape[1]
    plain = {
        "embed.weight": state["embed.W_E"],
        "positions": state["pos_embed.W_pos"],
        "unembed.weight": state["unembed.W_U"].T,
        "unembed.bias": state.get("unembed.b_U", torch.zeros(state["unembed.W_U"].shape[1])),
    }
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for layer in range(depth):
        theirs, ours = f"blocks.{layer}", f"blocks.{layer}"
        for letter in "QKV":
            weight = state[f"{theirs}.attn.W_{letter}"]
            path = f"{ours}.attn.{letter.lower()}_proj"
            plain[f"{path}.weight"] = rearrange(weight, "head d_model d_head -> (head d_head) d_model")
            plain[f"{path}.bias"] = state[f"{theirs}.attn.b_{letter}"].flatten()
        plain[f"{ours}.attn.o_proj.weight"] = rearrange(
            state[f"{theirs}.attn.W_O"], "head d_head d_model -> d_model (head d_head)"
        )
        plain[f"{ours}.attn.o_proj.bias"] = state[f"{theirs}.attn.b_O"]
        for theirs_name, ours_name in (("in", "up"), ("out", "down")):
            plain[f"{ours}.mlp.{ours_name}.weight"] = state[f"{theirs}.mlp.W_{theirs_name}"].T
            plain[f"{ours}.mlp.{ours_name}.bias"] = state[f"{theirs}.mlp.b_{theirs_name}"]
        for number in "12":
            norm = f"{theirs}.ln{number}"
            plain[f"{ours}.norm{number}.weight"] = state.get(f"{norm}.w", torch.ones(d_model))
            plain[f"{ours}.norm{number}.bias"] = state.get(f"{norm}.b", torch.zeros(d_model))
    plain["norm.weight"] = state.get("ln_final.w", torch.ones(d_model))
    plain["norm.bias"] = state.get("ln_final.b", torch.zeros(d_model))
    return {key: value.contiguous() for key, value in plain.items()}


def with_bias(plain: State) -> State:
    """With a bias of 0 where the last layer has none."""
    return {"unembed.bias": torch.zeros(len(plain["unembed.weight"])), **plain}
