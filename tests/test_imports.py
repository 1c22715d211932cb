"""`import vesalius` is light and does nothing but define names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "vesalius"

HEAVY = {
    "transformers", "huggingface_hub", "tokenizers", "gguf", "matplotlib", "PIL", "anywidget", "ipywidgets",
    "rich", "typer", "pandas", "scipy", "sklearn", "pydantic", "beartype", "http.client", "urllib.request",
}  # fmt: skip

PROBE = """
import json, os, random, socket, sys, warnings
import torch, numpy
def refuse(*_): raise OSError("the network was used")
socket.socket.connect = refuse
before, files = set(sys.modules), set(os.listdir("."))
torch.manual_seed(3); numpy.random.seed(3); random.seed(3)
states = torch.get_rng_state(), numpy.random.get_state()[1].copy(), random.getstate()
settings = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), list(warnings.filters)
import vesalius
assert torch.equal(states[0], torch.get_rng_state()), "torch's generator moved"
assert (states[1] == numpy.random.get_state()[1]).all(), "numpy's generator moved"
assert states[2] == random.getstate(), "random's generator moved"
assert settings == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), list(warnings.filters))
assert files == set(os.listdir(".")), "a file was written"
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> set[str]:
    """The modules that `import vesalius` adds to those of torch and numpy, in a process of its own."""
    folder = tmp_path_factory.mktemp("empty")
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "", "HOME": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_importing_vesalius_imports_nothing_heavy(imported):
    assert not imported & HEAVY


def test_importing_vesalius_imports_no_method_and_no_front_end(imported):
    rooms = ("vesalius.methods.", "vesalius.recipes", "vesalius.cli", "vesalius.report")
    assert not [name for name in imported if name.startswith(rooms)]


@pytest.mark.parametrize("wanted", ["register_forward", "register_full_backward", "register_module_forward"])
def test_only_access_registers_hooks(wanted):
    users = [file.name for file in PACKAGE.rglob("*.py") if wanted in file.read_text(encoding="utf-8")]
    assert users in ([], ["access.py"])


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_no_module_uses_the_global_generator_or_a_pickle(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(
        r"\b(torch\.manual_seed|np\.random\.\w+\(|numpy\.random\.\w+\(|pickle\.load|weights_only=False)", text
    )
