"""Weights of image networks: each format read back from a file written here, names of every file, what is refused."""

import base64
import hashlib
import io
import json
import re
import struct
import sys
import zipfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from networks_tiny import NETWORKS
from safetensors.torch import save_file
from torch import nn

from vesalius.errors import VesaliusError
from vesalius.formats import caffe, frozen_graph, keras, onnx, published, tfjs
from vesalius.formats.class_names import imagenet
from vesalius.formats.conversion import (
    EFFICIENTNET_LITE,
    INCEPTION_V3,
    MOBILENET_V2,
    ONE_TOWER,
    RESNET_V2,
    inception_v1_state,
    renamed,
    vgg_rules,
)
from vesalius.formats.download import Source, fetched
from vesalius.model import load
from vesalius.networks.inception_v1 import InceptionV1
from vesalius.networks.vgg import VGG16, VGG19

SEED = torch.Generator().manual_seed(0)
KERNEL, BIAS = torch.randn(4, 3, 3, 3, generator=SEED), torch.randn(4, generator=SEED)


# --- writing protocol buffers


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def put(number: int, value: int | bytes | str | float) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_message(tensor: torch.Tensor, *, packed: bool = False) -> bytes:
    """TensorFlow's TensorProto of float32."""
    axes = b"".join(put(2, put(1, size)) for size in tensor.shape)
    raw = tensor.contiguous().numpy().astype("<f4").tobytes()
    return put(1, 1) + put(2, axes) + put(5 if packed else 4, raw)


def graph_node(name: str, operation: str, **attributes: bytes) -> bytes:
    entries = b"".join(put(5, put(1, key) + put(2, value)) for key, value in attributes.items())
    return put(1, put(1, name) + put(2, operation) + put(3, "input") + entries)


