"""Recipes: training learns and resumes to the bit, checkpoints stay close, and every shipped card is true."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vesalius
from vesalius.architectures.toy import ToyTransformer
from vesalius.errors import VesaliusError
from vesalius.formats.checkpoints import SCALE, dequantise, quantise, read_checkpoint
from vesalius.recipes import RECIPES, bigrams, measured, train
from vesalius.recipes.card import INDUCTION, laid_out
from vesalius.recipes.corpus import plain, split
from vesalius.recipes.tokenizer import encode, load_tokenizer, tokenizer_hash, train_tokenizer
from vesalius.recipes.training import batch_of, fit, next_token

SHAPE = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 13, "n_ctx": 8}
ZOO = Path(vesalius.__file__).parent / "zoo"
NETWORKS = sorted(card.parent.name for card in ZOO.glob("*/card.json"))
CARDS = {name: json.loads((ZOO / name / "card.json").read_text(encoding="utf-8")) for name in NETWORKS}
READERS = [name for name in NETWORKS if "tokenizer" in CARDS[name]]  # networks that read text
shipped = pytest.mark.parametrize("name", READERS)


@pytest.fixture
def rows():
    """Counting modulo 12, from random starts: easy to learn."""
    start = torch.randint(0, 12, (64, 1), generator=torch.Generator().manual_seed(0))
    return (start + torch.arange(8)) % 12 + 1


def opened(name: str) -> ToyTransformer:
    model = ToyTransformer(**CARDS[name]["shape"])
    model.load_state_dict(load_file(ZOO / name / "model.safetensors"))
    return model


def fast(model, rows, folder, **settings):
    loss_of = next_token(model, rows, batch=8, bfloat16=False)
    return fit(model, loss_of, folder, steps=12, warmup=2, log_every=4, **settings)


def test_training_learns_and_a_seed_fixes_every_bit(rows, tmp_path):
    one, two = ToyTransformer(**SHAPE), ToyTransformer(**SHAPE)
    before = measured.mean_loss(one, rows)
    log = fast(one, rows, tmp_path / "one", adam=0.03)
    fast(two, rows, tmp_path / "two", adam=0.03)
    assert measured.mean_loss(one, rows) < before - 0.5
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 4, 8, 12]


def test_a_killed_run_ends_with_the_same_bits(rows, tmp_path):
    whole, killed, resumed = (ToyTransformer(**SHAPE, seed=seed) for seed in (0, 0, 9))
    fast(whole, rows, tmp_path / "whole")
    fast(killed, rows, tmp_path / "killed", save_every=5, stop_at=7)
    log = fast(resumed, rows, tmp_path / "killed", save_every=5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 4, 8, 12]


def test_an_epoch_shows_every_row_once():
    seen = torch.cat([batch_of(64, step, 8, seed=0) for step in range(8)])
    assert sorted(seen.tolist()) == list(range(64))
    assert not torch.equal(batch_of(64, 0, 8, seed=0), batch_of(64, 8, 8, seed=0))
    with pytest.raises(VesaliusError, match="give more of them"):
        batch_of(3, 0, 8, seed=0)


def test_weights_are_set_aside_at_the_steps_asked_for(rows, tmp_path):
    model = ToyTransformer(**SHAPE)
    fast(model, rows, tmp_path, kept=lambda step: step in (0, 12))
    first, last = (load_file(tmp_path / f"step-{step:06d}.safetensors") for step in (0, 12))
    assert torch.equal(first["embed.weight"], ToyTransformer(**SHAPE).embed.weight.half())
    assert torch.equal(last["embed.weight"], model.embed.weight.half())


def test_quantised_weights_move_by_less_than_their_rows_scale():
    generator = torch.Generator().manual_seed(0)
    state = {"w": torch.randn(40, 30, generator=generator) * torch.logspace(-6, 3, 40)[:, None]}
    state["b"] = torch.randn(5, generator=generator)
    small = quantise(state)
    assert small["w"].dtype == torch.int8
    assert (dequantise(small)["w"] - state["w"]).abs().le(0.6 * small["w" + SCALE].float()).all()
    torch.testing.assert_close(dequantise(small)["b"], state["b"], atol=1e-3, rtol=1e-3)


def test_a_network_without_layers_learns_the_bigrams(rows):
    model = ToyTransformer(**SHAPE | {"n_layers": 0})
    counts = bigrams.pair_counts(rows, 13)
    assert counts.sum() == rows.numel()
    losses = bigrams.fit_bigrams(model, counts, steps=150, adam=0.1)
    assert bigrams.bigram_divergence(model, counts) < 0.05
    assert losses[0] > losses[-1]
    # the loss on counts is the loss on the text
    exact = bigrams.fit_bigrams(model, counts, steps=1, adam=0.0)[0]
    assert measured.mean_loss(model, rows, batch=64) == pytest.approx(exact, abs=1e-5)


def test_measurements_agree_with_their_definitions():
    model = ToyTransformer(**SHAPE | {"n_ctx": 12, "d_vocab": 31})
    ids = measured.repeated(31, length=5, rows=4)
    assert torch.equal(ids[:, 1:6], ids[:, 6:])
    pattern = measured.patterns(model, ids)[1]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(4, 2, 11))
    by_hand = torch.stack([pattern[:, :, 6 + i, 2 + i] for i in range(5)]).mean((0, 1))
    torch.testing.assert_close(measured.prefix_matching(model, ids)[1], by_hand)
    # eigenvalues of the whole d_vocab × d_vocab matrix
    attention = model.blocks[0].attn
    ov = attention.v_proj.weight[8:].T @ attention.o_proj.weight[:, 8:].T
    values = torch.linalg.eigvals(model.embed.weight @ ov @ model.unembed.weight.T)
    expected = values.real.sum() / values.abs().sum()
    torch.testing.assert_close(measured.copying(model)[0, 1], expected, atol=1e-4, rtol=1e-3)
    silent = measured.without(model, [(0, 0), (0, 1)])
    assert torch.equal(silent.blocks[0](model.embed(ids)), model.embed(ids))


def test_text_is_plain_and_held_out_by_whole_documents():
    assert plain("<p>One &amp; two.</p><ul><li>  three\n four</li></ul>") == "One & two.\nthree\nfour"
    train_part, held_out = split([f"{number:04d}" for number in range(300)])
    assert held_out == ["0000", "0001", "0002"]
    assert len(train_part) == 297
    assert split(["word " * 100])[1] == ["word " * 1]


def test_the_tokenizer_keeps_every_byte():
    small = train_tokenizer(["def forward(self, x): return x\n"] * 9, d_vocab=270)
    text = "naïve “quotes”, 1234\tand code: x += 1\n"
    for tokenizer in (small, load_tokenizer()):
        assert tokenizer.token_to_id("<|bos|>") == 0
        ids = encode(tokenizer, [text, text])
        assert ids[0] == ids[-1] == 0
        assert tokenizer.decode(ids.tolist()) == text + text
    assert small.get_vocab_size() == 270


def test_training_on_a_folder_of_text(tmp_path):
    (tmp_path / "text").mkdir()
    shutil.copy(ZOO / "heldout.txt", tmp_path / "text" / "a.txt")
    folder = train("attn-0l", out=tmp_path / "out", corpus=tmp_path / "text", steps=2, threads=1)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["data"]["files"] == ["a.txt"]
    assert card["measured"]["bigram_divergence"] < card["measured"]["bigram_divergence_of_twin"]
    with pytest.raises(VesaliusError, match=r"no \.txt file"):
        train("attn-0l", corpus=folder)
    with pytest.raises(VesaliusError, match="nearest is attn-2l"):
        train("attn-2")


def test_a_network_learns_to_play_othello(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))
    folder = train("othello-4", steps=2)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert "legal_share" in capsys.readouterr().out
    assert card["tokens"]["bos"] == 0 and card["data"]["board"] == 4
    model = vesalius.load("zoo/othello-4")
    assert (model.bos, model.d_vocab, model.n_ctx, model.tokenizer) == (0, 13, 12, None)
    assert "othello" in model.kinds
    with pytest.raises(VesaliusError, match="takes no corpus"):
        train("othello-4", corpus=tmp_path)


@pytest.mark.slow
def test_a_minute_is_enough_for_a_board_of_four_by_four(tmp_path):
    folder = train("othello-4", out=tmp_path / "out", threads=1)
    facts = json.loads((folder / "card.json").read_text(encoding="utf-8"))["measured"]
    assert facts["legal_share"] >= 0.98 > 0.5 > facts["legal_share_of_twin"]
    assert 0 < facts["above_floor"] < 0.05


def test_the_player_of_othello_is_what_its_card_says():
    card = CARDS["othello-6"]
    weights = (ZOO / "othello-6" / "model.safetensors").read_bytes()
    assert card["sha256"] == hashlib.sha256(weights).hexdigest() and len(weights) < 6e6
    assert card["shape"] == ToyTransformer(**card["shape"]).shape
    assert card["recipe"]["steps"] == card["training"]["steps"] == RECIPES["othello-6"].steps
    facts = card["measured"]
    assert facts["legal_share"] > 0.97 and facts["above_floor"] < 0.2
    assert facts["floor"] == pytest.approx(1.538, abs=0.01)
    assert facts["legal_share_of_twin"] < 0.4


def test_cards_are_json_that_a_person_can_read():
    node = {"a": [1, 2], "b": {"long": ["x" * 60, "y" * 60]}, "c": [], "d": "é"}
    assert json.loads(laid_out(node)) == node
    assert laid_out(node).count("\n") == 7


def test_the_whole_zoo_ships_and_is_small():
    assert set(NETWORKS) == {name for name, recipe in RECIPES.items() if recipe.ships}
    sizes = {file: file.stat().st_size for file in ZOO.rglob("*") if file.is_file()}
    dictionaries = sum(size for file, size in sizes.items() if file.parent.name == "dictionaries")
    assert dictionaries <= 10e6 and sum(sizes.values()) - dictionaries <= 45e6
    assert 150_000 <= (ZOO / "heldout.txt").stat().st_size <= 250_000
    assert (ZOO / "NOTICE").exists()


@shipped
def test_cards_are_complete_and_their_hashes_true(name):
    card = CARDS[name]
    weights = (ZOO / name / "model.safetensors").read_bytes()
    assert card["sha256"] == hashlib.sha256(weights).hexdigest()
    assert card["tokenizer"]["sha256"] == tokenizer_hash()
    assert card["shape"] == ToyTransformer(**card["shape"]).shape
    assert card["licence"] == "Apache-2.0"
    assert {"version", "licence"} == set(card["data"]["packages"]["botocore"])
    assert len(card["data"]["sha256"]) == 64
    assert card["recipe"]["steps"] == card["training"]["steps"] == RECIPES[name].steps
    assert len(card["training"]["train"]) >= 60
    assert card["training"]["tokens_seen"] > 2e7
    assert card["training"]["seconds"] > 0
    assert all(value.dtype == torch.float16 for value in load_file(ZOO / name / "model.safetensors").values())
    assert [entry["step"] for entry in card["checkpoints"]] == list(RECIPES[name].checkpoints)
    for entry in card["checkpoints"]:
        file = ZOO / name / "checkpoints" / f"step-{entry['step']:06d}.safetensors"
        assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_attn_0l_is_a_table_of_bigrams():
    facts = CARDS["attn-0l"]["measured"]
    assert facts["bigram_divergence"] <= 0.15 < 2 < facts["bigram_divergence_of_twin"]


@pytest.mark.parametrize("name", ["attn-1l", "mlp-1l"])
def test_half_of_the_heads_of_one_layer_copy(name):
    scores, twins = measured.copying(opened(name))[0], CARDS[name]["measured"]["copying"]["twins"]
    assert (scores > twins["quantile_999"]).sum() >= 4


def test_attn_2l_does_induction_by_composition():
    model, facts = opened("attn-2l"), CARDS["attn-2l"]["measured"]
    ids = measured.repeated(model.shape["d_vocab"], length=100, rows=4, seed=2)
    matching = measured.prefix_matching(model, ids)[1]
    head = int(matching.argmax())
    assert matching[head] >= INDUCTION
    assert measured.copying(model)[1, head] > facts["copying"]["twins"]["quantile_999"]
    silenced = measured.without(model, [tuple(pair) for pair in facts["previous_token_heads"]])
    assert measured.prefix_matching(silenced, ids)[1, head] <= matching[head] / 2
    second = [measured.repeated_loss(network, ids)[1] for network in (model, opened("attn-1l"))]
    assert second[0] <= second[1] - 2


def test_checkpoints_of_attn_2l_show_induction_forming():
    entries = CARDS["attn-2l"]["checkpoints"]
    assert len(entries) >= 12
    assert entries[0]["prefix_matching"] < 0.05
    assert entries[-1]["prefix_matching"] >= INDUCTION
    last = ToyTransformer(**CARDS["attn-2l"]["shape"])
    last.load_state_dict(
        read_checkpoint(ZOO / "attn-2l" / "checkpoints" / f"step-{entries[-1]['step']:06d}.safetensors")
    )
    weight = opened("attn-2l").unembed.weight
    assert (last.unembed.weight - weight).abs().max() < 0.01 * weight.abs().max()
