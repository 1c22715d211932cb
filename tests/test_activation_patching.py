import pytest
import torch

import vesalius as vs
from vesalius.methods.circuits.activation_patching import activation_patching
from vesalius.testbed import handwritten_induction, random_attn


def tiny(name):
    if name == "toy":
        return random_attn(n_layers=3, d_mlp=32, norm=True, positions="rotary")
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    if name == "gpt2":
        config = GPT2Config(n_layer=3, n_head=4, n_embd=32, vocab_size=60, n_positions=32, **ends)
        return vs.Model(GPT2LMHeadModel(config), name=name)
    config = LlamaConfig(
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=64,
        vocab_size=60,
        max_position_embeddings=32,
        **ends,
    )
    return vs.Model(LlamaForCausalLM(config), name=name)


def letters():
    """Letters a, b, c … are tokens 0, 1, 2 …"""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({chr(ord("a") + number): number for number in range(26)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return tokenizer


@pytest.mark.parametrize("name", ["toy", "gpt2", "llama"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_cell_is_what_a_forward_of_its_own_gives(name, direction):
    model = tiny(name)
    model.tokenizer, model.bos = letters(), None
    clean, corrupted = "abcdefgabc", "abcxefzabc"
    result = activation_patching(
        model, clean=[clean], corrupted=[corrupted], answer=["d"], foil=["x"], direction=direction
    )
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    with vs.record(model, ["resid_pre@*", "z@*"]) as acts:
        model(source)

    def share(edits):
        def difference(text):
            logits = model.logits(text)[0, -1]
            return logits[3] - logits[23]

        with vs.intervene(model, edits):
            patched = difference(base)
        return ((patched - difference(base)) / (difference(source) - difference(base))).item()

    for layer in range(3):
        for position in range(10):
            patch = vs.patch(acts[f"resid_pre@{layer}"][:, position : position + 1])
            expected = share({f"resid_pre@{layer}": vs.at(position, patch)})
            assert result.residual[layer, position].item() == pytest.approx(expected, abs=2e-4)
        for head in range(4):
            site = f"z@{layer}[{head}]"
            assert result.heads[layer, head].item() == pytest.approx(
                share({site: vs.patch(acts[site])}), abs=2e-4
            )


def test_the_induction_circuit_is_located():
    result = activation_patching(handwritten_induction(), pairs=3)
    assert result.head_cell["where"] == "1.0" and result.head_cell["value"] == pytest.approx(1, abs=1e-3)
    assert [headline.evidence for headline in result.headlines()[:2]] == [True, True]
    assert result.residual[0].argmax() == 7  # the token that differs, before anything has read it


def test_prompts_that_do_not_pair_are_refused():
    with pytest.raises(vs.VesaliusError, match="expected prompts of one length"):
        model = tiny("toy")
        model.tokenizer, model.bos = letters(), None
        activation_patching(model, clean=["abc"], corrupted=["abcd"], answer=["a"], foil=["b"])


def test_random_networks_locate_nothing():
    results = [activation_patching(random_attn(seed=seed), pairs=6, seed=seed) for seed in range(10)]
    assert sum(any(headline.evidence for headline in result.headlines()) for result in results) <= 1
