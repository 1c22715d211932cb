"""The names of a classifier's classes: from the files of its weights, or the usual ones of ImageNet."""

import re
from collections.abc import Callable
from importlib import resources

from vesalius.formats.conversion import Files


def imagenet(files: Files) -> tuple[str, ...]:
    """The classes of ILSVRC 2012, the first name of each."""
    names = resources.files("vesalius.networks").joinpath("imagenet.txt").read_text("utf-8").splitlines()
    return tuple(name.split(",")[0] for name in names)


def named(*names: str) -> Callable[[Files], tuple[str, ...]]:
    return lambda files: names


def inception_v1_labels(files: Files) -> tuple[str, ...]:
    """The 1001 names in the archive beside the graph; its last seven outputs have none."""
    lists = [file for name, file in files.items() if name.endswith("label_strings.txt")]
    return tuple(lists[0].read().decode().splitlines()) if lists else ()


def breeds(files: Files) -> tuple[str, ...]:
    """The 19 dogs, out of the bytes of a pickle that is not opened: synset and name, four bytes a letter."""
    pickles = [file.read() for name, file in files.items() if name.endswith(".pkl")]
    texts = [
        found.decode("utf-32-le") for data in pickles for found in re.findall(rb"(?:[!-~]\0\0\0){11,}", data)
    ]
    return tuple(text.partition("-")[2].replace("_", " ") for text in texts)
