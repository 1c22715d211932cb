"""Probes: the batched solvers find what textbook solvers find, and judge rows that they have not seen."""

import math

import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.probes import Labelled, lda, logistic, mass_mean, mlp, ridge, scored, sparse, splits
from vesalius.probes.moments import moments

ROWS, WIDTH, TARGETS, CLASSES, LAYERS = 3000, 24, 3, 3, 2
TRAIN = 2400


def planted(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers that hold the same things turned and moved, and labels that a noisy linear rule gives."""
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(ROWS, WIDTH, generator=generator)
    mixing = torch.eye(WIDTH) + torch.randn(LAYERS, WIDTH, WIDTH, generator=generator) / (2 * WIDTH**0.5)
    scores = torch.einsum("nd,dtc->ntc", plain, torch.randn(WIDTH, TARGETS, CLASSES, generator=generator))
    noisy = scores + 2 * torch.randn(scores.shape, generator=generator)
    return torch.stack([plain @ mix for mix in mixing]) * 3 + 5, noisy.argmax(-1)


def labelled(**options) -> Labelled:
    acts, labels = planted()
    return Labelled.of(acts[:, :TRAIN], labels[:TRAIN], **options)


def test_logistic_regression_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.linear_model")
    acts, labels = planted()
    given = labelled()
    penalty = 1e-3
    probes = logistic(given, penalty=penalty, tolerance=1e-9)
    for layer in range(LAYERS):
        variance = moments(given).variance[layer].item()
        theirs = sklearn.LogisticRegression(C=1 / (penalty * variance * TRAIN), max_iter=5000, tol=1e-7)
        theirs.fit(acts[layer, :TRAIN].double().numpy(), labels[:TRAIN, 1].numpy())
        weight = torch.tensor(theirs.coef_).T.float()
        assert (probes.weight[layer, 1] - weight).abs().max() < 0.01 * weight.abs().max()
        held = acts[layer, TRAIN:]
        own = probes.probabilities(acts[:, TRAIN:])[layer, :, 1]
        assert (own - torch.tensor(theirs.predict_proba(held.double().numpy())).float()).abs().max() < 0.01


def test_ridge_is_the_normal_equation_and_lda_is_scikit_learns():
    discriminant = pytest.importorskip("sklearn.discriminant_analysis")
    acts, labels = planted()
    x, y = acts[0, :TRAIN].double(), torch.nn.functional.one_hot(labels[:TRAIN, 2]).double()
    centred = x - x.mean(0)
    penalty = 1e-2 * centred.square().mean() * TRAIN
    weight = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(WIDTH), centred.T @ (y - y.mean(0)))
    assert torch.allclose(ridge(labelled(), penalty=1e-2).weight[0, 2], weight.float(), atol=1e-4)
    theirs = discriminant.LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), labels[:TRAIN, 2].numpy())
    own = lda(labelled(), penalty=0).probabilities(acts[:, TRAIN:])[0, :, 2]
    assert (own - torch.tensor(theirs.predict_proba(acts[0, TRAIN:].double().numpy()))).abs().max() < 0.01


def test_the_direction_of_mass_mean_is_the_difference_of_means():
    acts, labels = planted()
    probes = mass_mean(labelled())
    x, y = acts[1, :TRAIN], labels[:TRAIN, 0]
    wanted = x[y == 2].mean(0) - x[y == 0].mean(0)
    found = probes.direction(1, 0, of=2, less=0)
    assert torch.cosine_similarity(found, wanted, dim=0) > 0.9999


@pytest.mark.parametrize("solve", [ridge, lda, logistic, lambda given: mlp(given, steps=200)])
def test_every_solver_reads_what_is_there(solve):
    acts, labels = planted()
    scores = scored(solve(labelled()), acts[:, TRAIN:], labels[TRAIN:])
    assert (scores.overall > 0.7).all() and (scores.low <= scores.overall).all()
    assert (scores.overall <= scores.high).all() and scores.accuracy.shape == (LAYERS, TARGETS)


def test_logistic_probabilities_mean_what_they_say():
    acts, labels = planted()
    scores = scored(logistic(labelled()), acts[:, TRAIN:], labels[TRAIN:])
    assert (scores.calibration_error < 0.05).all()


def test_a_sparse_probe_reads_the_units_that_were_planted():
    acts = torch.randn(1, 600, 40, generator=torch.Generator().manual_seed(1))
    labels = torch.stack([acts[0, :, 3] + acts[0, :, 17] > 0, acts[0, :, 8] > 0], 1).long()
    probes = sparse(Labelled.of(acts, labels), units=2)
    used = [set(probes.weight[0, target].abs().sum(1).nonzero().flatten().tolist()) for target in (0, 1)]
    assert used[0] == {3, 17} and 8 in used[1] and len(used[1]) == 2
    assert scored(probes, acts, labels).overall > 0.95


def test_rows_without_a_label_do_not_count():
    acts, labels = planted()
    holes = labels.clone()
    holes[::3, 0] = -1
    given = Labelled.of(acts[:, :TRAIN], holes[:TRAIN])
    alone = Labelled.of(acts[:, :TRAIN][:, holes[:TRAIN, 0] >= 0], labels[:TRAIN][holes[:TRAIN, 0] >= 0])
    for solve in (mass_mean, lambda one: logistic(one, penalty=1e-2, tolerance=1e-9)):
        a, b = solve(given).predictions(acts)[..., 0], solve(alone).predictions(acts)[..., 0]
        assert (a == b).float().mean() > 0.995
    unlabelled = torch.full_like(labels[TRAIN:], -1)
    unlabelled[:5] = labels[TRAIN:][:5]
    few = scored(logistic(given), acts[:, TRAIN : TRAIN + 5], labels[TRAIN:][:5])
    assert torch.equal(scored(logistic(given), acts[:, TRAIN:], unlabelled).overall, few.overall)


def test_a_warm_start_and_pieces_change_nothing(monkeypatch):
    acts, _ = planted()
    whole = logistic(labelled(), penalty=1e-3, tolerance=1e-9)
    warm = logistic(labelled(), penalty=1e-3, tolerance=1e-9, start=logistic(labelled(), penalty=1.0))
    monkeypatch.setattr("vesalius.probes.labelled.PIECE", 333)
    pieces = logistic(labelled(), penalty=1e-3, tolerance=1e-9)
    for other in (warm, pieces):
        assert torch.allclose(whole.probabilities(acts), other.probabilities(acts), atol=2e-3)


def test_a_mean_that_is_far_from_zero_costs_nothing():
    acts, labels = planted()
    far = acts + 1000 * acts.std()
    near = scored(logistic(labelled()), acts[:, TRAIN:], labels[TRAIN:]).overall
    moved = logistic(Labelled.of(far[:, :TRAIN], labels[:TRAIN]))
    assert (scored(moved, far[:, TRAIN:], labels[TRAIN:]).overall - near).abs().max() < 0.005


def test_a_hidden_layer_reads_what_a_line_cannot():
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(1, 2000, 6, generator=generator)
    labels = (acts[0, :, 0] * acts[0, :, 1] > 0).long()
    given = Labelled.of(acts[:, :1600], labels[:1600])
    held = acts[:, 1600:], labels[1600:]
    assert scored(logistic(given), *held).overall < 0.6
    assert scored(mlp(given), *held).overall > 0.9


def test_perfect_separation_stays_finite():
    acts = torch.randn(1, 40, 100, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(40) % 2).long()
    for solve in (ridge, lda, logistic, mass_mean):
        assert solve(Labelled.of(acts, labels)).logits(acts).isfinite().all()


def test_a_class_that_never_occurs_is_never_said():
    acts, labels = planted()
    given = Labelled.of(acts[:, :TRAIN], labels[:TRAIN], classes=5)
    for solve in (ridge, mass_mean, lda, logistic):
        assert (solve(given).predictions(acts) < 3).all()


def test_no_group_is_in_two_parts():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        groups = torch.randint(0, 3 + seed, (200,), generator=generator)
        if len(groups.unique()) < 3:
            continue
        parts = splits(groups, seed=seed)
        sets = [set(groups[part].tolist()) for part in (parts.train, parts.validation, parts.test)]
        assert all(sets) and not (sets[0] & sets[1] or sets[1] & sets[2] or sets[0] & sets[2])
        assert sorted(torch.cat([parts.train, parts.validation, parts.test]).tolist()) == list(range(200))


def test_intervals_are_over_groups():
    acts = torch.zeros(1, 400, 2)
    acts[0, :, 0] = (torch.arange(400) // 100 % 2) * 2.0 - 1
    labels = (acts[0, :, 0] > 0).long()
    labels[300:] = 1 - labels[300:]  # one group of four is wrong throughout
    probes = mass_mean(Labelled.of(acts[:, :300], labels[:300]))
    over_groups = scored(probes, acts, labels, groups=torch.arange(400) // 100)
    over_rows = scored(probes, acts, labels)
    assert over_rows.high - over_rows.low < 0.1 < over_groups.high - over_groups.low
    assert math.isclose(over_groups.overall.item(), 0.75, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Labelled.of(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), "1 class"),
        (lambda: Labelled.of(torch.zeros(4, 3), torch.tensor([0, 1])), "2 labels"),
        (lambda: Labelled.of(torch.zeros(2, 3), torch.tensor([0, 4]), classes=3), "label 4"),
        (lambda: ridge(Labelled.of(torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]))), "NaN"),
        (lambda: logistic(labelled()).logits(torch.zeros(LAYERS, 1, 7)), "7 units"),
        (lambda: mlp(labelled(), steps=1).logits(torch.zeros(LAYERS, 1, 7)), "7 units"),
        (lambda: sparse(labelled(), units=99), "99 units"),
        (lambda: splits(["a", "a", "b"]), "2 groups"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(call, said):
    with pytest.raises(VesaliusError, match=said):
        call()
