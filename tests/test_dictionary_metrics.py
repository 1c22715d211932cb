"""Scores of dictionaries against numbers that are worked out by hand."""

import pytest
import torch

import vesalius as vs
from vesalius.data.text import sample_rows
from vesalius.dictionaries import SparseDictionary
from vesalius.metrics import token_losses
from vesalius.testbed import curve_network, random_attn

UNITS = 24


@pytest.fixture(scope="module")
def reader() -> vs.Model:
    """Without a norm: the logits are (resid_mid + neurons W_out + b_out) W_U."""
    module = random_attn(n_layers=1, d_model=16, n_heads=2, d_vocab=9, n_ctx=20, d_mlp=UNITS, seed=3).module
    return vs.Model(module, bos=0)


def signed(site: str, width: int) -> SparseDictionary:
    """Every unit and its negative: what is rectified twice adds up to what it was."""
    return SparseDictionary.of_directions(site, torch.cat([torch.eye(width), -torch.eye(width)]))


def test_the_loss_recovered_is_that_of_the_formula(reader):
    """Two contexts, the losses of the original, spliced and zeroed neurons by matrix products alone."""
    dictionary = SparseDictionary.of_directions(
        "neurons@0", torch.randn(40, UNITS, generator=torch.Generator().manual_seed(1)) / 5
    )
    result = vs.dictionary_metrics(reader, dictionary, contexts=2, length=12)
    ids, _ = sample_rows(reader, None, length=12, limit=2, seed=0)
    with vs.record(reader, ["resid_mid@0", "neurons@0"]) as acts:
        reader(ids)
    neurons, losses = acts["neurons@0"], {}
    made = (neurons @ dictionary.W_enc).relu() @ dictionary.W_dec
    for name, x in (("original", neurons), ("dictionary", made), ("zero", torch.zeros_like(neurons))):
        stream = acts["resid_mid@0"] + x @ reader.weight("W_out", 0) + reader.weight("b_out", 0)
        losses[name] = (
            token_losses(stream @ reader.weight("W_U"), ids)[:, 1:].mean().item()
        )  # BOS does not count
        assert result.scores["loss"][name][0] == pytest.approx(losses[name], abs=1e-4)
    wanted = 1 - (losses["dictionary"] - losses["original"]) / (losses["zero"] - losses["original"])
    assert result.scores["recovered_zero"]["dictionary"][0] == pytest.approx(wanted, rel=1e-3)


def test_a_perfect_dictionary_keeps_everything(reader):
    network = curve_network()
    for model, site, width in (
        (reader, "neurons@0", UNITS),
        (network, network.site(), network.map_shape(network.site())[0]),
    ):
        result = vs.dictionary_metrics(model, signed(site, width), contexts=4, n_images=6, length=12)
        assert result.scores["explained"]["dictionary"][0] == pytest.approx(1, abs=1e-4)
        assert result.scores["kl"]["dictionary"][0] == pytest.approx(0, abs=1e-5)
        assert result.scores["agreement"]["dictionary"][0] == 1


def test_ablations_are_the_ends_of_the_scale(reader):
    result = vs.dictionary_metrics(reader, signed("neurons@0", UNITS), contexts=4, length=12)
    for score, ablation in (("recovered_zero", "zero"), ("recovered_mean", "mean"), ("explained", "mean")):
        assert result.scores[score]["original"][0] == 1
        assert result.scores[score][ablation][0] == pytest.approx(0, abs=1e-5)


def test_dead_latents_and_sparsity_are_counted(reader):
    directions = torch.cat([torch.eye(UNITS), -torch.eye(UNITS), torch.zeros(5, UNITS)])
    result = vs.dictionary_metrics(
        reader, SparseDictionary.of_directions("neurons@0", directions, k=3), contexts=4, length=12
    )
    assert result.dead >= 5 and not result.densities[-5:].any()
    assert result.densities.sum().item() == pytest.approx(3)
    assert result.scores["active"]["dictionary"][0] == pytest.approx(3)
    assert result.census["active in less than 1e-06"] == f"not to be told in {result.rows} rows"


def test_memory_and_batches_do_not_matter(reader):
    """The same numbers whether a text comes in one batch or in many: nine contexts are two batches of eight."""
    result = vs.dictionary_metrics(reader, signed("neurons@0", UNITS), contexts=9, length=12)
    assert result.rows == 9 * 10
    assert result.scores["explained"]["dictionary"][0] == pytest.approx(1, abs=1e-4)


def test_several_dictionaries_of_one_site_stand_side_by_side(reader, tmp_path):
    sparse = SparseDictionary.of_directions("neurons@0", signed("", UNITS).W_dec, k=2)
    file = sparse.save(tmp_path / "sparse")
    result = vs.dictionary_metrics(
        reader, signed("neurons@0", UNITS), others=[str(file)], contexts=2, length=12
    )
    assert result.scores["active"][str(sparse)][0] == pytest.approx(2)
    assert result.scores["explained"][str(sparse)][0] < result.scores["explained"]["dictionary"][0]
    elsewhere = SparseDictionary.of_directions("mlp_out@0", torch.eye(16)).save(tmp_path / "elsewhere")
    with pytest.raises(vs.VesaliusError, match="not of its site"):
        vs.dictionary_metrics(reader, sparse, others=[str(elsewhere)])