def frozen(module: InceptionV1) -> bytes:
    """The graph of a network as the published one is stored."""
    out = graph_node("input", "Placeholder", dtype=put(6, 1))
    for key, value in module.state_dict().items():
        layer, kind = key.rsplit(".", 1)
        if layer.startswith("localresponsenorm"):
            continue
        name = layer.replace("_pre_relu", "").replace("_pre_activation", "") + (
            "_w" if kind == "weight" else "_b"
        )
        if value.dim() == 4:
            value = value.permute(2, 3, 1, 0)
        elif value.dim() == 2:
            value = value.T
        out += graph_node(name, "Const", dtype=put(6, 1), value=put(8, tensor_message(value)))
    norm = {"depth_radius": put(3, 5), "bias": put(4, 2.0), "alpha": put(4, 3e-4), "beta": put(4, 0.5)}
    for number in (0, 1):
        out += graph_node(f"localresponsenorm{number}", "LRN", **norm)
    unused = put(8, tensor_message(torch.zeros(2, 2)))
    return out + graph_node("head0_bottleneck_w", "Const", value=unused)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A random InceptionV1 and its frozen graph on disk."""
    torch.manual_seed(1)
    module = InceptionV1().eval()
    path = tmp_path_factory.mktemp("graphs") / "mine.pb"
    path.write_bytes(frozen(module))
    return module, path


# --- one format each


def test_a_frozen_graph_gives_the_network_it_was_written_from(inception):
    module, path = inception
    model = load("inceptionv1", weights=path)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    for number in (0, 1):  # the graph's own numbers count, not the usual ones
        assert float(model.module[f"localresponsenorm{number}"].bias) == 2.0
        module[f"localresponsenorm{number}"].bias.fill_(2.0)
        module[f"localresponsenorm{number}"].alpha.fill_(3e-4)
    with torch.no_grad():
        assert torch.equal(model.module(x), module(x))
    assert model.name == "inceptionv1 (mine.pb)" and model.labels == ()
    white = torch.ones(1, 3, 8, 8)
    assert torch.allclose(model.preprocessing.normalise(white), torch.tensor(138.0))


def test_constants_of_every_way_to_write_them():
    packed = graph_node("a", "Const", value=put(8, tensor_message(KERNEL, packed=True)))
    repeated = put(1, 1) + put(2, put(2, put(1, 3))) + put(5, 0.5)
    whole = put(1, 3) + put(2, put(2, put(1, 2))) + put(7, varint(7) + varint(2**64 - 1))
    text = put(1, 7) + put(8, "words")
    nodes = [
        graph_node(name, "Const", value=put(8, body)) for name, body in zip("bcd", (repeated, whole, text))
    ]
    found = frozen_graph.read(io.BytesIO(packed + b"".join(nodes)), name="test.pb")
    assert found.keys() == {"a", "b", "c"}
    assert torch.equal(found["a"], KERNEL)
    assert found["b"].tolist() == [0.5] * 3 and found["c"].tolist() == [7, -1]


def initialiser(name: str, tensor: torch.Tensor) -> bytes:
    sizes = b"".join(put(1, size) for size in tensor.shape)
    return put(5, sizes + put(2, 1) + put(8, name) + put(9, tensor.numpy().astype("<f4").tobytes()))


def test_what_follows_a_convolution_in_onnx_is_folded_into_it():
    values = {name: torch.randn(1, 1, 1, 4, generator=SEED) for name in ("bias", "mean", "gain", "beta")}
    steps = [
        ("Conv", ["x", "w"], "conv"), ("Transpose", ["conv"], "t"), ("Add", ["t", "bias"], "a"),
        ("Sub", ["a", "mean"], "s"), ("Mul", ["s", "gain"], "m"), ("Identity", ["beta"], "beta2"),
        ("Add", ["m", "beta2"], "b"), ("Relu", ["b"], "r"),
    ]  # fmt: skip
    nodes = b"".join(
        put(1, b"".join(put(1, name) for name in inputs) + put(2, output) + put(4, operation))
        for operation, inputs, output in steps
    )
    stored = initialiser("w", KERNEL) + b"".join(initialiser(name, value) for name, value in values.items())
    graph = onnx.read_graph(io.BytesIO(put(1, 8) + put(7, nodes + stored)), name="test.onnx")
    assert torch.equal(graph.tensors["w"], KERNEL)
    ((kernel, bias),) = graph.folded()
    x = torch.randn(2, 3, 6, 6, generator=SEED)
    column = {name: value.flatten()[:, None, None] for name, value in values.items()}
    by_hand = (nn.functional.conv2d(x, KERNEL) + column["bias"] - column["mean"]) * column["gain"] + column[
        "beta"
    ]
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, bias), by_hand)


@pytest.mark.parametrize("layers, name_field, blob_field", [(100, 1, 7), (2, 4, 6)])
def test_caffe_blobs_of_both_kinds(layers, name_field, blob_field):
    def blob(tensor: torch.Tensor) -> bytes:
        sizes = b"".join(
            put(number, size) for number, size in zip((1, 2, 3, 4), (1,) * (4 - tensor.dim()) + tensor.shape)
        )
        shape = put(7, put(1, b"".join(map(varint, tensor.shape))))
        return (shape if layers == 100 else sizes) + put(5, tensor.numpy().astype("<f4").tobytes())

    dense = torch.randn(5, 7, generator=SEED)
    body = b""
    for name, parts in {
        "conv1": (KERNEL, BIAS),
        "fc8": (dense, dense[:, 0].contiguous()),
        "relu1": (),
    }.items():
        body += put(layers, put(name_field, name) + b"".join(put(blob_field, blob(part)) for part in parts))
    found = caffe.read(io.BytesIO(put(1, "net") + body), name="test.caffemodel")
    assert found.keys() == {"conv1.weight", "conv1.bias", "fc8.weight", "fc8.bias"}
    assert torch.equal(found["conv1.weight"], KERNEL) and torch.equal(found["conv1.bias"], BIAS)
    assert torch.equal(found["fc8.weight"], dense)


def test_keras_kernels_are_turned(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra 'networks' is not installed")
    depthwise = torch.randn(4, 1, 3, 3, generator=SEED)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["Conv1/Conv1/kernel:0"] = KERNEL.permute(2, 3, 1, 0).numpy()
        file["block_1_depthwise/depthwise_kernel"] = depthwise.permute(2, 3, 0, 1).numpy()
        file["bn_Conv1/moving_variance"] = np.ones(4)
        file["optimizer_weights/adam/m"] = np.ones(4)
        file["names"] = np.array([b"a", b"b"])
    with (tmp_path / "w.h5").open("rb") as file:
        arrays = keras.read(file, name="w.h5")
    state = keras.in_torch(arrays, lambda layer: renamed(layer, MOBILENET_V2))
    assert state.keys() == {"stem_conv.weight", "block1.depthwise_conv.weight", "stem_pre_relu.running_var"}
    assert torch.equal(state["stem_conv.weight"], KERNEL)
    assert torch.equal(state["block1.depthwise_conv.weight"], depthwise)


def test_shards_are_dequantised_exactly():
    codes = bytes(range(6))
    entries = [
        {"name": "a/kernel", "shape": [2, 3], "dtype": "float32",
         "quantization": {"min": -0.41079130803837494, "scale": 0.003065606776405783, "dtype": "uint8"}},
        {"name": "b", "shape": [2], "dtype": "float32"},
    ]  # fmt: skip
    data = codes + struct.pack("<2f", 1.5, -2)
    found = tfjs.read([{"paths": ["x"], "weights": entries}], data, name="test")
    expected = [np.float32(code * 0.003065606776405783 - 0.41079130803837494) for code in codes]
    assert found["a/kernel"].flatten().tolist() == expected and found["b"].tolist() == [1.5, -2]
    with pytest.raises(VesaliusError, match="cut short: 'b' lacks 1 bytes"):
        tfjs.read([{"weights": entries}], data[:-1], name="test")
    with pytest.raises(VesaliusError, match="have 15 bytes; its manifest accounts for 14"):
        tfjs.read([{"weights": entries}], data + b"!", name="test")


def test_a_model_in_a_script_is_read_as_data():
    script = (
        '!function(){n.exports={a:!0,weightsManifest:[{paths:["s"],weights:[{name:"d/k:0",shape:[1],'
        'dtype:"float32",quantization:{min:-.5,scale:2e-3,dtype:"uint8"}}]}]}},{}'
    )
    (group,) = tfjs.manifest_in_script(script, name="model.js")
    assert group["weights"][0]["quantization"] == {"min": -0.5, "scale": 0.002, "dtype": "uint8"}
    shard = b'h.exports="' + base64.b64encode(b"\x07\xff") + b'"},{}]'
    assert tfjs.bytes_in_script(shard, name="s.js") == b"\x07\xff"
    for damaged in ("nothing", script[:60], script.replace("[1]", "f()")):
        with pytest.raises(VesaliusError, match=r"model\.js"):
            tfjs.manifest_in_script(damaged, name="model.js")
    with pytest.raises(VesaliusError, match=r"s\.js"):
        tfjs.bytes_in_script(shard[:14], name="s.js")


@pytest.mark.parametrize("reader", [frozen_graph.read, onnx.read_graph, caffe.read, keras.read])
@pytest.mark.parametrize("data", [b"", b"not this at all, but words", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_file_of_another_kind_is_refused_in_one_sentence(reader, data):
    pytest.importorskip("h5py")
    with pytest.raises(VesaliusError, match=r"^w\.x (is no|holds no|is not)"):
        reader(io.BytesIO(data), name="w.x")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.999])
def test_a_truncated_graph_is_refused(inception, kept, tmp_path):
    whole = inception[1].read_bytes()
    (tmp_path / "cut.pb").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(
        VesaliusError, match=r"cut\.pb is (no frozen graph, or is cut short|not a InceptionV1)"
    ):
        load("inceptionv1", weights=tmp_path / "cut.pb")


# --- names in the files of others


def modules_with_weights(name: str) -> set[str]:
    with torch.device("meta"):
        module = NETWORKS[name][0]()
    return {key.rpartition(".")[0] for key in module.state_dict()}


def keras_mobilenet() -> list[str]:
    blocks = [
        f"block_{index}_{part}" for index in range(1, 17) for part in ("expand", "depthwise", "project")
    ]
    blocks += ["expanded_conv_depthwise", "expanded_conv_project"]
    return [
        "Conv1",
        "bn_Conv1",
        *blocks,
        *(f"{block}_BN" for block in blocks),
        "Conv_1",
        "Conv_1_bn",
        "Logits",
    ]


def keras_resnet() -> list[str]:
    names = ["conv1_conv", "post_bn", "predictions"]
    for stage, units in enumerate((3, 4, 6, 3), 2):
        names.append(f"conv{stage}_block1_0_conv")
        parts = ("preact_bn", "1_conv", "1_bn", "2_conv", "2_bn", "3_conv")
        names += [f"conv{stage}_block{unit}_{part}" for unit in range(1, units + 1) for part in parts]
    return names


def keras_inception() -> list[str]:
    numbers = range(1, 95)
    return [*(f"conv2d_{n}" for n in numbers), *(f"batch_normalization_{n}" for n in numbers), "predictions"]


def torchvision(*convolutions: int, dense: tuple[int, ...] = (0, 3, 6)) -> list[str]:
    return [f"features.{n}" for n in convolutions] + [f"classifier.{n}" for n in dense]


def package_efficientnet() -> list[str]:
    parts = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    blocks = [f"_blocks.{n}.{part}" for n in range(16) for part in (parts if n else parts[2:])]
    return ["_conv_stem", "_bn0", *blocks, "_conv_head", "_bn1", "_fc"]


@pytest.mark.parametrize(
    "name, rules, names",
    [
        ("mobilenetv2", MOBILENET_V2, keras_mobilenet()),
        ("resnetv2-50", RESNET_V2, keras_resnet()),
        ("inceptionv3", INCEPTION_V3, keras_inception()),
        ("vgg16", vgg_rules(VGG16), torchvision(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        ("vgg19", vgg_rules(VGG19), torchvision(0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)),
        ("alexnet-one-tower", ONE_TOWER, torchvision(0, 3, 6, 8, 10, dense=(1, 4, 6))),
        ("efficientnet-lite0", EFFICIENTNET_LITE, package_efficientnet()),
    ],
)  # fmt: skip
def test_every_published_name_stands_for_one_module(name, rules, names):
    found = [renamed(one, rules) for one in names]
    assert len(set(found)) == len(found) and set(found) == modules_with_weights(name)


def test_a_name_that_is_not_the_networks_is_refused():
    with pytest.raises(VesaliusError, match=r"holds 'features\.1'"):
        renamed("features.1", vgg_rules(VGG16))


def test_the_graph_gives_every_weight_and_no_other_head(inception):
    state = inception_v1_state({"mine.pb": io.BytesIO(inception[1].read_bytes())})
    assert state.keys() == inception[0].state_dict().keys()


# --- the user's own file


@pytest.fixture(scope="module")
def lite():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return published.NETWORKS["efficientnet-lite0"].network().eval()


def stored(tmp_path, state, file="mine.safetensors"):
    save_file(state, tmp_path / file)
    return tmp_path / file


def test_a_safetensors_file_of_the_networks_own_names_is_opened(lite, tmp_path):
    model = load("efficientnet-lite0", weights=stored(tmp_path, lite.state_dict()))
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model.module(x), lite(x))
        assert torch.equal(model(x), lite((x * 255 - 127) / 128)) or torch.allclose(
            model(x), lite((x * 255 - 127) / 128), atol=1e-5
        )
    assert {"images", "conv"} <= model.kinds and model.site() == "block6.depthwise"


def change(key, value):
    return lambda state: state | {key: value}


def without(key):
    return lambda state: {other: value for other, value in state.items() if other != key}


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (without("stem_conv.weight"), r"lacks 'stem_conv\.weight' \(1 of \d+"),
        (
            change("classifier.weight", torch.zeros(10, 1280)),
            r"has the shape \(10, 1280\); EfficientNetLite needs \(1000, 1280\)",
        ),
        (change("extra", torch.zeros(1)), "holds 'extra', which EfficientNetLite has not"),
        (
            change("block3.project.running_var", torch.full((40,), torch.nan)),
            r"'block3\.project\.running_var' .* NaN",
        ),
    ],
    ids=["absent", "shape", "unknown", "nan"],
)
def test_weights_of_another_network_are_refused(lite, tmp_path, damage, sentence):
    with pytest.raises(VesaliusError, match=sentence):
        load("efficientnet-lite0", weights=stored(tmp_path, damage(lite.state_dict())))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(VesaliusError, match="There is no file"):
        load("vgg16", weights=tmp_path / "none.pth")
    (tmp_path / "w.txt").write_text("weights")
    with pytest.raises(
        VesaliusError, match=r"w\.txt cannot be read as this network; expected \.pth or \.safetensors"
    ):
        load("vgg16", weights=tmp_path / "w.txt")
    with pytest.raises(VesaliusError, match="is no published network; those are"):
        load("zoo/attn-0l", weights=tmp_path / "w.txt")


def test_a_file_with_the_published_name_must_be_the_published_file(tmp_path):
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"something else")
    with pytest.raises(VesaliusError, match=r"has the sha256 [0-9a-f]{16}…, and .* 397923af8e79cdbb…"):
        load("vgg16", weights=tmp_path / "vgg16-397923af.pth")


# --- from a public home into the cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A source whose home is a file on this computer, and a cache of its own."""
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "public" / "net.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("w.pb", graph_node("a", "Const", value=put(8, tensor_message(BIAS))))
    return Source(archive.as_uri(), "net.zip", hashlib.sha256(archive.read_bytes()).hexdigest(), ("w.pb",))


