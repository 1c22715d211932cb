"""Checkpoints of Othello-GPT in both published layouts open as one network, and what is none is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vesalius as vs
from vesalius.errors import VesaliusError

LAYERS, WIDTH, HEADS, NEURONS, TOKENS, PLACES = 2, 128, 2, 32, 61, 59


def mingpt(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict as Li et al. publish theirs, of a small network."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / 8

    def linear(path: str, out: int, width: int) -> dict[str, torch.Tensor]:
        return {f"{path}.weight": drawn(out, width), f"{path}.bias": drawn(out)}

    state = {"tok_emb.weight": drawn(TOKENS, WIDTH), "pos_emb": drawn(1, PLACES, WIDTH)}
    for block in (f"blocks.{layer}" for layer in range(LAYERS)):
        for norm in ("ln1", "ln2"):
            state |= {f"{block}.{norm}.weight": 1 + drawn(WIDTH), f"{block}.{norm}.bias": drawn(WIDTH)}
        for part in ("key", "query", "value", "proj"):
            state |= linear(f"{block}.attn.{part}", WIDTH, WIDTH)
        state[f"{block}.attn.mask"] = torch.ones(1, 1, PLACES, PLACES).tril()
        state |= linear(f"{block}.mlp.0", NEURONS, WIDTH) | linear(f"{block}.mlp.2", WIDTH, NEURONS)
    return state | {
        "ln_f.weight": 1 + drawn(WIDTH),
        "ln_f.bias": drawn(WIDTH),
        "head.weight": drawn(TOKENS, WIDTH),
    }


def transformer_lens(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same network as TransformerLens keeps it."""
    made = {
        "embed.W_E": state["tok_emb.weight"],
        "pos_embed.W_pos": state["pos_emb"][0],
        "unembed.W_U": state["head.weight"].T,
        "unembed.b_U": torch.zeros(TOKENS),
        "ln_final.w": state["ln_f.weight"],
        "ln_final.b": state["ln_f.bias"],
    }
    for block in (f"blocks.{layer}" for layer in range(LAYERS)):
        for letter, part in (("Q", "query"), ("K", "key"), ("V", "value")):
            weight = state[f"{block}.attn.{part}.weight"].T.reshape(WIDTH, HEADS, -1).transpose(0, 1)
            made[f"{block}.attn.W_{letter}"] = weight
            made[f"{block}.attn.b_{letter}"] = state[f"{block}.attn.{part}.bias"].reshape(HEADS, -1)
        made[f"{block}.attn.W_O"] = state[f"{block}.attn.proj.weight"].T.reshape(HEADS, -1, WIDTH)
        made[f"{block}.attn.b_O"] = state[f"{block}.attn.proj.bias"]
        made[f"{block}.attn.mask"] = torch.ones(PLACES, PLACES).tril()
        made[f"{block}.attn.IGNORE"] = torch.tensor(-1e5)
        for theirs, ours in (("in", "0"), ("out", "2")):
            made[f"{block}.mlp.W_{theirs}"] = state[f"{block}.mlp.{ours}.weight"].T
            made[f"{block}.mlp.b_{theirs}"] = state[f"{block}.mlp.{ours}.bias"]
        for number in "12":
            made[f"{block}.ln{number}.w"] = state[f"{block}.ln{number}.weight"]
            made[f"{block}.ln{number}.b"] = state[f"{block}.ln{number}.bias"]
    return made


def by_hand(state: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """minGPT's forward, written out."""
    x = state["tok_emb.weight"][ids] + state["pos_emb"][0, : ids.shape[1]]
    batch, length, _ = x.shape

    def linear(path: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{path}.weight"].T + state[f"{path}.bias"]

    def norm(path: str, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (WIDTH,), state[f"{path}.weight"], state[f"{path}.bias"])

    for block in (f"blocks.{layer}" for layer in range(LAYERS)):
        y = norm(f"{block}.ln1", x)
        q, k, v = (
            linear(f"{block}.attn.{part}", y).view(batch, length, HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        score = q @ k.mT / (WIDTH // HEADS) ** 0.5
        score = score.masked_fill(torch.ones(length, length).tril() == 0, -torch.inf)
        z = (score.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + linear(f"{block}.attn.proj", z)
        y = torch.nn.functional.gelu(linear(f"{block}.mlp.0", norm(f"{block}.ln2", x)))
        x = x + linear(f"{block}.mlp.2", y)
    return norm("ln_f", x) @ state["head.weight"].T


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["gpt.ckpt", "gpt.pth", "gpt.safetensors"])
def test_a_checkpoint_of_either_layout_computes_what_its_forward_says(name, tmp_path):
    state = mingpt()
    ids = torch.randint(1, TOKENS, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = by_hand(state, ids)
    for folder, made in (("m", state), ("t", transformer_lens(state))):
        (tmp_path / folder).mkdir()
        model = vs.load(saved(made, tmp_path / folder / name))
        torch.testing.assert_close(model.logits(ids), expected, atol=1e-4, rtol=1e-4)
        assert {"othello", "attention", "mlp"} <= model.kinds and model.bos is None
        assert (model.n_heads, model.n_ctx, model.d_vocab) == (HEADS, PLACES, TOKENS)


def test_games_of_a_published_network_begin_with_their_first_move(tmp_path):
    from vesalius.boards import next_moves, random_positions, streams

    model = vs.load(saved(mingpt(), tmp_path / "gpt.ckpt"))
    given = random_positions(model, 2, seed=0)
    assert given.tokens.shape == (2, 59) and given.first == 0 and given.boards.shape == (2, 59, 64)
    assert next_moves(model, given).shape == (2, 59, 60)
    assert streams(model, given).shape == (LAYERS, 2, 59, WIDTH)


def test_what_is_no_such_checkpoint_is_one_sentence(tmp_path):
    state = mingpt()
    with pytest.raises(VesaliusError, match="neither 'tok_emb.weight'"):
        vs.load(saved({"weight": torch.zeros(2)}, tmp_path / "other.pt"))
    small = state | {"tok_emb.weight": torch.zeros(50, WIDTH), "head.weight": torch.zeros(50, WIDTH)}
    with pytest.raises(VesaliusError, match="50 tokens and 59 positions"):
        vs.load(saved(small, tmp_path / "small.pt"))
    lacking = {name: value for name, value in state.items() if name != "blocks.1.mlp.2.bias"}
    with pytest.raises(VesaliusError, match="lacks 'blocks.1.mlp.down.bias'"):
        vs.load(saved(lacking, tmp_path / "lacking.pt"))
    (tmp_path / "code.pt").write_bytes(pickle.dumps(vs.Model))
    with pytest.raises(VesaliusError, match="run code|damaged"):
        vs.load(tmp_path / "code.pt")
