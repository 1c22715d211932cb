"""Shapes in signatures are checked while the tests run, and only then (jaxtyping and beartype)."""

import json
import random
import shutil
import sys
from pathlib import Path

import jaxtyping
import pytest

assert "vesalius" not in sys.modules, "vesalius was imported before its shape checks could be installed"
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int is a float, as PEP 484 says
jaxtyping.install_import_hook("vesalius", CHECKER)


@pytest.fixture(scope="session")
def small_network(tmp_path_factory) -> Path:
    """A folder with an untrained two-layer network that `load` and the command line open, tokenizer included."""
    from safetensors.torch import save_file

    import vesalius.zoo
    from vesalius.architectures.toy import ToyTransformer

    folder = tmp_path_factory.mktemp("networks") / "small"
    folder.mkdir()
    shape = dict(n_layers=2, d_model=16, n_heads=2, d_vocab=2048, n_ctx=64)
    save_file(ToyTransformer(**shape, seed=1).state_dict(), folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps({"name": "small", "title": "untrained", "shape": shape}))
    shutil.copy(Path(vesalius.zoo.__file__).parent / "tokenizer.json", folder)
    return folder


@pytest.fixture(autouse=True)
def the_same_item_of_a_list_is_checked():
    """Of a list, beartype checks one item drawn with Python's own generator: the same one whenever a test runs."""
    random.seed(0)


@pytest.fixture(autouse=True)
def a_cache_of_its_own(request, tmp_path_factory, monkeypatch):
    """Nothing that an earlier test or the user kept is found, but by tests of real networks, which fetch once."""
    if not any(request.node.get_closest_marker(name) for name in ("real", "inceptionv1")):
        monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path_factory.mktemp("cache")))
