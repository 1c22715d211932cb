"""G5, induction emerging: two layers learn it in a phase change, one layer never does.

Truth: repeated random blocks can only be predicted by looking for what followed last time. On [BOS, r, r]
with 16 different tokens a model that knows which tokens are still to come, and no more, loses ln(16!)/16 =
1.92 nats.

Measured over seeds 0, 1, 2. Two layers: largest prefix score at most .08 at step 100, .13 at 300, .78 .79 .71
at 500, where the loss on the repetition is .03 .02 .03 nats; head copying and key matching above .99. One
layer: at most .12 and 2.00 2.13 2.22 nats. Without all of layer 0: .10 .10 .09 and 3.21 3.21 3.11 nats. The
single ablation that hurts most (prefix .43 .25 .36) is that of the head with the largest previous-token score
(.44 .52 .49); the role is shared, so no single one need break the circuit.
"""

import functools

import pytest

import vesalius as vs
from vesalius.data.repeated import repeated_random_tokens
from vesalius.methods.circuits.induction_heads import induction_heads
from vesalius.metrics import offset_attention, token_losses
from vesalius.testbed import induction_checkpoints

LENGTH = 16
STEPS = (0, 100, 200, 300, 400)


@functools.cache
def trained(n_layers: int, seed: int, last: int = 400) -> dict[int, vs.Model]:
    return induction_checkpoints(sorted({*STEPS, last}), n_layers=n_layers, seed=seed)


def measured(model: vs.Model) -> tuple[float, float]:
    """Largest prefix score of any head, and the loss on the repetition after its first token."""
    ids = repeated_random_tokens(model, length=LENGTH, batch=64, seed=7)
    with vs.record(model, "pattern@*") as acts:
        losses = token_losses(model.logits(ids), ids)[:, 1 - LENGTH :]
    prefix = max(
        offset_attention(pattern, LENGTH - 1, first=LENGTH + 1).mean(0).max().item()
        for pattern in acts.values()
    )
    return prefix, losses.mean().item()


def without(model: vs.Model, heads: list[int]) -> tuple[float, float]:
    with vs.intervene(model, {f"z@0[{head}:{head + 1}]": vs.zero() for head in heads}):
        return measured(model)


def assert_emergence(seed: int) -> None:
    course = {step: measured(model) for step, model in trained(2, seed).items()}
    assert course[100][0] <= 0.15 and course[400][0] >= 0.55
    assert course[100][1] > 2.8 and course[400][1] < 0.5
    assert max(measured(model)[0] for model in trained(1, seed).values()) <= 0.15
    assert measured(trained(1, seed)[400])[1] > 1.8


def assert_built_on_layer_0(model: vs.Model) -> None:
    prefix, loss = without(model, [0, 1, 2, 3])
    assert prefix <= 0.15 and loss >= 2.8
    assert min(without(model, [head])[0] for head in range(4)) > prefix


def test_two_layers_learn_induction_and_one_layer_does_not():
    assert_emergence(seed=0)


def test_the_tool_finds_the_heads_once_they_are_there():
    assert induction_heads(trained(2, 0)[100], length=LENGTH).found == []
    found = induction_heads(trained(2, 0)[400], length=LENGTH)
    assert found.found and all(layer == 1 for layer, _ in found.found)
    assert found.copying[tuple(found.found[0])] > 0.9 and found.matching[tuple(found.found[0])] > 0.9
    assert induction_heads(trained(1, 0)[400], length=LENGTH).found == []


def test_induction_is_built_on_layer_0():
    assert_built_on_layer_0(trained(2, 0)[400])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_seed_learns_it(seed):
    assert_emergence(seed)
    last = trained(2, seed, last=1500)[1500]
    assert measured(last)[0] >= 0.8
    assert_built_on_layer_0(last)
