"""What the next tokens lose when one latent is taken away: its part of the activations subtracted in a whole context.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features): f(x)·d is taken off
at every position of the context and the network runs again. The change of each token's log probability is what the
latent did for it: above 0 it helped. After the last attention a position's change reaches its own prediction alone,
and only the unembedding is run again, of the positions where the latent fires; elsewhere the whole network is, with a
batch of contexts of different latents at a time.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import intervene
from vesalius.dictionaries import Dictionary
from vesalius.latents.inputs import Inputs, coded, reads
from vesalius.metrics import token_losses
from vesalius.model import Model
from vesalius.site import Site
from vesalius.weights.logit_weights import written
from vesalius.weights.readout import unembedded

BATCH = 32
PREDICTIONS = 2**23
"""Logits held at once."""


@torch.no_grad()
def ablation_effects(
    model: Model,
    dictionary: Dictionary,
    inputs: Inputs,
    *,
    latents: Int[Tensor, " entry"],
    examples: Int[Tensor, " entry"],
    positions: Int[Tensor, " entry"],
    windows: Float[Tensor, "entry offset"],
    directions: Float[Tensor, "entry width"],
) -> Float[Tensor, "entry offset"]:
    """Nats that each token of a window around `positions` gains from the latent, in the context of an example.

    `windows` are the latent's values there, `directions` what it writes for each unit of them. NaN where no token is
    predicted, or by a position beyond the window.
    """
    reach = torch.arange(windows.shape[1]) - windows.shape[1] // 2
    places = positions[:, None] + reach
    effects = torch.full(windows.shape, torch.nan)
    if not len(latents):
        return effects
    for these, found in (_last if _is_last(model, dictionary.site) else _whole)(
        model, dictionary, inputs, latents, examples, places, windows.float(), directions
    ):
        effects[these] = found
    return effects


def _is_last(model: Model, site: str) -> bool:
    """Whether what is written here reaches the logits of its own position alone, and linearly up to the final norm."""
    address = Site.parse(site)
    if address.role not in ("neurons", "mlp_out", "resid_post") or address.layers is None:
        return False
    folded = address.role != "resid_post" and model.has("norm2_post")
    return address.layer_numbers(model.n_layers) == [model.n_layers - 1] and not folded


def _last(
    model: Model,
    dictionary: Dictionary,
    inputs: Inputs,
    latents: Tensor,
    examples: Tensor,
    places: Tensor,
    windows: Tensor,
    directions: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    assert inputs.ids is not None
    streams = written(model, dictionary.site, directions)
    order = examples.argsort(stable=True)
    per_context = examples.bincount(minlength=len(inputs))
    for contexts, entries in zip(
        torch.arange(len(inputs)).split(BATCH),
        order.split([int(part.sum()) for part in per_context.split(BATCH)]),
    ):
        if not len(entries):
            continue
        ids = inputs.ids[contexts]
        stream = model.value_at(f"resid_post@{model.n_layers - 1}", ids.to(model.device)).float().cpu()
        before = -token_losses(unembedded(model, stream), ids)
        context, place = examples[entries] - contexts[0], places[entries]
        known = (place >= 1) & (place < ids.shape[1])
        known[:, 0] = False
        found = torch.where(known, 0.0, torch.nan)
        value = torch.nn.functional.pad(windows[entries], (1, 0))[:, :-1]  # of the position that predicts
        entry, offset = (known & (value != 0)).nonzero(as_tuple=True)
        for some in torch.arange(len(entry)).split(max(1, PREDICTIONS // model.d_vocab)):
            which, where = entry[some], offset[some]
            row, token = context[which], place[which, where]
            taken = value[which, where, None] * streams[entries[which]]
            logits = unembedded(model, stream[row, token - 1] - taken)
            after = logits.log_softmax(-1).gather(1, ids[row, token, None])[:, 0]
            found[which, where] = before[row, token - 1] - after
        yield entries, found


def _whole(
    model: Model,
    dictionary: Dictionary,
    inputs: Inputs,
    latents: Tensor,
    examples: Tensor,
    places: Tensor,
    windows: Tensor,
    directions: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    assert inputs.ids is not None and inputs.counts is not None
    for entries in places[:, -1].argsort(stable=True).split(BATCH):
        ids = inputs.ids[examples[entries]]
        if "causal" in model.kinds:  # what comes later changes nothing
            ids = ids[:, : int(places[entries, -1].max()) + 1]
        given = ids.to(model.device)
        acts = model.value_at(reads(dictionary), given)
        codes = coded(dictionary, acts.flatten(0, 1))
        fires = (
            codes.latents == latents[entries].to(codes.latents).repeat_interleave(ids.shape[1])[codes.rows]
        )
        values = codes.values.new_zeros(ids.numel()).index_add(0, codes.rows[fires], codes.values[fires])
        values = values.view(ids.shape) * inputs.counts[examples[entries], : ids.shape[1]].to(values)
        taken = values[..., None] * directions[entries, None].to(values)
        before = token_losses(model.logits(given).float(), given)
        with intervene(model, {dictionary.site: lambda value, taken=taken: value - taken.to(value)}):
            after = token_losses(model.logits(given).float(), given)
        gained = torch.nn.functional.pad(after - before, (1, 0), value=torch.nan).cpu()
        place = places[entries]
        inside = (place >= 0) & (place < ids.shape[1])
        yield entries, torch.where(inside, gained.gather(1, place.clamp(0, ids.shape[1] - 1)), torch.nan)
