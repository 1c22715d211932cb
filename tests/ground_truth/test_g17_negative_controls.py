"""G17, negative controls: where there is nothing to find, the analyses find nothing.

Truth: networks with random weights. At level .01, twenty of them may give one false alarm an analysis, and
no more. Measured on more of them (d_model 32, seeds from 1000): activation_patching 0, attention_patterns 3,
bigrams 0 of 200; composition 2, copying_heads 0, direct_logit_attribution 0, in_context_learning 1,
induction_ablation 1, induction_heads 0, logit_lens 3, phase_change 0 of 100; skip_trigrams 0, term_importance
3 of 60.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.testbed import curve_network, random_attn

SHAPE = {"d_model": 64, "n_heads": 4, "d_vocab": 40, "n_ctx": 48}
QUICK = {"steps": 8, "n_images": 48}  # what makes an analysis of pictures a matter of seconds
WITH_MLP = SHAPE | {"d_mlp": 96}
LONG = ("causal_tracing",)  # five minutes; its own test has random networks too
NAMES = [
    pytest.param(
        name,
        marks=[pytest.mark.slow] if method.subject or method.room == "directions" or name in LONG else [],
    )
    for name, method in sorted(vs.methods().items())
    if not method.missing(random_attn(**(WITH_MLP if method.subject == "dictionary" else SHAPE)))
]


def checkpoints(home: Path, seed: int) -> list[str]:
    """Three random networks in folders as the zoo has them: a training that taught nothing."""
    folders = [home / f"{seed}-step-{step}" for step in (0, 10, 100)]
    for number, folder in enumerate(folders):
        module = random_attn(**SHAPE, seed=3 * seed + number).module
        folder.mkdir()
        (folder / "card.json").write_text(json.dumps({"shape": module.shape}))
        save_file(module.state_dict(), folder / "model.safetensors")
    return [str(folder) for folder in folders]


def random_directions(seed: int) -> SparseDictionary:
    drawn = torch.randn(144, 96, generator=torch.Generator().manual_seed(seed))
    return SparseDictionary.of_directions("neurons@0", drawn / drawn.norm(dim=1, keepdim=True), k=8)


def false_alarms(name: str, seed: int, home: Path) -> list[str]:
    """The claims that an analysis, with its defaults, makes of a random network."""
    method, arguments = vs.methods()[name], {}
    if "seed" in method.parameters:
        arguments["seed"] = seed
    if "checkpoints" in method.parameters:
        arguments["checkpoints"] = checkpoints(home, seed)
    if method.subject == "dictionary":
        dictionary, second = random_directions(5000 + seed), random_directions(6000 + seed)
        others = {"other": second, "others": [second]}
        arguments |= {key: value for key, value in others.items() if key in method.parameters}
        result = method.function(random_attn(**WITH_MLP, seed=seed), dictionary, **arguments)
    else:
        result = method.function(random_attn(**SHAPE, seed=seed), **arguments)
    return [headline.claim for headline in result.headlines() if headline.evidence]


@pytest.mark.parametrize("name", NAMES)
def test_random_networks_give_no_evidence(name, tmp_path):
    alarms = {seed: claims for seed in range(20) if (claims := false_alarms(name, seed, tmp_path))}
    assert len(alarms) <= 1, alarms


PICTURES = sorted(
    name
    for name, method in vs.methods().items()
    if "images" in method.needs and not method.missing(curve_network())
)


def false_alarms_of_pictures(name: str, seed: int) -> list[str]:
    """The claims that an analysis of pictures makes of a convnet with random weights."""
    method, network = vs.methods()[name], curve_network().random_twin(1000 + seed)
    arguments = QUICK | {"seed": seed}
    if "other" in method.parameters:
        arguments["other"] = network.random_twin(2000 + seed)
    feature = [f"{network.site()}[{seed % 24}]"] if method.subject == "feature" else []
    given = {key: value for key, value in arguments.items() if key in method.parameters}
    result = method.function(network, *feature, **given)
    return [headline.claim for headline in result.headlines() if headline.evidence]


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_random_convnets_give_no_evidence(name):
    alarms = {seed: claims for seed in range(20) if (claims := false_alarms_of_pictures(name, seed))}
    assert len(alarms) <= 1, alarms