def test_nothing_is_fetched_unless_asked(home, tmp_path):
    with pytest.raises(VesaliusError, match=r"'net' is not on this computer; download=True"):
        fetched(home, name="net", download=False)
    path = fetched(home, name="net", download=True)
    assert (
        fetched(home, name="net", download=False) == path and path.parent == tmp_path / "cache" / "networks"
    )
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(VesaliusError, match=r"has the sha256 .* it is damaged, cut short or another version"):
        fetched(home, name="net", download=False)


def test_a_wrong_hash_leaves_nothing_behind(home, tmp_path):
    wrong = Source(home.home, home.file, "0" * 64, home.members)
    with pytest.raises(VesaliusError, match="expected 0000000000000000…"):
        fetched(wrong, name="net", download=True)
    assert not list((tmp_path / "cache").rglob("*.zip"))


def test_a_home_that_does_not_answer_is_one_sentence(home, tmp_path):
    gone = Source(f"{home.home}.gone", home.file, home.sha256)
    with pytest.raises(VesaliusError, match="cannot be fetched"):
        fetched(gone, name="net", download=True)


def test_networks_without_a_pinned_home_ask_for_the_users_file(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))
    for name in ("alexnet", "resnetv2-50", "mobilenetv2"):
        with pytest.raises(VesaliusError, match=r"give your copy of the file: load\("):
            load(name, download=True)


