"""What latents do: taken away, pinned, and calling each other up."""

import pytest
import torch

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.latents.inputs import inputs_of, moved
from vesalius.metrics import token_losses
from vesalius.testbed import random_attn

UNITS, VOCABULARY = 24, 13


@pytest.fixture(scope="module")
def reader() -> vs.Model:
    """Without a norm, so that logits are linear in the neurons."""
    module = random_attn(
        n_layers=1, d_model=16, n_heads=2, d_vocab=VOCABULARY, n_ctx=40, d_mlp=UNITS, seed=3
    ).module
    return vs.Model(module, bos=0)


@pytest.fixture(scope="module")
def dictionary() -> SparseDictionary:
    drawn = torch.randn(40, UNITS, generator=torch.Generator().manual_seed(1))
    return SparseDictionary.of_directions("neurons@0", drawn / drawn.norm(dim=1, keepdim=True))


def test_effects_add_up_before_the_norm(reader, dictionary):
    ids = inputs_of(reader, contexts=4, length=16).ids
    base = reader.logits(ids)

    def change(*latents: int) -> torch.Tensor:
        edits = [moved(dictionary, latent, torch.zeros_like)["neurons@0"] for latent in latents]
        with vs.record(reader, "neurons@0") as acts:
            reader(ids)
        removed = sum(edit(acts["neurons@0"]) - acts["neurons@0"] for edit in edits)
        with vs.intervene(reader, {"neurons@0": vs.add(removed)}):
            return reader.logits(ids) - base

    torch.testing.assert_close(change(3) + change(7), change(3, 7), atol=1e-4, rtol=1e-4)
    assert change(3).abs().max() > 1e-3


def test_effects_are_those_of_matrix_products(reader, dictionary):
    """The logits lose f W_out W_U times the direction; everything else stays."""
    result = vs.feature_ablation(reader, dictionary, latents=[5], contexts=6, length=16, shown=1)
    (shown,) = result.contexts[0]
    ids = inputs_of(reader, contexts=6, length=16).ids[shown["context"]][None]
    with vs.record(reader, ["resid_post@0", "neurons@0"]) as acts:
        reader(ids)
    values = (acts["neurons@0"] @ dictionary.W_enc[:, 5]).relu()
    values[ids == 0] = 0
    torch.testing.assert_close(shown["values"], values[0], atol=1e-5, rtol=1e-4)
    taken = values[..., None] * (dictionary.W_dec[5] @ reader.weight("W_out", 0))
    W_U = reader.weight("W_U")
    before, after = (
        token_losses(acts["resid_post@0"] @ W_U, ids),
        token_losses((acts["resid_post@0"] - taken) @ W_U, ids),
    )
    torch.testing.assert_close(shown["effects"][1:], (after - before)[0], atol=1e-4, rtol=1e-3)


def planted(reader: vs.Model, *, token: int) -> tuple[vs.Model, SparseDictionary]:
    """Latent 0 is active on one token and raises the same; latent 1 is neither."""
    model = reader.random_twin(0)
    writes = model.weight("W_out", 0) @ model.weight("W_U")
    with vs.record(model, "neurons@0") as acts:
        model(torch.arange(VOCABULARY)[:, None])
    on = torch.linalg.lstsq(acts["neurons@0"][:, 0], torch.eye(VOCABULARY)[:, token] - 0.5).solution
    raising = torch.linalg.lstsq(writes.T, torch.eye(VOCABULARY)[:, token]).solution
    W_dec = torch.stack(
        [raising / raising.norm() * 500, torch.randn(UNITS, generator=torch.Generator().manual_seed(0))]
    )
    none = torch.zeros
    return model, SparseDictionary(
        "neurons@0", torch.stack([on, -on], 1), none(2), W_dec, none(UNITS), none(2)
    )


def test_pinning_a_latent_makes_the_network_write_its_token(reader):
    model, dictionary = planted(reader, token=4)
    result = vs.pinned_sampling(model, dictionary, latents=[0], contexts=6, length=16, own=1, samples=6)
    assert result.tokens == [["#4"]]
    assert result.normal[0] + result.gains[0] > 0.8
    again = vs.pinned_sampling(model, dictionary, latents=[0], contexts=6, length=16, own=1, samples=6)
    assert again.samples == result.samples


def test_a_pin_at_the_present_value_changes_nothing(reader, dictionary):
    ids = inputs_of(reader, contexts=2, length=16).ids
    with vs.intervene(reader, moved(dictionary, 2, lambda codes: codes)):
        torch.testing.assert_close(reader.logits(ids), reader.logits(ids))


def test_latents_that_keep_themselves_going_are_found(reader):
    """One latent for every token: it is active there and raises it, or another's."""
    model = reader.random_twin(0)
    with vs.record(model, "neurons@0") as acts:
        model(inputs_of(model, contexts=32, length=30).ids)
    ids = inputs_of(model, contexts=32, length=30).ids
    rows = acts["neurons@0"].flatten(0, 1)
    target = torch.nn.functional.one_hot(ids.flatten(), VOCABULARY).float()
    reads = torch.linalg.lstsq(rows, target).solution
    raises = torch.linalg.pinv(model.weight("W_out", 0) @ model.weight("W_U"))
    half = torch.full((VOCABULARY,), 0.5)
    none = torch.zeros

    def result_of(order: torch.Tensor):
        found = SparseDictionary("neurons@0", reads, none(VOCABULARY), raises[order], none(UNITS), half)
        return vs.finite_state_features(model, found, contexts=32, length=30, own=1, n_latents=VOCABULARY)

    loops = result_of(torch.arange(VOCABULARY))
    chain = result_of((torch.arange(VOCABULARY) + 1) % VOCABULARY)
    assert loops.itself.mean() > 0.5 and loops.low > loops.chance
    assert chain.itself.mean() < loops.itself.mean() / 2
    steps = [edge for edge in chain.edges if edge["from"] != edge["to"]]
    assert sum(edge["to"] == (edge["from"] + 1) % VOCABULARY for edge in steps) > len(steps) / 2


def test_latents_that_there_are_not_are_named(reader, dictionary):
    with pytest.raises(vs.VesaliusError, match=r"\[99\] were asked for; this dictionary has 0 to 39"):
        vs.feature_ablation(reader, dictionary, latents=[1, 99], contexts=2, length=16)
