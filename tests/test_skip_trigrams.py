"""Skip-trigrams: the copier by hand, split tokens of a made-up vocabulary, crossings, nothing in noise."""

import pytest
import torch

from vesalius.data.spelling import Spelling
from vesalius.methods.circuits.skip_trigrams import KINDS, skip_trigrams
from vesalius.model import Model
from vesalius.result import Result
from vesalius.testbed import handwritten_induction, random_attn

WORDS = [f"{first}{second}" for first in "RLPKT" for second in ("alph", "loyd", "ixmap", "een")]
VOCABULARY = [*(" " + word for word in WORDS), *"RLPKT", "alph", "loyd", "ixmap", "een"]


class Speller(Model):
    """A model whose tokens are spelled like VOCABULARY."""

    def strings(self, ids):
        return [VOCABULARY[number] for number in ids]


def spelling_head() -> Model:
    """One head that sees a word, waits for its first letter and writes the rest: [Ralph] … [R] → [alph]."""
    model = random_attn(n_layers=1, d_model=64, n_heads=1, d_vocab=len(VOCABULARY))
    attention, V = model.module.blocks[0].attn, len(VOCABULARY)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.zero_()
        model.module.embed.weight[:, :V] = torch.eye(V)
        model.module.unembed.weight[:, 32 : 32 + V] = torch.eye(V)[:, :32]
        model.module.unembed.weight[:, :] = torch.eye(V, 64).roll(32, 1)
        for number in range(20):
            letter, rest = 20 + number // 4, 25 + number % 4
            attention.q_proj.weight[number, letter] = attention.k_proj.weight[number, number] = 10.0
            attention.v_proj.weight[number, number] = 1.0
            attention.o_proj.weight[32 + rest, number] = 5.0
    return Speller(model.module, name="speller")


def test_tells_split_tokens_from_copies():
    found = skip_trigrams(spelling_head(), top=2)
    assert found.counts["[ab]…[a]→[b]"] == 20
    assert found.shuffled["[ab]…[a]→[b]"] < 4
    verdicts = {headline.claim: headline.evidence for headline in found.headlines()}
    assert verdicts["rows [ab]…[a]→[b]"] and not verdicts["rows [b]…[a]→[b]"]
    assert "␣Ralph … R → alph" in [row["reads"] for row in found.rows]


def test_the_handwritten_copier_copies_every_token_it_writes():
    found = skip_trigrams(handwritten_induction(), layer=1, heads=[0], top=1)
    assert found.counts[KINDS[0]] >= 40
    assert found.headlines()[0].evidence
    assert all(row["source"] == row["outs"][0] for row in found.together if row["effects"][0] > 5)


def test_tables_are_those_of_the_dense_circuits():
    model = random_attn(n_layers=1, d_vocab=30)
    found = skip_trigrams(model, heads=[2], top=4)
    W_E, (W_Q, W_K, W_V) = model.weight("W_E"), (model.weight(role, 0)[2] for role in ("W_Q", "W_K", "W_V"))
    QK = W_E @ W_Q @ W_K.T @ W_E.T / model.d_head**0.5  # [destination, source]
    OV = W_E @ W_V @ model.weight("W_O", 0)[2] @ model.weight("W_U")
    QK = QK - QK.mean(1, keepdim=True)
    OV = OV - OV.mean(1, keepdim=True) - OV.mean(0) + OV.mean()
    torch.testing.assert_close(found.queried[0], QK.T.topk(4).values)
    torch.testing.assert_close(found.raised[0], OV.topk(4).values)
    row = found.together[0]
    source, destination = (int(row[name][1:]) for name in ("source", "destination"))
    effect = QK[destination, source].sigmoid() * OV[source]
    torch.testing.assert_close(torch.tensor(row["effects"]), effect.topk(4).values, rtol=1e-4, atol=1e-5)


def test_bugs_are_crossings_that_the_direct_path_tells_apart():
    model = random_attn(n_layers=1, n_heads=1, d_model=8, d_vocab=6)  # 0 keep, 1 in, 2 at, 3 mind, 4 bay
    attention = model.module.blocks[0].attn
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.zero_()
        model.module.embed.weight[:] = torch.eye(6, 8)
        model.module.unembed.weight[:] = torch.eye(6, 8)
        model.module.unembed.weight[3, 1] = model.module.unembed.weight[4, 2] = 2.0  # in → mind, at → bay
        attention.q_proj.weight[0, [1, 2]] = attention.k_proj.weight[0, 0] = 5.0
        attention.v_proj.weight[0, 0] = 1.0
        attention.o_proj.weight[[3, 4], 0] = 4.0
    bug = skip_trigrams(model, source="#0", top=2).bugs[0]
    assert set(bug["says"].split("; ")) == {"#0 … #1 → #3", "#0 … #2 → #4"}
    assert set(bug["also"].split("; ")) == {"#0 … #1 → #4", "#0 … #2 → #3"}
    assert bug["apart"] == pytest.approx(4.0, rel=0.01)


def test_nothing_is_found_in_noise_and_results_keep(tmp_path):
    found = skip_trigrams(random_attn())
    assert not any(headline.evidence for headline in found.headlines())
    assert Result.load(found.save(tmp_path / "skip")).summary() == found.summary()


def test_spelling_ignores_what_has_no_letters():
    spelling = Spelling([" ", "  ", "cats", " Cat", "s", "C", "ats"])
    assert spelling.loose[0] == spelling.loose[1] == -1
    assert spelling.loose[2] == spelling.loose[3]
    first, second = torch.tensor([5, 0]), torch.tensor([6, 6])
    assert spelling.joined_loosely(first, second).tolist() == [spelling.loose[3].item(), -1]
