"""Logit weights are the derivative of the logits by a latent, the final norm's scale held."""

import pytest
import torch

from vesalius.access import intervene, record
from vesalius.errors import VesaliusError
from vesalius.testbed import random_attn
from vesalius.weights.logit_weights import logit_weights
from vesalius.weights.readout import norm_scale, readout_sites


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("site, width", [("neurons@1", 24), ("mlp_out@1", 16), ("resid_post@1", 16)])
def test_they_equal_the_gradient_with_the_norm_frozen(norm, site, width):
    model = random_attn(d_model=16, d_vocab=11, d_mlp=24, norm=norm, seed=3)
    generator = torch.Generator().manual_seed(0)
    if norm:
        with torch.no_grad():
            model.module.norm.weight.uniform_(0.5, 2, generator=generator)
    directions = torch.randn(5, width, generator=generator)
    ids = torch.randint(1, 11, (1, 7), generator=generator)
    with record(model, list(readout_sites(model))) as acts, torch.no_grad():
        model(ids)
    before, after = (acts[name][0, -1] for name in readout_sites(model))
    scale = norm_scale(model, before, after)

    expected = []
    for direction in directions:
        f = torch.zeros((), requires_grad=True)
        with (
            intervene(model, {site: lambda x, d=direction, f=f: x + f * d}),
            record(model, readout_sites(model)[0], gradients=True) as moved,
        ):
            model(ids)
        stream = moved[readout_sites(model)[0]][0, -1]
        if norm:
            stream = (stream - stream.mean()) * scale * model.weight("norm_final")
        logits = stream @ model.weight("W_U")
        rows = [torch.autograd.grad(logit, f, retain_graph=True)[0] for logit in logits]
        expected.append(torch.stack(rows))
    found = logit_weights(model, site, directions) * scale
    expected = torch.stack(expected)
    torch.testing.assert_close(
        found, expected - expected.median(1, keepdim=True).values, rtol=1e-4, atol=1e-5
    )


def test_a_site_without_a_known_way_is_named():
    with pytest.raises(VesaliusError, match="resid_post@LAYER"):
        logit_weights(random_attn(), "pattern@0", torch.eye(64))
