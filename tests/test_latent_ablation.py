"""The short way after the last attention gives what running the whole network again gives."""

import torch

from vesalius.dictionaries.sparse import SparseDictionary
from vesalius.latents.ablation import _whole, ablation_effects
from vesalius.latents.examples import LatentExamples
from vesalius.latents.inputs import codes_of, inputs_of
from vesalius.testbed import random_attn


def test_the_short_way_is_the_long_way():
    model = random_attn(n_layers=2, d_model=32, d_mlp=48, d_vocab=41, n_ctx=32, norm=True, seed=2)
    directions = torch.randn(12, 48, generator=torch.Generator().manual_seed(0))
    dictionary = SparseDictionary.of_directions("neurons@1", directions, k=3)
    inputs = inputs_of(model, contexts=6, length=20)
    kept = LatentExamples(12, top=3, window=2, per_interval=1)
    for part in codes_of(model, dictionary, inputs, batch=2):
        kept.add(*part)
    picked = kept.picked()
    latents = torch.repeat_interleave(picked.starts.diff())
    given = picked.examples, picked.positions
    short = ablation_effects(
        model, dictionary, inputs, latents=latents, examples=given[0], positions=given[1],
        windows=picked.windows, directions=directions[latents],
    )  # fmt: skip
    long = torch.full_like(short, torch.nan)
    places = given[1][:, None] + torch.arange(-2, 3)
    for entries, found in _whole(
        model, dictionary, inputs, latents, given[0], places, picked.windows, directions[latents]
    ):
        long[entries] = found
    known = short.isfinite()
    assert known.sum() > 50 and not long[known].isnan().any()
    torch.testing.assert_close(short[known], long[known], rtol=2e-3, atol=2e-3)
    assert short[known].abs().max() > 0.01
