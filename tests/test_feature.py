"""A feature is one direction at a site, of maps, tokens and vectors alike."""

import pytest
import torch
from torch import nn

import vesalius as vs
from vesalius.method import method
from vesalius.result import Headline, Result


@pytest.fixture(scope="module")
def model() -> vs.Model:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return vs.Model(
        nn.Sequential(*layers, nn.Linear(8, 4)), preprocessing=vs.Preprocessing((32, 24)), name="small"
    )


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 7, 5), (2, 5)])
def test_a_neuron_is_read_where_its_channel_is(shape):
    acts = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    neuron = vs.neurons("conv")[3]
    along = vs.direction("conv", neuron.vector(5))
    assert neuron.value(acts).shape == (2, *(shape[2:] if len(shape) == 4 else shape[1:-1]))
    assert torch.allclose(neuron.value(acts), along.value(acts))


def test_a_direction_of_another_width_is_refused(model):
    with pytest.raises(vs.VesaliusError, match="has 5 components; '2' has 8 units"):
        model.feature(vs.direction("2", torch.ones(5)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("2[8]", "expected 0 to 7"),
        ("nowhere[1]", "names no module"),
        ("2", "does not name one unit"),
        ("2[0:3]", "one unit"),
    ],
)
def test_a_unit_that_does_not_exist_is_named(model, name, words):
    with pytest.raises(vs.VesaliusError, match=words):
        model.feature(name)


def test_the_shape_of_a_site_is_that_of_its_maps(model):
    assert model.map_shape("2") == (8, 32, 24)
    assert model.map_shape("2", (10, 12)) == (8, 10, 12)
    assert model.map_shape("5") == (4,)


def test_without_preprocessing_it_is_said_what_to_give(model):
    with pytest.raises(vs.VesaliusError, match=r"give vs.Model\(module, preprocessing="):
        vs.Model(model.module).map_shape("2")


def test_pixels_go_through_the_preprocessing(model):
    pixels = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))
    prepared = vs.Preprocessing((32, 24), mean=(0.1, 0.2, 0.3), sd=(0.5, 0.6, 0.7), order="BGR")
    turned = vs.Model(model.module, preprocessing=prepared)
    by_hand = (pixels.flip(1) - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[
        :, None, None
    ]
    assert torch.allclose(turned(pixels), model.module(by_hand), atol=1e-6)
    assert torch.equal(model(pixels), model.module(pixels))


@pytest.mark.parametrize(
    "pixels", [torch.rand(1, 1, 8, 8), torch.rand(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_what_is_not_pixels_is_refused(model, pixels):
    with pytest.raises(vs.VesaliusError, match=r"expected \[batch, 3, height, width\] in 0..1"):
        model(pixels)


@pytest.mark.parametrize("shape", [(3, 50, 80), (1, 64, 20), (3, 32, 24)])
def test_every_picture_is_fitted(shape):
    fitted = vs.Preprocessing((32, 24)).fit(torch.rand(shape))
    assert fitted.shape == (3, 32, 24) and fitted.min() >= 0 and fitted.max() <= 1


def test_a_network_that_reads_one_size_says_so():
    with pytest.raises(vs.VesaliusError, match="reads 8×8 only"):
        vs.Preprocessing((8, 8), fixed=True).normalise(torch.rand(1, 3, 9, 8))


def test_the_random_twin_has_fitting_batch_norms(model):
    twin = model.random_twin(3)
    norm = twin.module[1]
    assert not norm.training and not torch.equal(norm.running_var, torch.ones(8))
    assert twin.hash == model.random_twin(3).hash != model.hash


def test_a_method_about_a_feature_takes_its_address(model):
    class Seen(Result):
        def headlines(self):
            return [Headline("seen", 1.0)]

    @method(needs=("images",))
    def seen(model, feature, *, times: int = 1) -> Seen:
        """What was asked about."""
        assert isinstance(feature, vs.Feature)
        return Seen()

    from vesalius.method import _registry

    try:
        assert seen(model, "2[3]").provenance["feature"] == "2[3]"
        assert seen(model, feature="2[3]", times=2).provenance["parameters"] == {"times": 2}
        assert _registry["seen"].subject == "feature" and list(_registry["seen"].parameters) == ["times"]
        with pytest.raises(vs.VesaliusError, match="expected one feature"):
            seen(model)
        with pytest.raises(vs.VesaliusError, match="expected 0 to 7"):
            seen(model, "2[9]")
        with pytest.raises(vs.VesaliusError, match="preprocessing="):
            seen(vs.Model(model.module), "2[3]")
    finally:
        del _registry["seen"]


def test_a_picture_s_file_is_an_input(model, tmp_path):
    from PIL import Image

    Image.new("RGB", (50, 40), (255, 0, 0)).save(tmp_path / "red.png")
    red = torch.zeros(1, 3, 32, 24)
    red[:, 0] = 1
    assert torch.allclose(model(tmp_path / "red.png"), model(red), atol=1e-5)
    assert torch.equal(model.pixels(tmp_path), model.pixels([tmp_path / "red.png"]))
