"""The toy transformer: every variant is causal, ignores padding, and keeps positions where they belong."""

import pytest
import torch

from vesalius.architectures.toy import ToyTransformer, init

SHAPE = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 11, "n_ctx": 12}
POSITIONS = ("shortformer", "residual", "rotary")
variants = pytest.mark.parametrize("positions", POSITIONS)


@pytest.fixture
def ids():
    return torch.randint(1, 11, (3, 9), generator=torch.Generator().manual_seed(0))


@variants
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("d_mlp", [0, 24])
def test_shape_rebuilds_the_network(positions, norm, d_mlp, ids):
    model = ToyTransformer(**SHAPE, positions=positions, norm=norm, d_mlp=d_mlp)
    again = ToyTransformer(**model.shape)
    again.load_state_dict(model.state_dict())
    assert model(ids).shape == (3, 9, 11)
    assert torch.equal(model(ids), again(ids))


@variants
def test_the_future_is_not_seen(positions, ids):
    model = ToyTransformer(**SHAPE, positions=positions)
    changed = ids.clone()
    changed[:, 5:] = 0
    assert torch.equal(model(ids)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(ids)[:, 5:], model(changed)[:, 5:])


@variants
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(positions, side, ids):
    model = ToyTransformer(**SHAPE, positions=positions)
    place = slice(3, None) if side == "left" else slice(0, 9)
    padded, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    padded[:, place], mask[:, place] = ids, 1
    logits = model(padded, mask)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, place], model(ids))


def test_shortformer_positions_reach_queries_and_keys_alone(ids):
    model = ToyTransformer(**SHAPE)
    attention, x = model.blocks[0].attn, model.embed(ids)
    q, k, v = attention.qkv(x, model.positions[:9])
    q0, k0, v0 = attention.qkv(x, torch.zeros(9, 16))
    assert torch.equal(v, v0)
    assert not torch.allclose(q, q0)
    assert not torch.allclose(k, k0)


def test_rotary_scores_depend_on_distance_alone():
    model = ToyTransformer(**SHAPE, positions="rotary")
    x = model.embed(torch.full((1, 12), 3))
    place, _ = model.places(torch.zeros(1, 12, dtype=torch.long), None)
    q, k, _ = model.blocks[0].attn.qkv(x, model.shown_to_attention(place))
    scores = q @ k.mT
    for offset in (0, 3):
        diagonal = scores.diagonal(-offset, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal))


def test_the_same_seed_gives_the_same_bits_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    one, two, other = (ToyTransformer(**SHAPE, d_mlp=24, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)
    assert torch.equal(init(other, 3).blocks[1].mlp.up.weight, one.blocks[1].mlp.up.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_errors_say_what_was_given(ids):
    model = ToyTransformer(**SHAPE)
    with pytest.raises(ValueError, match="13 tokens, and this model reads at most 12"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="'absolute'"):
        ToyTransformer(**SHAPE, positions="absolute")
    with pytest.raises(ValueError, match="multiple of n_heads"):
        ToyTransformer(**SHAPE | {"n_heads": 3})
