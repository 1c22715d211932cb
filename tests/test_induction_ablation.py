import pytest

from vesalius.errors import VesaliusError
from vesalius.methods.circuits.induction_ablation import induction_ablation
from vesalius.testbed import handwritten_induction, random_attn


def test_the_induction_head_is_built_on_the_previous_token_head():
    result = induction_ablation(handwritten_induction(), length=24, batch=4)
    assert result.head == [1, 0] and [row[:2] for row in result.composers["K"]] == [[0, 0]]
    rows = {row["label"]: row for row in result.rows}
    assert rows["nothing"]["prefix"] > 0.999 and rows["all composers"]["prefix"] < 0.1
    assert rows["random others"]["prefix"] > 0.999 and rows["all composers"]["loss"] > 3
    assert result.headlines()[0].evidence


def test_random_networks_have_no_circuit_to_break():
    results = [
        induction_ablation(random_attn(seed=seed), length=20, batch=4, seed=seed) for seed in range(10)
    ]
    assert sum(bool(result.headlines()[0].evidence) for result in results) <= 1


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(VesaliusError, match=r"head '0\.1' is not LAYER\.HEAD with a layer from 1 to 1"):
        induction_ablation(random_attn(), head="0.1")
