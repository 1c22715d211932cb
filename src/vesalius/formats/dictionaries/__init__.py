"""Dictionaries on disk: our own, and those that other libraries publish, one file of this folder for each format.

None of them executes anything a file says: pickles are read as tensors only, or refused.
"""

from pathlib import Path

from vesalius.dictionaries import Dictionary
from vesalius.errors import VesaliusError
from vesalius.formats.dictionaries import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    saelens,
    vesalius,
)
from vesalius.formats.zoo import dictionary_file

FORMATS = (vesalius, saelens, dictionary_learning, gemma_scope, gemma_scope_2, circuit_tracer)


def read_dictionary(path: str | Path, *, site: str = "", source: str = "") -> Dictionary:
    """Open a dictionary by its file or folder, whoever wrote it; `zoo/mlp-1l/latents-4096` is one that is shipped.

    `site` names what it reconstructs, and `source` what it reads if that is another, where the file does not say so
    in words that are understood here. Raises VesaliusError for what is none of the formats, for pickles, and for
    computations that are more than a threshold after an affine map, such as a norm of each row.
    """
    shipped = str(path).startswith("zoo/") and not Path(path).exists()
    path = dictionary_file(str(path)) if shipped else Path(path).expanduser()
    path = path if path.exists() else path.with_suffix(".safetensors")
    if not path.exists():
        raise VesaliusError(f"there is no dictionary at '{path}'; expected a file or a folder")
    for format in FORMATS:
        if format.recognises(path):
            return format.read(path, site=site, source=source)
    if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin"):
        raise VesaliusError(f"'{path}' is a pickle, which may run anything; expected safetensors or npz")
    raise VesaliusError(
        f"'{path}' holds no dictionary in a known format; expected one file of ours, {saelens.FILES}, "
        f"{dictionary_learning.FILES}, {gemma_scope.FILES}, or {circuit_tracer.FILES}"
    )