def test_every_source_is_pinned():
    for name, network in published.NETWORKS.items():
        source = network.source
        assert re.fullmatch("[0-9a-f]{64}" if source.home else "", source.sha256), name


def test_the_classes_of_imagenet():
    labels = imagenet({})
    assert len(labels) == 1000 and labels[0] == "tench" and labels[967] == "espresso"
    assert json.dumps(labels).isascii()


# --- other libraries, where they are


def test_a_library_that_is_not_there_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        VesaliusError, match=r"need timm, which is not installed .* vs\.Model\(module, preprocessing="
    ):
        load("timm:resnetv2_50")


def test_a_library_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(
        VesaliusError, match=r"cannot be imported \(operator torchvision::nms .*\), .* torch 2"
    ):
        load("torchvision:vgg19")


def test_a_network_of_torchvision_keeps_its_preprocessing(monkeypatch, tmp_path):
    class Weights:
        url, meta = "https://somewhere/net-12345678.pth", {"categories": ["a", "b"]}

        def transforms(self):
            return SimpleNamespace(crop_size=[32], resize_size=[40], mean=[0.5] * 3, std=[0.25] * 3)

    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    library, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    models.list_models = lambda: ["net"]
    models.get_model_weights = lambda name: SimpleNamespace(DEFAULT=Weights())
    models.get_model = lambda name, weights: network
    monkeypatch.setitem(sys.modules, "torchvision", library)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(VesaliusError, match="has no network 'nett'; the nearest is net"):
        load("torchvision:nett")
    with pytest.raises(VesaliusError, match="not on this computer; pass download=True"):
        load("torchvision:net")
    model = load("torchvision:net", download=True)
    assert model.module is network and model.labels == ("a", "b")
    assert model.preprocessing.size == (32, 32) and model.preprocessing.crop == 0.8
    assert model(torch.rand(1, 3, 40, 40)).shape == (1, 2)
