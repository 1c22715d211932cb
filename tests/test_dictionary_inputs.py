"""Activations as rows, and reconstructions put back: nothing is lost on the way there and back."""

import pytest
import torch

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.latents.inputs import activations_of, codes_of, inputs_of, moved, spliced
from vesalius.testbed import curve_network, random_attn


@pytest.fixture
def reader() -> vs.Model:
    module = random_attn(d_model=16, n_heads=2, d_vocab=41, n_ctx=20, d_mlp=24, norm=True).module
    return vs.Model(module, bos=0)


def signed(site: str, width: int) -> SparseDictionary:
    """Every unit and its negative: what is rectified twice adds up to what it was."""
    return SparseDictionary.of_directions(site, torch.cat([torch.eye(width), -torch.eye(width)]))


def test_rows_are_the_tokens_that_count_with_their_places(reader):
    inputs = inputs_of(reader, contexts=5, length=12)
    parts = list(activations_of(reader, "neurons@0", inputs, batch=2))
    assert [len(part.rows) for part in parts] == [2 * 10, 2 * 10, 10]  # BOS does not count
    with vs.record(reader, "neurons@0") as acts:
        reader(inputs.ids)
    for examples, positions, rows in parts:
        torch.testing.assert_close(rows, acts["neurons@0"][examples, positions])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_codes_do_not_depend_on_batches(reader, batch):
    inputs, dictionary = inputs_of(reader, contexts=5, length=12), signed("neurons@0", 24)
    parts = list(codes_of(reader, dictionary, inputs, batch=batch))
    (whole,) = codes_of(reader, dictionary, inputs, batch=99)
    assert torch.equal(torch.cat([part.codes.latents for part in parts]), whole.codes.latents)
    assert torch.equal(torch.cat([part.examples for part in parts]), whole.examples)


def test_a_perfect_reconstruction_changes_nothing(reader):
    network = curve_network()
    width = network.map_shape(network.site())[0]
    for model, site, units in ((reader, "neurons@0", 24), (network, network.site(), width)):
        inputs = inputs_of(model, contexts=3, n_images=3, length=12)
        batch = next(inputs.batches(model))
        with vs.intervene(model, spliced(signed(site, units), counts=batch.counts)):
            changed = model.logits(batch.inputs)
        torch.testing.assert_close(changed, model.logits(batch.inputs), atol=1e-4, rtol=1e-4)


def test_what_does_not_count_stays_as_it_is(reader):
    batch = next(inputs_of(reader, contexts=2, length=8).batches(reader))
    nothing = spliced(signed("neurons@0", 24), change=torch.zeros_like, counts=batch.counts)
    with vs.record(reader, "neurons@0") as before:
        reader(batch.inputs)
    with vs.intervene(reader, nothing), vs.record(reader, "neurons@0") as after:
        reader(batch.inputs)
    assert torch.equal(after["neurons@0"][:, 0], before["neurons@0"][:, 0])
    assert torch.equal(after["neurons@0"][:, 1:], torch.zeros_like(after["neurons@0"][:, 1:]))


def test_one_latent_moves_along_its_direction_and_the_rest_stays(reader):
    batch = next(inputs_of(reader, contexts=2, length=8).batches(reader))
    with vs.record(reader, "neurons@0") as before:
        reader(batch.inputs)
    edits = moved(signed("neurons@0", 24), 3, lambda codes: codes + 2, counts=batch.counts)
    with vs.intervene(reader, edits), vs.record(reader, "neurons@0") as after:
        reader(batch.inputs)
    difference = after["neurons@0"] - before["neurons@0"]
    wanted = torch.zeros(24)
    wanted[3] = 2
    torch.testing.assert_close(difference[:, 1:], wanted.expand(2, difference.shape[1] - 1, 24))
    assert not difference[:, 0].any()


def test_a_transcoder_reads_one_site_and_replaces_another(reader):
    """The MLP's own input matrix and rectifier, written where the neurons are."""
    width, d_mlp = reader.d_model, reader.d_mlp
    none = torch.zeros
    dictionary = SparseDictionary(
        "neurons@0", reader.weight("W_in", 0), reader.weight("b_in", 0), torch.eye(d_mlp), none(d_mlp), none(d_mlp),
        source="blocks.0.mlp.up:in",
    )  # fmt: skip
    batch = next(inputs_of(reader, contexts=2, length=8).batches(reader))
    with (
        vs.record(reader, ["blocks.0.mlp.up", "neurons@0"]) as acts,
        vs.intervene(reader, spliced(dictionary)),
    ):
        reader(batch.inputs)
    torch.testing.assert_close(acts["neurons@0"], acts["blocks.0.mlp.up"].relu(), atol=1e-5, rtol=1e-5)
    assert dictionary.width_in == width


def test_ports_with_heads_are_refused(reader):
    with pytest.raises(vs.VesaliusError, match="for each head"):
        next(activations_of(reader, "z@0", inputs_of(reader, contexts=1)))


def test_no_contexts_are_refused(reader):
    with pytest.raises(vs.VesaliusError, match="at least 1"):
        inputs_of(reader, contexts=0)
