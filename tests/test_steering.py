"""Steering: operators, masks, control vectors and their files, generation, and strengths that break a network."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

import vesalius as vs
from vesalius.concepts.concept_vectors import control_vector
from vesalius.concepts.steered import keep_norm, linear, on_tokens, orthogonalised, steering_edits, token_mask
from vesalius.dictionaries.control_vector import ControlVector
from vesalius.formats.control_vectors import read_control_vector, write_control_vector
from vesalius.formats.gguf_file import open_gguf
from vesalius.generation import generate
from vesalius.methods.directions.activation_addition import activation_addition
from vesalius.methods.directions.concept_ablation import concept_ablation
from vesalius.methods.directions.contrast_steering import contrast_steering
from vesalius.methods.directions.head_steering import head_steering
from vesalius.methods.directions.steering import steering
from vesalius.testbed import random_attn
from vesalius.testbed.planted_direction import planted_direction, planted_texts

TEXT = "the film was good3 . the day is bad4 . so it was the book . " * 10
QUESTIONS = dict(prompts=[p for p, _, _ in planted_texts().questions], towards=" yes", away=" no", text=TEXT)


@pytest.fixture(scope="module")
def model() -> vs.Model:
    return planted_direction()


@pytest.fixture
def path(tmp_path):
    return planted_texts().save(tmp_path / "planted.jsonl")


def vector_of(layers=(1, 2), width=8, seed=0, **about) -> ControlVector:
    generator = torch.Generator().manual_seed(seed)
    return ControlVector({layer: torch.randn(width, generator=generator) for layer in layers}, **about)


# ---------------------------------------------------------------------------------------------------- what edits do


def test_the_norm_is_kept_and_masked_tokens_are_left_alone():
    h, v = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), torch.ones(8)
    kept = keep_norm(linear(v, 3.0))(h)
    torch.testing.assert_close(kept.norm(dim=-1), h.norm(dim=-1))
    mask = token_mask([5, 3], "all")
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    steered = on_tokens(mask, linear(v, 1.0))(h)
    assert torch.equal(steered[1, 3:], h[1, 3:]) and not torch.equal(steered[1, :3], h[1, :3])
    assert token_mask([5, 3], "end").nonzero().tolist() == [[0, 4], [1, 2]]
    assert token_mask([5, 3], "start").nonzero().tolist() == [[0, 0], [1, 0]]
    assert token_mask([5, 3], [-1, 1]).nonzero().tolist() == [[0, 1], [0, 4], [1, 1], [1, 2]]
    with pytest.raises(vs.VesaliusError, match="position 4 is past the end of a row of 3 tokens"):
        token_mask([5, 3], [4])
    with pytest.raises(vs.VesaliusError, match="expected all, start, end"):
        token_mask([5, 3], "begin")


def test_control_vectors_are_a_vector_space():
    a, b = vector_of(), vector_of((2, 3), seed=1)
    both = a + 2 * b - a * 0.5
    assert both.layers == [1, 2, 3]
    torch.testing.assert_close(both.directions[2], 0.5 * a.directions[2] + 2 * b.directions[2])
    torch.testing.assert_close((-b).directions[3], -b.directions[3])
    torch.testing.assert_close(a.random_like(0).directions[1].norm(), a.directions[1].norm())
    assert a[1].site == "resid_post@1" and a.at([2]).layers == [2]
    with pytest.raises(vs.VesaliusError, match="do not add"):
        _ = a + vector_of(width=9)
    with pytest.raises(vs.VesaliusError, match="do not add"):
        _ = dataclasses.replace(a, model_hash="x") + dataclasses.replace(a, model_hash="y")


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_a_control_vector_comes_back_from_its_file(tmp_path, suffix):
    vector = vector_of(model="m", model_hash="h", family="llama", label="cheerful")
    if suffix == ".gguf":
        pytest.importorskip("gguf")
    found = read_control_vector(write_control_vector(vector, tmp_path / f"v{suffix}"))
    assert (found.model, found.model_hash, found.family, found.label) == ("m", "h", "llama", "cheerful")
    for layer in vector.layers:
        assert torch.equal(found.directions[layer], vector.directions[layer])


def test_llama_cpp_finds_what_it_looks_for(tmp_path):
    pytest.importorskip("gguf")
    path = write_control_vector(vector_of((1, 7), family="llama"), tmp_path / "v.gguf")
    file = open_gguf(path)
    assert file.metadata["general.architecture"] == "controlvector"
    assert file.metadata["controlvector.model_hint"] == "llama"
    assert file.metadata["controlvector.layer_count"] == 2
    assert {name: (entry.shape, entry.kind) for name, entry in file.entries.items()} == {
        "direction.1": ((8,), 0),
        "direction.7": ((8,), 0),
    }
    with pytest.raises(vs.VesaliusError, match="cannot steer layer 0"):
        write_control_vector(vector_of((0, 1)), tmp_path / "w.gguf")
    assert not (tmp_path / "w.gguf").exists()
    with pytest.raises(vs.VesaliusError, match=r"expected \.gguf or \.safetensors"):
        write_control_vector(vector_of(), tmp_path / "w.bin")


def test_a_file_as_repeng_writes_it_is_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    directions = vector_of((1, 2, 3), width=6).directions
    writer = gguf.GGUFWriter(tmp_path / "repeng.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in reversed(directions.items()):
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_control_vector(tmp_path / "repeng.gguf")
    assert (found.family, found.label, found.layers) == ("mistral", "repeng", [1, 2, 3])
    assert all(torch.equal(found.directions[layer], directions[layer]) for layer in directions)


def test_files_of_others_are_read_and_nothing_in_them_runs(tmp_path):
    vector = vector_of()
    torch.save(vector.directions, tmp_path / "bare.pt")
    torch.save({"layer_activations": vector.directions, "layer_type": "decoder_block"}, tmp_path / "sv.pt")
    save_file({f"layer.{n}": d for n, d in vector.directions.items()}, tmp_path / "sv.safetensors")
    for name in ("bare.pt", "sv.pt", "sv.safetensors"):
        found = read_control_vector(tmp_path / name)
        assert found.layers == [1, 2] and torch.equal(found.directions[2], vector.directions[2])
    torch.save(vector, tmp_path / "pickled.pt")
    with pytest.raises(vs.VesaliusError, match="holds more than tensors"):
        read_control_vector(tmp_path / "pickled.pt")
    torch.save({"layer_activations": vector.directions, "layer_type": "mlp"}, tmp_path / "mlp.pt")
    with pytest.raises(vs.VesaliusError, match="steers 'mlp'"):
        read_control_vector(tmp_path / "mlp.pt")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(vs.VesaliusError, match=r"has weight; expected direction\.N"):
        read_control_vector(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"xx")
    with pytest.raises(vs.VesaliusError, match="is damaged"):
        read_control_vector(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (vector_of((0,), width=9), "has width 9; planted-direction-0 has d_model 48"),
        (vector_of((0, 5), width=48), "has a layer 5; planted-direction-0 has layers 0 to 0"),
        (vector_of((0,), width=48, family="llama"), "is for the llama family"),
        (vector_of((0,), width=48, model_hash="0"), "was found in other weights"),
    ],
)
def test_another_networks_vector_is_refused_in_one_sentence(model, path, tmp_path, vector, message):
    file = write_control_vector(vector, tmp_path / "v.safetensors")
    with pytest.raises(vs.VesaliusError, match=message) as error:
        steering(model, pairs=path, vector=file, **QUESTIONS)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- generation


def test_generation_is_steered_where_it_is_told_to_be(model):
    plain = generate(model, ["the film was", "so the day was it"], tokens=3)
    vector = ControlVector({0: model.weight("W_U")[:, model.token("yes")]})
    steered = generate(
        model,
        ["the film was", "so the day was it"],
        tokens=3,
        edits=steering_edits(model, vector, strength=4.0),
    )
    assert plain != steered and all(token == model.token("yes") for row in steered for token in row)
    with pytest.raises(vs.VesaliusError, match="keeps no cache"):
        generate(model, ["the film"], edits=steering_edits(model, vector), on="generated")
    with pytest.raises(vs.VesaliusError, match="reads at most 32"):
        generate(model, ["the film"], tokens=40)


def test_a_cache_changes_nothing():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=40, n_positions=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt2 = vs.Model(transformers.GPT2LMHeadModel(config).eval(), name="tiny")
    ids = torch.tensor([[3, 5, 7], [4, 4, 9]])
    vector = vector_of((0, 1), width=16)
    edits = steering_edits(gpt2, vector, strength=2.0)
    slow = ids
    for _ in range(5):
        with torch.no_grad(), vs.intervene(gpt2, edits):
            slow = torch.cat([slow, gpt2.logits(slow)[:, -1:].argmax(-1)], 1)
    assert generate(gpt2, ids, tokens=5, edits=edits) == slow[:, 3:].tolist()
    parts = {on: generate(gpt2, ids, tokens=5, edits=edits, on=on) for on in ("prompt", "generated")}
    assert parts["prompt"] != parts["generated"]
    drawn = [generate(gpt2, ids, tokens=5, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


# ---------------------------------------------------------------------------------------------------------- methods


def test_a_strength_that_breaks_the_network_is_named(model, path):
    with pytest.raises(vs.VesaliusError, match=r"at strength 3e\+38: .* NaN or infinite logits"):
        steering(model, pairs=path, strengths=[1, 3e38], draws=1, twins=0, **QUESTIONS)


def test_steering_without_questions_or_beyond_a_text_says_so(model, path):
    with pytest.raises(vs.VesaliusError, match="no questions to measure steering on"):
        steering(model, pairs=path, text=TEXT)
    with pytest.raises(vs.VesaliusError, match=r"positions \[90\] are not all within"):
        steering(model, pairs=path, positions=[90], **QUESTIONS)


@pytest.mark.parametrize("operator", ["linear", "piecewise", "projection", "clamp"])
def test_every_operator_gives_a_curve_with_its_controls(model, path, operator):
    result = steering(
        model, pairs=path, operator=operator, strengths=[0.5, 1.0], draws=2, twins=1, **QUESTIONS
    )
    assert result.strengths == [0.0, 0.5, 1.0] and result.effect[0].abs().max() == 0
    assert result.nulls["random"].shape == (2, 3) and result.nulls["twin"].shape == (1, 3)
    assert result.kl[0].abs().max() < 1e-6 and (result.low <= result.high).all()
    assert result.choices["operator"] == operator


def test_a_vector_from_a_file_steers_as_the_one_it_was_made_from(model, path, tmp_path):
    file = write_control_vector(control_vector(model, path), tmp_path / "v.safetensors")
    given = steering(model, pairs=path, vector=file, strengths=[1.0], n_pairs=96, twins=0, **QUESTIONS)
    found = steering(model, pairs=path, strengths=[1.0], n_pairs=96, twins=0, **QUESTIONS)
    torch.testing.assert_close(given.effect, found.effect)


def test_ablating_the_planted_direction_takes_the_concept_away(model, path):
    result = concept_ablation(
        model,
        pairs=path,
        follow=" so it is",
        towards=" yes",
        away=" no",
        most_kl=9.0,
        n_pairs=96,
        positions=[-4],
    )
    v = torch.nn.functional.cosine_similarity(
        result.direction, model.weight("W_U")[:, model.token("yes")], dim=0
    )
    gap = result.plain["with"] - result.plain["without"]
    assert v > 0.9 and gap > 0 and result.drop[0] > 0.4 * gap
    assert result.orthogonal_error is not None and result.orthogonal_error < 1e-5
    with pytest.raises(vs.VesaliusError, match="does not say what follows"):
        concept_ablation(model, pairs=path)


def test_a_family_that_normalises_its_writes_has_no_orthogonal_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.Olmo2Config(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        vocab_size=40, max_position_embeddings=24, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        olmo = vs.Model(transformers.Olmo2ForCausalLM(config).eval(), name="olmo")
    with pytest.raises(vs.VesaliusError, match="use ablation_edits"):
        orthogonalised(olmo, torch.ones(16))


def test_tied_weights_are_untied_before_they_are_made_orthogonal():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        vocab_size=40, max_position_embeddings=24, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        llama = vs.Model(transformers.LlamaForCausalLM(config).eval(), name="tied")
    direction, before = torch.randn(16, generator=torch.Generator().manual_seed(0)), llama.hash
    from vesalius.concepts.steered import ablation_edits

    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        with vs.intervene(llama, ablation_edits(llama, direction)):
            ablated = llama.logits(ids)
        torch.testing.assert_close(
            orthogonalised(llama, direction).logits(ids), ablated, atol=1e-5, rtol=1e-5
        )
    del llama.hash
    assert llama.hash == before


def test_the_other_ways_of_steering_check_what_they_are_given(model):
    reader = vs.load("zoo/attn-1l")
    with pytest.raises(vs.VesaliusError, match="the same tokens"):
        activation_addition(reader, towards="good", away="good")
    with pytest.raises(vs.VesaliusError, match="no place for the prompt"):
        contrast_steering(reader, towards="Be honest.")
    with pytest.raises(vs.VesaliusError, match="heads were asked for"):
        head_steering(reader, heads=1000)


def test_lorra_says_that_it_needs_peft_or_learns(tmp_path):
    from vesalius.recipes.lorra import lorra

    try:
        import peft  # noqa: F401
    except ImportError:
        with pytest.raises(vs.VesaliusError, match=r"vesalius\[lora\]"):
            lorra(random_attn(), [("a", "b")], towards="x {text}", away="y {text}")
