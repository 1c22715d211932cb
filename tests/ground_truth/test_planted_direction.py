"""G13, a planted direction: readers find it, operators do to it what they say, steering by it is exact.

Truth: pairs of activations ±u apart beside a nuisance direction, and a linear classifier written by hand.
"""

from importlib.resources import files

import pytest
import torch
import torch.nn.functional as F

import vesalius as vs
from vesalius.concepts.concept_vectors import concept_activations, concept_vector, warning
from vesalius.concepts.dose_response import effects
from vesalius.concepts.prompts import answers_of
from vesalius.concepts.readers import (
    agreement,
    difference_of_means,
    held_out_margins,
    read_directions,
    right_share,
)
from vesalius.concepts.steered import (
    ablation_edits,
    clamp,
    orthogonalised,
    piecewise,
    projection,
    steering_edits,
)
from vesalius.methods.directions.reading_vectors import reading_vectors
from vesalius.methods.directions.steering import steering
from vesalius.testbed.planted_direction import planted_direction, planted_pairs, planted_texts

SEEDS = range(10)
DEFAULT_READERS = ("difference_of_means", "pca", "logistic", "cluster_means", "mass_mean")


def cosines(reader: str, nuisance: float) -> list[float]:
    found = []
    for seed in SEEDS:
        planted = planted_pairs(nuisance=nuisance, seed=seed)
        direction = read_directions(planted.positive, planted.negative, reader=reader, seed=seed)[0]
        found.append(float(direction @ planted.direction))
    return found


@pytest.mark.parametrize("reader", DEFAULT_READERS)
def test_every_reader_finds_the_direction_and_its_sign(reader):
    assert min(cosines(reader, 0.5)) >= 0.95


def test_the_difference_of_means_survives_a_nuisance_larger_than_the_concept():
    assert min(cosines("difference_of_means", 2.0)) >= 0.95


def test_pca_does_not_and_is_flagged():
    assert max(map(abs, cosines("pca", 2.0))) < 0.5
    for seed in SEEDS:
        planted = planted_pairs(nuisance=2.0, seed=seed)
        assert "WARNING" in warning(compared(planted, "pca", seed), [0])


def test_pca_centred_on_differences_in_fixed_order_is_flagged_always():
    assert max(map(abs, cosines("pca_fixed_order", 0.5))) < 0.2
    for seed in SEEDS:
        planted = planted_pairs(nuisance=0.5, seed=seed)
        assert "WARNING" in warning(compared(planted, "pca_fixed_order", seed), [0])
        assert not warning(compared(planted, "pca", seed), [0])


def compared(planted, reader: str, seed: int):
    found = read_directions(planted.positive, planted.negative, reader=reader, seed=seed)
    return agreement(found, difference_of_means(planted.positive, planted.negative).float())


