"""A unit with two unlike causes is found, one with a single cause is not, and chance alone is no evidence."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.errors import VesaliusError
from vesalius.methods.features.polysemantic_neurons import (
    _contributions,
    _distance,
    _grouped,
    _neighbour,
    _separation,
    _silhouette,
    polysemantic_neurons,
)
from vesalius.testbed.curve_network import POLYSEMANTIC, curve_network


@pytest.fixture(scope="module")
def network():
    return curve_network(polysemantic=True)


def test_the_planted_unit_is_found_and_a_curve_is_not(network):
    planted = network.module.units["curves"].index(POLYSEMANTIC)
    red = [str(unit) for unit in network.module.units["small_curves"]].index("red")
    double = polysemantic_neurons(network, f"curves[{planted}]")
    assert double.headlines()[0].evidence is True
    assert {red == group["channels"][0] for group in double.groups} == {True, False}
    assert double.distance > 0.7 and sum(len(group["names"]) for group in double.groups) == 24

    single = polysemantic_neurons(network, "curves[3]")
    assert single.headlines()[0].evidence is False
    assert single.distance < 0.3
    assert double.spread["below"][0] < single.spread["below"][0], "red is one channel, a curve many"


def test_chance_alone_is_no_evidence(network):
    for seed in range(3):
        result = polysemantic_neurons(network.random_twin(300 + seed), "curves[5]", n_images=96)
        assert result.headlines()[0].evidence is False


def test_contributions_are_exact_between_neighbours(network):
    """Through one convolution: weight × activation, summed over the kernel, in the top position."""
    from vesalius.access import record
    from vesalius.data.images import open_images
    from vesalius.dictionaries import neurons
    from vesalius.examples import by_unit
    from vesalius.store.reducers import TopExamples

    pictures = open_images(torch.rand(6, 3, 60, 60, generator=torch.Generator().manual_seed(0)))
    pixels = torch.stack([pictures[number] for number in range(6)])
    with torch.no_grad(), record(network, ["small_curves", "curves_pre_relu"]) as acts:
        network(pixels)
    features = [neurons("curves_pre_relu")[unit] for unit in (3, 24)]
    top = TopExamples(2, 4)
    top.add(by_unit(acts["curves_pre_relu"])[:, [3, 24]], torch.arange(6))
    ours = _contributions(network, features, "small_curves", pictures, top)

    convolution = network.module.get_submodule("curves_pre_relu")
    patches = F.unfold(acts["small_curves"], convolution.kernel_size, padding=convolution.padding)
    for row, unit in enumerate((3, 24)):
        for column in range(4):
            patch = patches[top.examples[row, column], :, top.positions[row, column]]
            parts = (patch * convolution.weight[unit].flatten()).view(convolution.in_channels, -1).sum(1)
            assert torch.allclose(parts.clamp(min=0), ours[row, column], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_planted_groups_are_recovered(seed, count):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(24) % count
    points = F.one_hot(truth, 6).float() + 0.15 * torch.rand(24, 6, generator=generator)
    found = _grouped(points, seed=0)
    assert len(found.unique()) == count
    assert all(len(found[truth == one].unique()) == 1 for one in range(count))
    assert _separation(points, found) > 0.6 and _distance(points, found) > 0.5


def test_silhouettes_are_their_definition():
    points = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    members = torch.arange(20) % 3
    distances = 1 - F.cosine_similarity(points[:, None], points[None], dim=-1)
    each = []
    for row in range(20):
        others = [distances[row][(members == one) & (torch.arange(20) != row)].mean() for one in range(3)]
        own = others.pop(int(members[row]))
        each.append((min(others) - own) / max(min(others), own))
    assert _silhouette(points, members) == pytest.approx(torch.stack(each).mean().item(), abs=1e-5)
    assert _silhouette(points, torch.zeros(20, dtype=torch.long)) == 0.0


def test_neighbours_are_the_architectures(network):
    assert _neighbour(network, "curves", -1) == "small_curves"
    assert _neighbour(network, "curves", +1) == "shapes"
    assert _neighbour(network, "shapes", +1) == ""
    assert _neighbour(network, "maps@3", -1) == "maps@2"
    with pytest.raises(VesaliusError, match="below 'edges'"):
        polysemantic_neurons(network, "edges[0]")
