"""PCA, ICA and NMF find what was planted and agree with scikit-learn."""

import pytest
import torch

import vesalius as vs
from vesalius.dictionaries import Dictionary, TensorRows
from vesalius.dictionaries.components import Components, Parts
from vesalius.dictionaries.ica import fit_ica
from vesalius.dictionaries.nmf import fit_nmf
from vesalius.dictionaries.pca import fit_pca
from vesalius.errors import VesaliusError
from vesalius.formats.dictionaries import read_dictionary


def rows_of(tensor: torch.Tensor) -> TensorRows:
    return TensorRows(("neurons@0",), (tensor,))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_principal_components_are_those_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    acts = drawn(500, 8) @ drawn(8, 8, seed=1) + 100
    ours, theirs = fit_pca(rows_of(acts), components=4), decomposition.PCA(4).fit(acts.double().numpy())
    expected = torch.from_numpy(theirs.components_).float()
    torch.testing.assert_close((ours.write * expected).sum(1).abs(), torch.ones(4), atol=1e-4, rtol=0)
    shares = torch.tensor(ours.about["explained"], dtype=torch.float64)
    torch.testing.assert_close(
        shares, torch.from_numpy(theirs.explained_variance_ratio_), atol=1e-4, rtol=1e-3
    )
    everything = fit_pca(rows_of(acts))
    torch.testing.assert_close(everything.decode(everything.encode(acts)), acts, atol=1e-3, rtol=0)


def test_independent_components_are_the_sources():
    sources = drawn(4000, 4).pow(6) - 1 / 7
    mixed = sources @ (drawn(4, 8, seed=1) - 0.5) + 3
    found = fit_ica(rows_of(mixed), components=4)
    codes = found.encode(mixed)
    agreement = torch.corrcoef(torch.cat([codes, sources], 1).T)[:4, 4:]
    assert (agreement.max(1).values > 0.98).all() and agreement.argmax(1).unique().numel() == 4
    assert found.about["steps"] is not None
    torch.testing.assert_close(found.decode(codes), mixed, atol=1e-3, rtol=0)
    torch.testing.assert_close(codes.std(0), torch.ones(4), atol=1e-3, rtol=0)
    assert torch.equal(fit_ica(rows_of(mixed), components=4).read, found.read)


def test_parts_are_those_that_were_added_up():
    planted = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 2, 0, 0], [0, 0, 0, 0, 3, 1]])
    weights = drawn(600, 3) * (drawn(600, 3, seed=1) < 0.5)
    acts = weights @ planted
    found = fit_nmf(rows_of(acts), components=3)
    unit = torch.nn.functional.normalize(planted, dim=1)
    assert ((found.write @ unit.T).max(1).values > 0.999).all()
    assert found.about["explained"] > 0.999
    torch.testing.assert_close(found.decode(found.encode(acts)), acts, atol=1e-3, rtol=0)


def test_non_negative_codes_are_the_best_there_are():
    optimise = pytest.importorskip("scipy.optimize")
    parts, acts = drawn(5, 7), drawn(20, 7, seed=3)
    codes = Parts("neurons@0", parts).encode(acts)
    best = torch.stack([torch.from_numpy(optimise.nnls(parts.T.numpy(), row.numpy())[0]) for row in acts])
    torch.testing.assert_close(codes, best.float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("fit", [fit_pca, fit_ica, fit_nmf])
def test_each_is_a_dictionary_that_is_saved_and_named(fit, tmp_path):
    acts = drawn(300, 6)
    found = fit(rows_of(acts), components=3)
    assert isinstance(found, Dictionary) and len(found) == found.latents == 3
    codes = found.encode(acts)
    for index in range(3):
        torch.testing.assert_close(found[index].value(acts), codes[:, index], atol=1e-5, rtol=1e-5)
    again = read_dictionary(found.save(tmp_path / "one"))
    assert type(again) is type(found) and again.hash == found.hash and again.about == found.about
    with pytest.raises(VesaliusError, match="0 to 2"):
        found[3]
    with pytest.raises(VesaliusError, match="of 5 units were given to a dictionary of 6"):
        found.encode(acts[:, :5])
    assert isinstance(found, Components | Parts) and isinstance(found[0], vs.Feature)


def test_what_cannot_be_factored_says_why():
    with pytest.raises(VesaliusError, match="are below 0"):
        fit_nmf(rows_of(drawn(30, 4) - 0.5), components=2)
    for fit in (fit_pca, fit_ica, fit_nmf):
        with pytest.raises(VesaliusError, match="NaN or infinite"):
            fit(rows_of(drawn(30, 4).masked_fill(drawn(30, 4) > 0.9, torch.nan)), components=2)
    with pytest.raises(VesaliusError, match="has 4 units"):
        fit_pca(rows_of(drawn(30, 4)), components=5)
