"""From the files of published networks to state dicts of our definitions: other names, other layouts.

A rule is a pattern of a whole name in the file and the name of the module here; what no rule fits is an error.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from io import BufferedIOBase

import torch
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.formats import caffe, frozen_graph, keras, onnx, tfjs
from vesalius.formats.weights import read_torch

Files = Mapping[str, BufferedIOBase]
State = dict[str, Tensor]
Rules = Mapping[str, str]


def only(files: Files) -> tuple[str, BufferedIOBase]:
    """The first, usually the only, file."""
    return next(iter(files.items()))


def renamed(name: str, rules: Rules) -> str:
    """The module that a layer's name stands for; the first rule that fits the whole name counts."""
    for pattern, module in rules.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(module)
    raise VesaliusError(f"the file holds '{name}', which this network does not have")


def torch_state(files: Files, rules: Rules) -> State:
    """A torch state dict under other names."""
    name, file = only(files)
    split = [(key.rpartition("."), tensor) for key, tensor in read_torch(file, name=name).items()]
    return {f"{renamed(layer, rules)}.{kind}": tensor for (layer, _, kind), tensor in split}


def keras_state(files: Files, rules: Rules) -> State:
    """The weights of a Keras network."""
    name, file = only(files)
    return keras.in_torch(keras.read(file, name=name), partial(renamed, rules=rules))


def shards_state(files: Files, rules: Rules) -> State:
    """A Keras network in TensorFlow.js, its manifest and its shards each minified into a script."""
    (name, topology), *shards = files.items()
    manifest = tfjs.manifest_in_script(topology.read().decode(), name=name)
    data = b"".join(tfjs.bytes_in_script(shard.read(), name=shard_name) for shard_name, shard in shards)
    return keras.in_torch(tfjs.read(manifest, data, name=name), partial(renamed, rules=rules))


def with_unit_gains(files: Files, read: Callable[[Files], State]) -> State:
    """Batch norms without a gain have one of 1."""
    state = read(files)
    gains = {
        key.replace("running_var", "weight"): torch.ones_like(state[key])
        for key in state
        if "running_var" in key
    }
    return gains | state


def hed_state(files: Files) -> State:
    """Keras numbers the convolutions of a block from the second: conv2d, conv2d_1, conv2d_2."""
    name, file = only(files)
    state = {}
    for path, array in keras.read(file, name=name).items():
        block, _, layer = path.removesuffix("/vars/0").removesuffix("/vars/1").partition("/layers/conv2d")
        number = int(layer.removeprefix("_") or 0) + 1
        module = (
            f"conv{block[5:]}_{number}_pre_relu"
            if block.startswith("block")
            else block.replace("dsn", "side")
        )
        kernel = path.endswith("/0")
        state[f"{module}.{'weight' if kernel else 'bias'}"] = (
            keras.kernel_in_torch(array) if kernel else array
        )
    return state


def inception_v1_state(files: Files) -> State:
    """The trunk and the last classifier of the graph, and the numbers of its local response norms."""
    name, file = only(files)
    found = frozen_graph.read(file, name=name)
    defaults = {"depth_radius": 5, "bias": 1.0, "alpha": 1.0, "beta": 0.5}
    norms = [f"localresponsenorm{number}" for number in (0, 1)]
    state = {
        f"{norm}.{key}": found.get(f"{norm}.{key}", torch.tensor(value))
        for norm in norms
        for key, value in defaults.items()
    }
    for key, tensor in found.items():
        match = re.fullmatch(r"((?:conv2d|mixed)\w+|softmax2)_([wb])", key)
        if match:
            layer = match[1] + ("_pre_activation" if match[1] == "softmax2" else "_pre_relu")
            kind = "weight" if match[2] == "w" else "bias"
            state[f"{layer}.{kind}"] = keras.kernel_in_torch(tensor) if kind == "weight" else tensor
    return state


def open_nsfw_state(files: Files) -> State:
    """The convolutions in the order of the graph, batch norms folded in, and the classifier."""
    name, file = only(files)
    graph = onnx.read_graph(file, name=name)
    modules = ["conv1_pre_relu"]
    for stage, units in enumerate((3, 4, 6, 3), 1):
        for unit in range(1, units + 1):
            parts = ["conv1_pre_relu", "conv2_pre_relu", *(["shortcut"] if unit == 1 else []), "conv3"]
            modules += [f"stage{stage}.unit{unit}.{part}" for part in parts]
    folded = graph.folded()
    if len(folded) != len(modules):
        raise VesaliusError(
            f"{name} has {len(folded)} convolutions; expected the {len(modules)} of open_nsfw"
        )
    state = {}
    for module, (kernel, bias) in zip(modules, folded):
        state |= {f"{module}.weight": kernel, f"{module}.bias": bias}
    *_, matrix, bias = (tensor for tensor in graph.tensors.values() if tensor.dim() <= 2)
    return state | {"classifier.weight": matrix.T.contiguous(), "classifier.bias": bias}


