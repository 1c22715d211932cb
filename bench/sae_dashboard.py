"""Dashboards of every latent against SAEDashboard itself, on the same network, dictionary and tokens.

The network is zoo/mlp-1l, the dictionary its 4,096 shipped latents. Ours is `feature_dashboard` whole, with the effects
on the loss that the other leaves out. SAEDashboard (0.8, with its defaults) computes the activations and all codes
anew for each batch of 256 latents; it is timed for `MEASURED` of the 16 batches, each of which costs the same, over a
HookedTransformer of the same weights. Both must name the same highest value and place, the same number of active
tokens and the same ten likeliest tokens. It wants older packages than the other peers, so it has an environment of its
own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.latents.inputs import inputs_of
from vesalius.methods.features.feature_dashboard import feature_dashboard

BATCH, MEASURED, LENGTH, CONTEXTS, SHOWN = 256, 1, 128, 512, 10
AROUND = 5
"""Tokens shown on each side of one: the other looks at none that have fewer."""


@cache
def network() -> tuple[vs.Model, SparseDictionary, Tensor]:
    model = vs.load("zoo/mlp-1l")
    dictionary = model.dictionary("zoo/mlp-1l/latents-4096")
    assert isinstance(dictionary, SparseDictionary)
    dictionary = replace(dictionary, W_dec=torch.nn.functional.normalize(dictionary.W_dec))  # stored in half
    ids = inputs_of(model, contexts=CONTEXTS, length=LENGTH).ids
    assert ids is not None
    return model, dictionary, ids


def ours() -> Callable[[], Tensor]:
    model, dictionary, _ = network()

    def run() -> Tensor:
        made = feature_dashboard(model, dictionary, contexts=CONTEXTS, length=LENGTH)
        first = made.examples["starts"][: BATCH * MEASURED]
        values, contexts, positions = (
            made.examples[name][first] for name in ("values", "examples", "positions")
        )
        assert made.logits is not None
        likeliest = made.logits["tokens"][: len(first), :SHOWN].T
        found = _numbers(values, made.counts[: len(first)], contexts * LENGTH + positions, likeliest)
        inside = (positions > AROUND) & (positions < LENGTH - AROUND) & (made.counts[: len(first)] > 0)
        return found.where(inside, torch.nan)

    return run


def peer() -> Callable[[], Tensor]:
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    model, coder, ids = _hooked(), _coder(), network()[2]
    asked = SaeVisConfig(
        hook_point="blocks.0.mlp.hook_post",
        features=range(BATCH * MEASURED),
        minibatch_size_features=BATCH,
        ignore_tokens={0},
    )

    def run() -> Tensor:
        made = SaeVisRunner(asked).run(encoder=coder, model=model, tokens=ids).feature_data_dict
        shown = [made[latent] for latent in range(BATCH * MEASURED)]
        highest = [one.sequence_data.seq_group_data[0].seq_data[0] for one in shown]
        return _numbers(
            torch.tensor([max(one.feat_acts) for one in highest]),
            torch.tensor([sum(one.acts_histogram_data.bar_heights) for one in shown]),
            torch.tensor([one.original_index * LENGTH + one.qualifying_token_index for one in highest]),
            torch.tensor([one.logits_table_data.top_token_ids[:SHOWN] for one in shown]).T,
        )

    return run


def _numbers(*parts: Tensor) -> Tensor:
    """What must agree, one column for each latent, each of the size of 1."""
    values, counts, places, tokens = parts
    whole = CONTEXTS * LENGTH
    return torch.cat([torch.stack([values / 8, counts / 2**12, places / whole]), tokens / 2048]).double()


def _hooked():
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig

    model, shape = network()[0], network()[0].shape
    made = HookedSAETransformer(
        HookedTransformerConfig(
            n_layers=1, d_model=shape.d_model, n_ctx=shape.n_ctx, n_heads=shape.n_heads, d_head=shape.d_head,
            d_mlp=shape.d_mlp, d_vocab=shape.d_vocab, act_fn="gelu", normalization_type=None,
            positional_embedding_type="shortformer", device="cpu",
        )
    )  # fmt: skip
    weights = {f"attn.{name}": model.weight(name, 0) for name in ("W_Q", "W_K", "W_V", "W_O")}
    weights |= {f"mlp.{name}": model.weight(name, 0) for name in ("W_in", "b_in", "W_out", "b_out")}
    state = {f"blocks.0.{name}": value for name, value in weights.items()}
    state |= {"embed.W_E": model.weight("W_E"), "unembed.W_U": model.weight("W_U")}
    state["pos_embed.W_pos"] = model.module.get_parameter("positions")
    left = made.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all(
        ".b_" in key or "mask" in key or "IGNORE" in key for key in left.missing_keys
    )
    return made


def _coder():
    from sae_lens import TopKSAE, TopKSAEConfig

    dictionary = network()[1]
    asked = TopKSAEConfig(
        d_in=dictionary.width,
        d_sae=dictionary.latents,
        k=dictionary.k or 0,
        rescale_acts_by_decoder_norm=True,
    )  # all are of length 1; without it the runner, which folds them in, refuses
    sae = TopKSAE(asked)
    state = {name: getattr(dictionary, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    sae.load_state_dict(state, strict=True)
    return sae
