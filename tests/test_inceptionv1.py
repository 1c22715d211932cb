"""InceptionV1 as published, where its file is on this computer: the figures of the circuits thread (Olah et al. 2020,
Cammarata et al. 2020 and 2021, Voss et al. 2021).

The file is inception5h.zip or its tensorflow_inception_graph.pb, named by VESALIUS_INCEPTIONV1 or in the cache.
"""

import math
import os
from pathlib import Path

import pytest
import torch

import vesalius as vs
from vesalius.data.images import open_images
from vesalius.equations import check_equations
from vesalius.formats import published
from vesalius.formats.zoo import cache_folder
from vesalius.weights.expanded import expanded_weights

pytestmark = pytest.mark.inceptionv1

CURVES = (379, 406, 385, 343, 342, 388, 324, 340, 330, 349)
"""The ten curve neurons of mixed3b."""
EARLY_CURVES = (81, 104, 92, 145, 95, 163, 171, 71, 147, 189, 137)
"""The early curves of mixed3a."""
PHOTOS = "shared/data/images/imagenet1000_256px.tar"


@pytest.fixture(scope="module")
def inception() -> vs.Model:
    named = os.environ.get("VESALIUS_INCEPTIONV1")
    file = published.NETWORKS["inceptionv1"].source.file
    if not named and not (cache_folder() / "networks" / file).is_file():
        pytest.skip(f"the published weights are not here: set VESALIUS_INCEPTIONV1 to your {file}")
    return vs.load("inceptionv1", weights=named) if named else vs.load("inceptionv1")


def branch_probability(drawn: int, *, branch: int, channels: int) -> float:
    """The chance that `drawn` units, drawn from a layer without putting back, all lie in one given branch."""
    return math.comb(branch, drawn) / math.comb(channels, drawn)


def branches(model: vs.Model, layer: str) -> dict[str, range]:
    """The channels of each branch of a mixed layer."""
    found, start = {}, 0
    for part in model.module.get_submodule(f"{layer}_pre_relu").parts:
        width = model.map_shape(part)[0]
        found[part.removeprefix(f"{layer}_").removesuffix("_pre_relu")] = range(start, start + width)
        start += width
    return found


def test_the_equations_hold(inception):
    assert max(check_equations(inception).values()) < 1e-5
    assert inception.n_parameters == 7_066_380


def test_curves_lie_in_one_branch(inception):
    five = branches(inception, "mixed3b")["5x5"]
    assert five == range(320, 416) and set(CURVES) <= set(five)
    assert branch_probability(30, branch=len(five), channels=480) < 1e-20
    five = branches(inception, "mixed3a")["5x5"]
    assert branch_probability(9, branch=len(five), channels=256) < 1e-8


def test_curves_are_built_from_early_curves(inception):
    weights = expanded_weights(inception, "mixed3a", "mixed3b", channels=list(CURVES))
    norms = weights.flatten(2).norm(dim=-1)
    early = norms[:, list(EARLY_CURVES)].mean()
    assert early > 3 * norms.mean()


def test_the_car_is_assembled_from_windows_and_wheels(inception):
    (weights,) = expanded_weights(inception, "mixed4b", "mixed4c", channels=[447])

    def top_minus_bottom(unit: int) -> float:
        rows = weights[unit].sum(-1)
        half = len(rows) // 2
        return float(rows[:half].sum() - rows[-half:].sum())

    windows, wheels = 237, 373
    assert top_minus_bottom(windows) > 0 > top_minus_bottom(wheels)
    assert weights[[windows, 491, wheels]].amax() == weights[[windows, 491, wheels]].abs().amax()


def test_the_spectrum_of_a_curve(inception):
    found = [parent / PHOTOS for parent in Path(__file__).parents if (parent / PHOTOS).is_file()]
    if not found:
        pytest.skip(f"there is no {PHOTOS} beside this checkout")
    values = []
    for _, pixels in open_images(found[0]).take(200).batches(inception.preprocessing, batch=20):
        with torch.no_grad(), vs.record(inception, "mixed3b_pre_relu[379]", stop=True) as acts:
            inception(pixels)
        values.append(acts["mixed3b_pre_relu[379]"].flatten())
    spectrum = torch.cat(values)
    assert 0.06 < (spectrum > 0).float().mean() < 0.16  # 11 %
    assert -320 < spectrum.mean() < -100  # about -200
