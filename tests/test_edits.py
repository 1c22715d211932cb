"""Edits are pure: they keep their input, its shape and its dtype, and do what their name says."""

import pytest
import torch

import vesalius as vs
from vesalius.errors import VesaliusError

VALUE = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
DIRECTION = torch.arange(5.0)
EDITS = {
    "zero": vs.zero(),
    "mean": vs.mean(),
    "mean of a reference": vs.mean(torch.ones(7, 4, 5)),
    "resample": vs.resample(1),
    "set_to": vs.set_to(2.0),
    "patch": vs.patch(torch.ones(3, 4, 5)),
    "freeze": vs.freeze(VALUE.clone()),
    "add": vs.add(DIRECTION, 3.0),
    "project_out": vs.project_out(DIRECTION),
    "clamp": vs.clamp(-0.1, 0.1),
    "at": vs.at([0, 2], vs.zero()),
    "at the last": vs.at(-1, vs.zero()),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_is_pure_and_keeps_shape_and_dtype(name, dtype):
    value = VALUE.to(dtype)
    before = value.clone()
    edited = EDITS[name](value)
    assert edited.shape == value.shape
    assert edited.dtype == dtype
    assert torch.equal(value, before)
    assert edited.data_ptr() != value.data_ptr()


def test_what_each_edit_does():
    assert torch.equal(EDITS["add"](VALUE), VALUE + 3 * DIRECTION)
    assert (EDITS["project_out"](VALUE) @ DIRECTION).abs().max() < 1e-5
    assert torch.allclose(EDITS["mean"](VALUE)[0, 0], VALUE.mean((0, 1)))
    assert torch.equal(EDITS["at"](VALUE)[:, 1], VALUE[:, 1])
    assert EDITS["at"](VALUE)[:, [0, 2]].abs().max() == 0
    assert EDITS["at the last"](VALUE)[:, -1].abs().max() == 0
    assert not torch.equal(EDITS["resample"](VALUE), VALUE)
    assert torch.equal(vs.resample(1)(VALUE), vs.resample(1)(VALUE))


def test_wrong_uses_say_what_was_expected():
    with pytest.raises(VesaliusError, match=r"expected \(3, 4, 5\)"):
        vs.patch(torch.ones(3, 4))(VALUE)
    with pytest.raises(VesaliusError, match="2 or more"):
        vs.resample()(VALUE[:1])
