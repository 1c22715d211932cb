"""A method's signature is its schema, checked when it is defined and when it is called."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.method import _registry, method, progress, watching
from vesalius.result import Headline, Result
from vesalius.testbed import random_attn


@dataclass(frozen=True)
class Counted(Result):
    count: int

    def headlines(self):
        return [Headline("count", float(self.count))]


@pytest.fixture
def counting():
    @method(needs=("attention",))
    def counting(model: vs.Model, *, times: int = 3, names: list[str] | None = None) -> Counted:
        """Count."""
        assert not torch.is_grad_enabled()
        return Counted(count=sum(1 for _ in progress(range(times), "counting")))

    yield counting
    del _registry["counting"]


def test_provenance_says_what_was_run(counting):
    result = counting(random_attn(n_layers=1), times=2)
    assert result.count == 2
    assert result.provenance["method"] == "counting"
    assert result.provenance["parameters"] == {"times": 2, "names": None}
    assert len(result.provenance["model_hash"]) == 64


def test_progress_is_told_to_whoever_watches(counting):
    told = []
    with watching(lambda *heard: told.append(heard)):
        counting(random_attn(n_layers=1))
    assert told[0] == ("counting", 0, 3)
    assert told[-1] == ("counting", 3, 3)


def test_wrong_calls_are_one_sentence(counting):
    with pytest.raises(VesaliusError, match="nearest is times"):
        counting(random_attn(n_layers=1), time=2)
    with pytest.raises(VesaliusError, match="needs a model with attention"):
        counting(vs.Model(nn.Linear(2, 2)))
    with pytest.raises(VesaliusError, match="expected a Model"):
        counting(nn.Linear(2, 2))


def test_a_signature_that_is_no_schema_is_refused_when_defined():
    with pytest.raises(TypeError, match="layer"):

        @method()
        def careless(model: vs.Model, layer, *, top: int = 3) -> Counted:
            """Careless."""
            return Counted(count=0)
