"""The same taps on the modules of the transformers library: fused and eager attention, grouped heads, generation."""

import pytest
import torch

import vesalius as vs

transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
IDS = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
PORTS = ["q@*", "k@*", "v@*", "pattern@*", "z@*"]


def llama(attention: str) -> vs.Model:
    """Grouped-query attention: four query heads share two key-value heads."""
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=50, max_position_embeddings=64, attn_implementation=attention, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return vs.Model(transformers.LlamaForCausalLM(config), name=f"llama-{attention}")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recording_changes_no_bit(attention):
    model = llama(attention)
    alone = model(IDS).logits
    with vs.record(model, [*PORTS, "resid_post@*", "neurons@*"]) as acts:
        recorded = model(IDS).logits
    assert torch.equal(alone, recorded)
    assert acts["k@0"].shape == acts["q@0"].shape == (2, 4, 9, 8)


def test_fused_and_eager_attention_show_the_same_ports():
    fused, eager = llama("sdpa"), llama("eager")
    with vs.record(fused, PORTS) as one, vs.record(eager, PORTS) as other:
        fused(IDS)
        eager(IDS)
    for site in one:
        assert torch.allclose(one[site], other[site], atol=1e-6), site


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("port", ["k", "v"])
def test_an_edit_of_a_shared_key_reaches_one_query_head_alone(attention, port):
    model = llama(attention)
    with vs.record(model, "z@0") as before:
        model(IDS)
    with vs.intervene(model, {f"{port}@0[1]": vs.zero()}), vs.record(model, "z@0") as after:
        model(IDS)
    changed = [(before["z@0"][:, head] - after["z@0"][:, head]).abs().max() > 1e-6 for head in range(4)]
    assert changed == [False, True, False, False]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_under_an_edit_is_the_step_by_step_argmax_under_that_edit(attention):
    model = llama(attention)
    edit = {"z@1[2]": vs.add(torch.ones(8)), "resid_post@0": vs.at(-1, vs.add(torch.ones(32), 0.5))}
    with vs.intervene(model, edit):
        generated = model.module.generate(IDS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)
    steps = IDS[:1]
    cache = transformers.DynamicCache(config=model.module.config)
    fresh = steps
    with vs.intervene(model, edit), torch.no_grad():
        for _ in range(6):
            logits = model(fresh, past_key_values=cache, use_cache=True).logits
            fresh = logits[:, -1:].argmax(-1)
            steps = torch.cat([steps, fresh], 1)
    assert torch.equal(generated, steps)
    plain = model.module.generate(IDS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert not torch.equal(generated, plain)


def test_generation_is_recorded_forward_by_forward():
    model = llama("sdpa")
    with vs.record(model, "pattern@0") as acts:
        model.module.generate(IDS[:1], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert [tuple(run["pattern@0"].shape[2:]) for run in acts.runs] == [(9, 9), (1, 10), (1, 11)]
    assert all(torch.allclose(run["pattern@0"].sum(-1), torch.tensor(1.0)) for run in acts.runs)
