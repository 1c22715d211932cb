"""Real networks of different builds hold some of the same features, and their random twins do not.

A VGG-16 that finds edges, a thin ResNet-50 and an EfficientNet, each trained by others for a task of its own. The
photographs are those of a checkout that has them, or the ones scikit-image brings.
"""

import pytest
from packaged_networks import network, photographs

import vesalius as vs
from vesalius.data.images import Images, open_images

pytestmark = pytest.mark.real

CURVES = {152: 88, 171: 136, 84: 177, 126: 220, 56: 309, 196: 342}
"""Curve detectors of the VGG's conv3_3 and the side they bulge to, by `find_curve_detectors`."""


@pytest.fixture(scope="module")
def thin() -> vs.Model:
    return network("open-nsfw")


@pytest.fixture(scope="module")
def photos() -> Images:
    found = photographs()
    try:
        return open_images(found or "skimage")
    except vs.VesaliusError as error:
        pytest.skip(str(error))


def test_layers_are_alike_in_the_order_of_depth(thin, photos):
    """Kornblith et al. 2019 (arXiv 1905.00414) find so of networks trained from different starts."""
    found = vs.similarity(
        network("efficientnet-lite0"),
        other=thin,
        sites=["block1.depthwise", "block3.depthwise", "block5.depthwise", "block10.depthwise"],
        other_sites=["conv1", "stage1.unit3.sum", "stage2.unit4.sum", "stage3.unit6.sum"],
        images=photos,
        n_images=48,
        twins=2,
    )
    alignment, *_, depth = found.headlines()
    assert alignment.evidence and alignment.value > 0.7 > alignment.control
    assert depth.value > 0.7
    partners = found.values[0].argmax(1).tolist()
    assert partners == sorted(partners)


def test_curve_detectors_have_their_like_in_a_residual_network(thin, photos):
    """More so than in its random twins, over photographs; whether each has one of its own is another question."""
    found = vs.analogous_features(
        network("vgg16-hed"),
        other=thin,
        site="conv3_3",
        units=list(CURVES),
        other_sites=["stage2.unit2.conv2", "stage2.unit3.conv2", "stage2.unit4.conv2"],
        images=photos,
        n_images=32,
        pairs=0,
        steps=0,
    )
    matched = found.headlines()[1]
    assert matched.evidence and matched.value > 0.3 > matched.control
    assert found.checked_behind.nanmean() < 0.4  # by stimuli, which had no part in the choice
