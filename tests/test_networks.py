"""The definitions of published networks: sizes, names, equations, and TensorFlow's padding and norms by hand."""

import pytest
import torch
from networks_tiny import NETWORKS
from torch import nn

from vesalius.access import record
from vesalius.architectures import architecture_of
from vesalius.convolution_equations import convolution_errors
from vesalius.errors import VesaliusError
from vesalius.formats import published
from vesalius.model import Model
from vesalius.networks.convolution import LocalResponseNorm, SameConv2d, SameMaxPool2d, same_padding
from vesalius.networks.mobilenet_v2 import MobileNetV2
from vesalius.preprocessing import Preprocessing

SMALL = [name for name in NETWORKS if name not in ("vgg16", "vgg19", "alexnet", "alexnet-one-tower")]
LAYERS = {  # channels and side of some maps, as the papers have them
    "inceptionv1": {
        "conv2d0": (64, 112), "conv2d1": (64, 56), "conv2d2": (192, 56), "mixed3a": (256, 28), "mixed3b": (480, 28),
        "mixed4a": (508, 14), "mixed4b": (512, 14), "mixed4c": (512, 14), "mixed4d": (528, 14), "mixed4e": (832, 14),
        "mixed5a": (832, 7), "mixed5b": (1024, 7),
    },
    "inceptionv3": {
        "conv2d_1": (32, 149), "conv2d_3": (64, 147), "conv2d_5": (192, 71), "mixed0": (256, 35), "mixed2": (288, 35),
        "mixed3": (768, 17), "mixed7": (768, 17), "mixed8": (1280, 8), "mixed10": (2048, 8),
    },
    "alexnet": {"conv1": (96, 55), "conv2": (256, 27), "conv3": (384, 13), "conv5": (256, 13)},
    "alexnet-one-tower": {"conv1": (64, 55), "conv2": (192, 27), "conv3": (384, 13), "conv5": (256, 13)},
    "vgg16": {"conv1_2": (64, 224), "conv3_3": (256, 56), "conv5_3": (512, 14)},
    "vgg19": {"conv3_4": (256, 56), "conv5_4": (512, 14)},
    "vgg16-hed": {"conv3_3": (256, 56), "conv5_3": (512, 14)},
    "resnetv2-50": {
        "block1.unit1.preact": (64, 56), "block1.unit3.conv2": (64, 28), "block2.unit1.conv2": (128, 28),
        "block3.unit6.conv1": (256, 14), "block4.unit3.conv2": (512, 7), "postnorm": (2048, 7),
    },
    "mobilenetv2": {"stem": (32, 112), "block1.expand": (96, 112), "block6.depthwise": (192, 14), "head": (1280, 7)},
    "efficientnet-lite0": {"stem": (32, 112), "block6.depthwise": (480, 14), "block15.expand": (1152, 7)},
    "efficientnet-lite1": {"stem": (32, 120), "head": (1280, 8)},
    "efficientnet-lite2": {"stem": (32, 130), "head": (1280, 9)},
    "open-nsfw": {"conv1": (64, 112), "stage2.unit3.conv2": (64, 28), "stage4.unit3.sum": (1024, 7)},
}  # fmt: skip