def caffe_state(files: Files) -> State:
    """Every layer of a network of Caffe, under its own name."""
    name, file = only(files)
    split = [(key.rpartition("."), blob) for key, blob in caffe.read(file, name=name).items()]
    return {
        f"{layer}{'' if layer == 'fc8' else '_pre_relu'}.{kind}": blob for (layer, _, kind), blob in split
    }


def torchvision_rules(convolutions: Mapping[int, str], dense: tuple[int, int, int]) -> Rules:
    """torchvision numbers the modules of a network; the number of each convolution and dense layer."""
    return {
        **{rf"features\.{place}": f"{name}_pre_relu" for place, name in convolutions.items()},
        rf"classifier\.{dense[0]}": "fc6_pre_relu",
        rf"classifier\.{dense[1]}": "fc7_pre_relu",
        rf"classifier\.{dense[2]}": "fc8",
    }


def vgg_rules(convolutions: tuple[int, ...]) -> Rules:
    """Each convolution and its rectifier take two numbers, each maximum one."""
    before = [2 * sum(convolutions[:block]) + block for block in range(len(convolutions))]
    numbered = {
        before[block] + 2 * conv: f"conv{block + 1}_{conv + 1}"
        for block, count in enumerate(convolutions)
        for conv in range(count)
    }
    return torchvision_rules(numbered, dense=(0, 3, 6))


EFFICIENTNET_LITE = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_pre_relu",
    r"_blocks\.(\d+)\._(expand|depthwise|project)_conv": r"block\1.\2_conv",
    r"_blocks\.(\d+)\._bn0": r"block\1.expand_pre_relu",
    r"_blocks\.(\d+)\._bn1": r"block\1.depthwise_pre_relu",
    r"_blocks\.(\d+)\._bn2": r"block\1.project",
    "_conv_head": "head_conv",
    "_bn1": "head_pre_relu",
    "_fc": "classifier",
}
MOBILENET_V2 = {
    "Conv1": "stem_conv",
    "(bn_Conv1|Conv1_bn)": "stem_pre_relu",
    "expanded_conv_project_BN": "block0.project",
    r"expanded_conv_(\w+)_BN": r"block0.\1_pre_relu",
    r"expanded_conv_(\w+)": r"block0.\1_conv",
    r"block_(\d+)_project_BN": r"block\1.project",
    r"block_(\d+)_(\w+)_BN": r"block\1.\2_pre_relu",
    r"block_(\d+)_(\w+)": r"block\1.\2_conv",
    "Conv_1": "head_conv",
    "Conv_1_bn": "head_pre_relu",
    "dense_([12])": r"hidden.dense\1_pre_relu",
    "(dense|dense_3|Logits|predictions)": "classifier",
}
INCEPTION_V3 = {
    r"(conv2d_\d+)": r"\1_conv",
    r"batch_normalization_(\d+)": r"conv2d_\1_pre_relu",
    "dense_([12])": r"hidden.dense\1_pre_relu",
    "(dense_3|predictions)": "predictions",
}
RESNET_V2 = {
    "conv1_conv": "conv1",
    **{
        rf"conv{block + 1}_block(\d+)_preact_bn": rf"block{block}.unit\1.preact_pre_relu"
        for block in range(1, 5)
    },
    **{rf"conv{block + 1}_block(\d+)_0_conv": rf"block{block}.unit\1.shortcut" for block in range(1, 5)},
    **{rf"conv{block + 1}_block(\d+)_3_conv": rf"block{block}.unit\1.conv3" for block in range(1, 5)},
    **{
        rf"conv{block + 1}_block(\d+)_([12])_conv": rf"block{block}.unit\1.conv\2_conv"
        for block in range(1, 5)
    },
    **{
        rf"conv{block + 1}_block(\d+)_([12])_bn": rf"block{block}.unit\1.conv\2_pre_relu"
        for block in range(1, 5)
    },
    "post_bn": "postnorm_pre_relu",
    "(predictions|probs)": "logits",
}
ONE_TOWER = torchvision_rules({0: "conv1", 3: "conv2", 6: "conv3", 8: "conv4", 10: "conv5"}, dense=(1, 4, 6))
