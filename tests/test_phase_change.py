import json

import pytest
import torch
from safetensors.torch import save_file

import vesalius as vs
from vesalius.methods.circuits.phase_change import _half_way, _suddenness, follow, phase_change
from vesalius.testbed import handwritten_induction, random_attn
from vesalius.testbed.induction_task import induction_checkpoints

STEPS = [0, 10, 30, 100, 200, 300, 500, 1000]


def test_a_jump_is_sudden_and_a_slope_is_not():
    jump = torch.tensor([0, 0, 0, 0.1, 0.5, 0.9, 1, 1])
    assert 150 < _half_way(STEPS, jump) < 250
    sudden, steady = _suddenness(STEPS, jump)
    assert sudden == pytest.approx(0.8) and steady < 0.4
    slope = torch.tensor(STEPS).add(1.0).log()
    assert _suddenness(STEPS, slope)[0] == pytest.approx(steady, abs=1e-6)


def test_the_step_at_which_a_circuit_is_put_in_is_found():
    model = handwritten_induction()
    models = [model.random_twin(step) if step < 200 else model for step in STEPS]
    result = follow(model, STEPS, models, text=None, batch=4, seed=0)
    assert 100 < result.change < 200 and result.prefix[-1, 1, 0] > 0.99 and result.chance < 0.3
    assert [headline.evidence for headline in result.headlines()] == [True, None, True, None]


def test_random_networks_change_nothing():
    model = random_attn()
    models = [random_attn(seed=seed) for seed in range(8)]
    result = follow(model, STEPS, models, text=None, batch=4, seed=0)
    assert result.change is None and not any(headline.evidence for headline in result.headlines())


def test_checkpoints_on_disk_are_read(tmp_path):
    names = []
    for step in (0, 5, 9):
        model = random_attn(n_layers=1, d_model=16, n_heads=2, seed=step)
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        save_file(model.module.state_dict(), folder / "model.safetensors")
        (folder / "card.json").write_text(json.dumps({"name": folder.name, "shape": model.module.shape}))
        names.append(str(folder))
    result = phase_change(random_attn(n_layers=1, d_model=16, n_heads=2), checkpoints=names, batch=2)
    assert result.steps == [0, 5, 9]
    with pytest.raises(vs.VesaliusError, match="a change needs three"):
        phase_change(model, checkpoints=names[:2])


@pytest.mark.slow
def test_induction_emerges_between_steps_100_and_350():
    steps = [0, 25, 50, 100, 150, 200, 250, 300, 350, 500, 700, 1000, 1500]
    models = induction_checkpoints(steps)
    result = follow(models[1500], steps, models.values(), text=None, batch=8, seed=0)
    assert 100 <= result.change <= 350 and result.prefix[-1].max() > 0.8
    single = induction_checkpoints(steps[:11], n_layers=1)
    assert follow(single[700], steps[:11], single.values(), text=None, batch=8, seed=0).prefix.max() < 0.15