def untrained(name: str, seed: int = 0) -> Model:
    """Random weights, and batch norms that do something."""
    build, size, _ = NETWORKS[name]
    module = build()
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator).mul_(0.1)
            part.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, std=0.1, generator=generator)
    fixed = name in published.NETWORKS and published.NETWORKS[name].preprocessing.fixed
    return Model(module, preprocessing=Preprocessing(size=(size, size), fixed=fixed), name=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_has_as_many_parameters_as_the_published_network(name):
    build, _, parameters = NETWORKS[name]
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build().parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_its_maps_have_the_published_sizes(name):
    build, size, _ = NETWORKS[name]
    with torch.device("cpu" if name == "inceptionv1" else "meta"):  # its response norms read their numbers
        module = build().eval()
        with (
            torch.no_grad(),
            record(module, [*LAYERS[name], *(f"{layer}_pre_relu" for layer in LAYERS[name])]) as acts,
        ):
            module(torch.zeros(1, 3, size, size))
    for layer, (channels, side) in LAYERS[name].items():
        assert acts[layer].shape == acts[f"{layer}_pre_relu"].shape == (1, channels, side, side)


@pytest.mark.parametrize("name", NETWORKS)
def test_its_table_names_every_layer(name):
    with torch.device("meta"):
        module = NETWORKS[name][0]()
    family = architecture_of(module)
    layers = family.layer_names(module)
    assert family.shape(module).n_layers == len(layers) and family.default_site in layers
    for layer in layers:
        assert isinstance(module.get_submodule(layer), nn.ReLU | nn.ReLU6)
        module.get_submodule(f"{layer}_pre_relu")
    rectifiers = [path for path, part in module.named_modules() if isinstance(part, nn.ReLU | nn.ReLU6)]
    inside = ("bottleneck", "conv2d_", "fc", "hidden")  # branches of a mixed layer, dense layers
    assert [path for path in rectifiers if not any(part in path for part in inside)] == [
        layer for layer in layers if not layer.startswith("conv2d_")
    ]


@pytest.mark.parametrize("name", [*SMALL, "alexnet", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_equations_hold_on_random_weights(name):
    errors = convolution_errors(untrained(name))
    assert {"convolution", "activation"} <= errors.keys()
    assert max(errors.values()) < 1e-5, errors
    expected = {
        "inceptionv1": {"response norm", "concatenation", "pooling", "logits"},
        "inceptionv3": {"batch norm", "concatenation", "pooling", "logits"},
        "resnetv2-50": {"batch norm", "residual", "logits"},
        "efficientnet-lite0": {"batch norm", "residual", "logits"},
        "open-nsfw": {"residual", "logits"},
        "alexnet": {"response norm", "pooling", "logits"},
    }
    assert expected.get(name, set()) <= errors.keys()


@pytest.fixture(scope="module")
def inception() -> Model:
    return untrained("inceptionv1", seed=3)


def test_units_have_the_names_of_the_papers(inception):
    assert str(inception.feature("3b:379")) == "mixed3b[379]"
    assert str(inception.feature("4a:507")) == "mixed4a[507]"
    assert inception.map_shape("maps@4") == inception.map_shape("mixed3b") == (480, 28, 28)
    with pytest.raises(VesaliusError, match="mixed4a"):
        inception.feature("4a:508")
    with pytest.raises(VesaliusError, match="nearest is"):
        inception.feature("mixd3b[3]")


def test_branches_lie_side_by_side_as_in_the_published_graph(inception):
    parts = inception.module.get_submodule("mixed3b_pre_relu").parts
    widths = [inception.map_shape(part)[0] for part in parts]
    assert [part.removeprefix("mixed3b_").removesuffix("_pre_relu") for part in parts] == [
        "1x1", "3x3", "5x5", "pool_reduce"
    ]  # fmt: skip
    assert widths == [128, 192, 96, 64]  # 0-127 | 128-319 | 320-415 | 416-479


def test_it_reads_other_sizes(inception):
    assert inception.map_shape("mixed4a", size=(97, 130)) == (508, 7, 9)


def test_its_response_norms_have_the_numbers_of_the_graph(inception):
    state = inception.module.state_dict()
    assert (
        state["localresponsenorm0.alpha"] == torch.tensor(1e-4)
        and state["localresponsenorm1.depth_radius"] == 5
    )


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (5, 2), (7, 2), (2, 2), (1, 2)])
@pytest.mark.parametrize("size", [7, 8, 9, 12])
def test_same_padding_is_tensorflows(kernel, stride, size):
    before, after = same_padding(size, kernel, stride)
    outputs = (size + stride - 1) // stride
    assert after - before in (0, 1)
    x = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    sides = (before, after) * 2
    conv = SameConv2d(2, 3, kernel, stride)
    assert conv(x).shape == (1, 3, outputs, outputs)
    padded = nn.functional.conv2d(nn.functional.pad(x, sides), conv.weight, conv.bias, stride)
    torch.testing.assert_close(conv(x), padded)
    if kernel >= stride:
        lowest = nn.functional.pad(x, sides, value=-torch.inf)
        assert torch.equal(SameMaxPool2d(kernel, stride)(x), nn.functional.max_pool2d(lowest, kernel, stride))


def test_response_norm_is_tensorflows_formula():
    x = torch.randn(2, 13, 3, 3, generator=torch.Generator().manual_seed(1))
    norm = LocalResponseNorm(depth_radius=5, bias=1.5, alpha=0.3, beta=0.5)
    expected = torch.stack(
        [x[:, c] / (1.5 + 0.3 * x[:, max(0, c - 5) : c + 6].square().sum(1)).sqrt() for c in range(13)], 1
    )
    torch.testing.assert_close(norm(x), expected)


def break_norm(module):
    module["localresponsenorm0"].forward = nn.LocalResponseNorm(11, alpha=1e-1, beta=0.5).forward


def break_order(module):
    order = module["mixed3b_pre_relu"]
    order.parts = (order.parts[1], order.parts[0], *order.parts[2:])


def break_activation(module):
    module["mixed4a"].forward = torch.tanh


def break_pool(module):
    module["maxpool0"].forward = nn.MaxPool2d(3, 2, padding=1).forward


def break_padding(module):
    conv = module["conv2d0_pre_relu"]
    conv.forward = lambda x: nn.functional.conv2d(x, conv.weight, conv.bias, 2, 3)


@pytest.mark.parametrize(
    "fault, equation, place",
    [
        (break_norm, "response norm", "localresponsenorm0"),
        (break_order, "concatenation", "mixed3b_pre_relu"),
        (break_activation, "activation", "mixed4a"),
        (break_pool, "pooling", "maxpool0"),
        (break_padding, "convolution", "conv2d0_pre_relu"),
    ],
)
def test_a_fault_is_named(fault, equation, place):
    model = untrained("inceptionv1")
    fault(model.module)
    with pytest.raises(VesaliusError, match=f"breaks the equation '{equation}' at '{place}"):
        convolution_errors(model)


def test_a_broken_batch_norm_is_named():
    model = untrained("mobilenetv2")
    norm = model.module.block3.project
    norm.forward = lambda x: nn.functional.batch_norm(
        x, norm.running_mean, norm.running_var, None, None, eps=1.0
    )
    with pytest.raises(VesaliusError, match=r"'batch norm' at 'block3\.project'"):
        convolution_errors(model)


def test_the_class_of_the_same_name_of_another_library_is_not_ours():
    stranger = type("VGG", (nn.Module,), {})()
    assert architecture_of(stranger) is None
    assert architecture_of(MobileNetV2(classes=2)).name == "MobileNetV2"
