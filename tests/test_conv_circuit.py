"""A circuit of features, on a car planted by hand and on the network of curves."""

import pytest
import torch
from torch import nn

import vesalius as vs
from vesalius.architectures import Architecture, Shape
from vesalius.errors import VesaliusError
from vesalius.preprocessing import Preprocessing
from vesalius.testbed import curve_network


@pytest.fixture(scope="module")
def car() -> vs.Model:
    """Parts 0, 1, 2 are windows, body and wheels to unit 5 of `cars`, over a bottleneck; the rest is noise."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(*shape, generator=draw)

    module = nn.Sequential()
    module.add_module("parts", nn.Conv2d(3, 24, 5, padding=2))
    module.add_module("narrow", nn.Conv2d(24, 12, 1))
    module.add_module("cars", nn.Sequential(nn.ReLU(), nn.Conv2d(12, 40, 5, padding=2)))
    module.narrow.weight.data, module.cars[1].weight.data = noise(12, 24, 1, 1), noise(40, 12, 5, 5)
    module.narrow.weight.data[:3, :3, 0, 0] = torch.eye(3)
    rows = torch.tensor([[1.0, 0.8, 0, -0.6, -0.8], [0.4, 0.6, 0.8, 1, 1], [-0.8, -0.6, 0, 0.8, 1.0]])
    module.cars[1].weight.data[5, :3] += rows[:, :, None]
    shape = Shape(2, 0, 0, 0, 0, 0, 0, 0)
    architecture = Architecture(
        "planted-car", ("Car",), {"maps": "{}"}, {}, lambda _: shape, layers=("parts", "cars"), inputs="image"
    )
    pixels = Preprocessing((32, 32), (0.5,) * 3, (0.25,) * 3)
    return vs.Model(module, preprocessing=pixels, architecture=architecture, name="planted car")


def test_windows_excite_above_and_wheels_below(car):
    found = vs.conv_circuit(car, "cars[5]", others=["parts[0]", "parts[1]", "parts[2]"], steps=0)
    windows, body, wheels = found.edges
    assert windows["upper"] > 0 > windows["lower"] and windows["difference"] > 0.9
    assert wheels["lower"] > 0 > wheels["upper"] and wheels["difference"] < -0.9
    assert 0 < body["upper"] < body["lower"]
    assert [headline.evidence for headline in found.headlines()] == [True, True]
    readings = [row[-1] for row in found.figure().to_json()["data"]["figures"][1]["data"]["rows"]]
    assert readings == ["excites above, inhibits below", "excites", "inhibits above, excites below"]


def test_the_search_finds_the_parts(car):
    found = vs.conv_circuit(car, "cars[5]", width=3, steps=0)
    assert {node["name"] for node in found.nodes[:3]} == {"parts[0]", "parts[1]", "parts[2]"}
    assert found.headlines()[0].evidence


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_noise_has_no_circuit(car, seed):
    for others in (None, ["parts[0]", "parts[1]", "parts[2]"]):
        found = vs.conv_circuit(car.random_twin(90 + seed), "cars[5]", others=others, steps=0)
        assert not any(headline.evidence for headline in found.headlines())


def test_columns_are_layers_and_edges_go_from_each_to_the_next():
    found = vs.conv_circuit(curve_network(), "curves[5]", depth=2, width=2, steps=0)
    assert [node["site"] for node in found.nodes] == ["lines"] * 3 + ["small_curves"] * 3 + ["curves"]
    assert len(found.edges) == 9 + 3
    units = curve_network().module.units["small_curves"]
    assert str(units[int(found.nodes[3]["name"].split("[")[1][:-1])]) == "small curve 75°"


def test_every_node_has_its_picture():
    found = vs.conv_circuit(curve_network(), "curves[5]", width=1, steps=2)
    assert len(found.pictures) == len(found.nodes) == 3
    assert all(node["picture"] for node in found.figure().to_json()["data"]["figures"][0]["data"]["nodes"])


def test_a_feature_that_is_not_earlier_is_refused(car):
    with pytest.raises(VesaliusError, match="not earlier"):
        vs.conv_circuit(car, "parts[0]", others=["cars[5]"], steps=0)