def test_held_out_accuracy_is_that_of_the_truth_and_shuffled_labels_are_a_guess():
    planted = planted_pairs(seed=3)
    groups = [str(number // 2) for number in range(200)]
    right = right_share(
        held_out_margins(planted.positive, planted.negative, groups, reader="difference_of_means")
    )
    assert right.mean() > 0.99
    flip = torch.arange(200) % 4 < 2
    turned = torch.where(flip[:, None, None], planted.negative, planted.positive)
    other = torch.where(flip[:, None, None], planted.positive, planted.negative)
    guess = right_share(held_out_margins(turned, other, groups, reader="difference_of_means")).mean()
    assert 0.35 < guess < 0.65


# ------------------------------------------------------------------------------------------------------- operators


def test_projection_leaves_nothing_along_the_direction():
    generator = torch.Generator().manual_seed(0)
    h, v = 100 * torch.randn(64, 7, 32, generator=generator), torch.randn(32, generator=generator)
    left = projection(v)(h)
    assert (left @ F.normalize(v, dim=0)).abs().max() < 1e-4  # 32-bit numbers of size 100
    torch.testing.assert_close(projection(v)(left), left, atol=1e-5, rtol=1e-5)
    small = torch.randn(64, 32, generator=generator)
    assert (projection(v)(small) @ v).abs().max() < 1e-5


@pytest.mark.parametrize("strength", [0.5, 3.0, -0.1, -50.0])
def test_piecewise_never_turns_the_sign_round(strength):
    generator = torch.Generator().manual_seed(1)
    h, v = torch.randn(500, 16, generator=generator), torch.randn(16, generator=generator)
    before, after = h @ v, piecewise(v, strength)(h) @ v
    assert not ((before > 1e-4) & (after < -1e-4) | (before < -1e-4) & (after > 1e-4)).any()
    assert ((after.abs() > before.abs()) if strength > 0 else (after.abs() <= before.abs() + 1e-5)).all()


def test_clamp_sets_the_component():
    h, v = torch.randn(9, 8, generator=torch.Generator().manual_seed(2)), torch.eye(8)[3] * 2
    set_to = clamp(v, 1.5)(h)
    torch.testing.assert_close(set_to[:, 3], torch.full((9,), 3.0))
    torch.testing.assert_close(set_to[:, :3], h[:, :3])


# --------------------------------------------------------------------------------------------------- the classifier


@pytest.mark.parametrize("strength", [-2.0, 0.25, 1.0, 7.0])
def test_steering_a_linear_classifier_moves_its_logit_by_strength_times_length_squared(strength):
    model = planted_direction()
    v = model.weight("W_U")[:, model.token("yes")]
    vector = vs.dictionaries.control_vector.ControlVector({0: v})
    ids = model.tokens("the film was good3")
    plain = model.logits(ids)
    with vs.intervene(model, steering_edits(model, vector, strength=strength)):
        moved = model.logits(ids) - plain
    torch.testing.assert_close(
        moved[..., model.token("yes")], torch.full((1, 5), strength * float(v @ v)), atol=1e-5, rtol=1e-5
    )
    assert moved[..., model.token("no")].abs().max() < 1e-6


def test_a_random_direction_of_equal_norm_does_less_than_a_tenth():
    model = planted_direction(d_model=512)
    v = model.weight("W_U")[:, model.token("yes")]
    vector = vs.dictionaries.control_vector.ControlVector({0: v})
    answers = answers_of(model, planted_texts().questions)
    ours = effects(model, lambda s: steering_edits(model, vector, strength=s), [1.0], answers).mean()
    drawn = [
        effects(
            model, lambda s, n=n: steering_edits(model, vector.random_like(n), strength=s), [1.0], answers
        ).mean()
        for n in range(10)
    ]
    assert float(torch.stack(drawn).abs().mean()) < 0.1 * float(ours)


def test_the_direction_is_found_in_the_network_and_steers_it(tmp_path):
    model, path = planted_direction(), planted_texts().save(tmp_path / "planted.jsonl")
    v = model.weight("W_U")[:, model.token("yes")]
    read = reading_vectors(model, pairs=path)
    assert F.cosine_similarity(read.directions[0], v, dim=0) > 0.95
    assert read.accuracy[0] == 1.0 and not read.warning
    steered = steering(
        model, pairs=path, prompts=[p for p, _, _ in planted_texts().questions[:4]], towards=" yes", away=" no",
        text="the film was good3 . the day is bad4 . " * 20, n_pairs=96, twins=1,
    )  # fmt: skip
    assert steered.headlines()[0].evidence
    length = concept_vector(model, concept_activations(model, planted_texts())).directions[0] @ v
    assert steered.slope[0] == pytest.approx(float(length), rel=1e-3)


def test_orthogonal_weights_compute_what_directional_ablation_computes():
    for model in (
        planted_direction(),
        vs.testbed.random_attn(norm=True, d_mlp=96, positions="residual", seed=3),
    ):
        direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
        ids = torch.randint(1, model.d_vocab, (3, 12), generator=torch.Generator().manual_seed(2))
        with vs.intervene(model, ablation_edits(model, direction)):
            ablated = model.logits(ids)
        torch.testing.assert_close(
            orthogonalised(model, direction).logits(ids), ablated, atol=1e-5, rtol=1e-5
        )
        assert (ablated - model.logits(ids)).abs().max() > 1e-3


# ------------------------------------------------------------------------------- where there is nothing to find (G17)


def untrained(seed: int) -> vs.Model:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    module = vs.testbed.random_attn(
        d_model=32, n_heads=4, d_vocab=tokenizer.get_vocab_size(), n_ctx=96, norm=True, d_mlp=64, seed=seed
    ).module
    return vs.Model(module, tokenizer=tokenizer, bos=0, name=f"untrained-{seed}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "reading_vectors",
        "steering",
        "activation_addition",
        "contrast_steering",
        "head_steering",
        "concept_ablation",
    ],
)
def test_random_networks_give_no_evidence(name):
    analysis = vs.methods()[name].function
    alarms = [
        seed
        for seed in range(20)
        if any(h.evidence for h in analysis(untrained(seed), seed=seed).headlines())
    ]
    assert len(alarms) <= 1, alarms
