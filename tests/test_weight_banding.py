"""Horizontal bands in last layers: planted, turned, and absent."""

import pytest
import torch
from torch import nn

import vesalius as vs
from vesalius.architectures import Architecture, Shape
from vesalius.errors import Inapplicable
from vesalius.preprocessing import Preprocessing


def banded(*, vertical: bool = False, strength: float = 1.0, pooled: bool = True, side: int = 3) -> vs.Model:
    """Units of the last layer that prefer rows (or columns) by sharing a sign over each."""
    draw = torch.Generator().manual_seed(0)
    module = nn.Sequential()
    module.add_module("early", nn.Conv2d(3, 20, 3, padding=1))
    module.add_module("last", nn.Conv2d(20, 32, side))
    if pooled:
        module.add_module("mean", nn.AdaptiveAvgPool2d(1))
    module.add_module("flat", nn.Flatten())
    weight = torch.randn(32, 20, side, side, generator=draw)
    bands = torch.randn(32, 20, side, 1, generator=draw)
    weight += 3 * strength * (bands.mT if vertical else bands)
    module.last.weight.data = weight
    shape = Shape(2, 0, 0, 0, 0, 0, 0, 0)
    architecture = Architecture(
        "planted", ("Banded",), {"maps": "{}"}, {}, lambda _: shape, layers=("early", "last"), inputs="image"
    )
    pixels = Preprocessing((9, 9), (0.5,) * 3, (0.25,) * 3)
    return vs.Model(module, preprocessing=pixels, architecture=architecture, name="planted bands")


def test_bands_are_found_where_they_were_planted():
    found = vs.weight_banding(banded())
    assert found.site == "last" and found.headlines()[0].evidence and found.pooled
    assert found.rows.mean() > 0.8 > 0.2 > found.columns.mean()


def test_vertical_bands_are_not_horizontal_ones():
    found = vs.weight_banding(banded(vertical=True, pooled=False))
    assert not found.headlines()[0].evidence and not found.pooled
    assert found.columns.mean() > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_a_random_network_has_none(seed):
    assert not vs.weight_banding(banded().random_twin(20 + seed)).headlines()[0].evidence


def test_a_last_layer_of_one_position_is_passed_over_or_refused():
    assert vs.weight_banding(banded(side=1)).site == "early"
    with pytest.raises(Inapplicable, match="no rows"):
        vs.weight_banding(banded(side=1), site="last")
