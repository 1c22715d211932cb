"""G6, compiled programs: a RASP program computes here what it computes in the compiler's own runtime.

Truth: the program. `reverse` over {1, 2, 3} has four layers of one head and d_model 41, and turns BOS 1 2 3
into BOS 3 2 1; of the two layers of `frac_prevs` only the neurons of the first and the head of the second
have weights. Measured on 200 random inputs each, Tracr 1.0.0: largest difference of the last residual stream
and of the outputs 2e-13 (`reverse`) and 0 (`frac_prevs`). Needs the extra `tracr`, which brings JAX; two
minutes.
"""

import random

import pytest
import torch

import vesalius as vs
from vesalius.testbed.tracr import converted

pytestmark = pytest.mark.slow
compiling = pytest.importorskip(
    "tracr.compiler.compiling", reason="Tracr is not installed (the extra `tracr`)", exc_type=ImportError
)


def compiled(name: str, vocabulary: list) -> tuple:
    """What Tracr makes of a program of its library, and what we make of that."""
    from tracr.compiler.lib import make_frac_prevs, make_reverse
    from tracr.rasp import rasp

    program = {
        "reverse": lambda: make_reverse(rasp.tokens),
        "frac_prevs": lambda: make_frac_prevs(rasp.numerical((rasp.tokens == "x").named("is_x"))),
    }[name]()
    theirs = compiling.compile_rasp_to_model(program, set(vocabulary), 5, compiler_bos="BOS")
    return theirs, converted(theirs, name=name)


@pytest.mark.parametrize(("name", "vocabulary"), [("reverse", [1, 2, 3]), ("frac_prevs", ["x", "y"])])
def test_outputs_are_those_of_the_compiler(name, vocabulary):
    theirs, ours = compiled(name, vocabulary)
    last = f"resid_post@{ours.n_layers - 1}"
    draw, worst = random.Random(0), 0.0
    for _ in range(200):
        text = ["BOS", *draw.choices(vocabulary, k=draw.randint(1, 5))]
        with vs.record(ours, last) as acts:
            logits = ours.logits(torch.tensor([ours.module.ids[token] for token in text]))
        output = theirs.apply(text)
        answer = logits.argmax(-1) if name == "reverse" else logits[..., 0]
        worst = max(
            worst,
            (acts[last] - torch.tensor(output.transformer_output.tolist())).abs().max().item(),
            (answer - torch.tensor(output.unembedded.tolist())).abs().max().item(),
        )
    assert worst <= 1e-5


def test_the_program_can_be_read_off_the_shape_and_the_weights():
    theirs, ours = compiled("reverse", [1, 2, 3])
    assert (ours.n_layers, ours.n_heads, ours.d_model) == (4, 1, 41) and len(ours.module.labels) == 41
    assert theirs.apply(["BOS", 1, 2, 3]).decoded == ["BOS", 3, 2, 1]
    _, ours = compiled("frac_prevs", ["x", "y"])
    used = {(role, layer) for role in ("W_V", "W_in") for layer in (0, 1) if ours.weight(role, layer).any()}
    assert used == {("W_in", 0), ("W_V", 1)}
