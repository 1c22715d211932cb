"""What stands in for activations, and what becomes of the network's output then.

A reconstruction is judged by what the network still does with it (Bricken et al. 2023, Towards Monosemanticity,
transformer-circuits.pub/2023/monosemantic-features). Beside a dictionary stand what needs no training and takes as many
active numbers: the neurons farthest from their mean, the first principal components, and random directions, as many as
there are latents; and the two ablations, to the mean and to zero. A first pass over the activations tells their moments
and the dictionary's sparsity (`survey_of`), a second one measures (`measured`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import intervene, record
from vesalius.dictionaries import Codes, Dictionary, SparseDictionary, rows_of, shaped_like
from vesalius.latents.inputs import (
    Batch,
    Inputs,
    activations_of,
    coded,
    reads,
    reconstructed,
    rows_at,
    where,
)
from vesalius.metrics import require_finite
from vesalius.model import Model

BASELINES = ("neurons", "components", "random")
QUANTITIES = ("loss", "kl", "agreement", "error", "active")

Acts = Mapping[str, Float[Tensor, "row width"]]
"""Rows by the site they were read at."""
Replacement = Callable[[Acts], tuple[Float[Tensor, "row width"], Int[Tensor, " row"]]]
"""What stands in for the activations, and how many numbers each row took."""


class Survey(NamedTuple):
    """What a first pass over the activations tells: the moments of what is replaced, and how often latents fire."""

    rows: int
    active: Int[Tensor, " latent"]
    k: int
    """How many numbers a stand-in may use: the dictionary's L0, rounded."""
    mean: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"]


def survey_of(model: Model, dictionary: Dictionary, inputs: Inputs) -> Survey:
    rows, active, total, squares = 0, torch.zeros(0), torch.zeros(0), torch.zeros(0)
    for part in inputs.batches(model, batch=8):
        codes, target = _read(model, dictionary, part)
        target = target.double()
        if not rows:
            width = target.shape[1]
            active = torch.zeros(codes.width, dtype=torch.long)
            total, squares = target.new_zeros(width), target.new_zeros(width, width)
        rows += len(codes)
        active += codes.latents.cpu().bincount(minlength=codes.width)
        total += target.sum(0)
        squares += target.T @ target
    mean = total / rows
    k = min(max(1, round(active.sum().item() / rows)), len(mean))
    return Survey(rows, active, k, mean.float(), (squares / rows - mean.outer(mean)).float())


def _read(model: Model, dictionary: Dictionary, part: Batch) -> tuple[Codes, Float[Tensor, "row width"]]:
    """Codes, and the rows they are to reconstruct."""
    source, site = reads(dictionary), dictionary.site
    with record(model, {source, site}, stop=True) as acts:
        model(part.inputs)
    target = require_finite(rows_at(acts[site], part).rows, site)
    return coded(dictionary, rows_at(acts[source], part).rows), target


def replacements_of(
    model: Model, dictionaries: Mapping[str, Dictionary], inputs: Inputs, survey: Survey, *, seed: int
) -> dict[str, Replacement]:
    """What is put in the place of the activations, by name; the baselines are as sparse as the first dictionary."""
    first = next(iter(dictionaries.values()))
    mean, k, site = survey.mean, survey.k, first.site
    components = torch.linalg.eigh(survey.covariance).eigenvectors[:, -k:]

    def by(dictionary: Dictionary) -> Replacement:
        def replacement(acts: Acts) -> tuple[Tensor, Tensor]:
            source = acts[reads(dictionary)]
            return reconstructed(dictionary, source), coded(dictionary, source).counts

        return replacement

    def neurons(acts: Acts) -> tuple[Tensor, Tensor]:
        centred = acts[site] - mean
        largest = centred.abs().topk(k, sorted=False).indices
        made = torch.zeros_like(centred).scatter_(1, largest, centred.gather(1, largest))
        return mean + made, torch.full((len(made),), k)

    def projected(acts: Acts) -> tuple[Tensor, Tensor]:
        made = (acts[site] - mean) @ components @ components.T
        return mean + made, torch.full((len(made),), k)

    def constant(row: Tensor) -> Replacement:
        return lambda acts: (row.expand_as(acts[site]), torch.zeros(len(acts[site])))

    return {name: by(dictionary) for name, dictionary in dictionaries.items()} | {
        "neurons": neurons,
        "components": projected,
        "random": by(_random(model, first, inputs, survey, seed=seed)),
        "mean": constant(mean),
        "zero": constant(torch.zeros_like(mean)),
    }


def measured(
    model: Model, part: Batch, sites: set[str], site: str, replacements: Mapping[str, Replacement]
) -> Float[Tensor, "example condition quantity"]:
    """QUANTITIES of each example, of the original and then of each replacement at `site`, in means over what counts.

    `loss` is that of the next token in nats (0 where outputs are no next tokens), `kl` the divergence from the
    original output, `agreement` the share of the same likeliest outcome, `error` the squared distance of a row,
    `active` how many numbers it took. `sites` are all that the replacements read.
    """
    with record(model, sites) as acts:
        before = model.logits(part.inputs).float().log_softmax(-1)
    value, rows = acts[site], {name: rows_of(acts[name]).float() for name in sites}
    counts = part.counted(value)
    kept = torch.ones(len(rows[site]), dtype=torch.bool) if counts is None else counts.flatten()

    def quantities(after: Tensor, made: Tensor, active: Tensor) -> Float[Tensor, "example quantity"]:
        of_rows = (made - rows[site]).square().sum(1), active.to(made)
        means = [_by_example(of, kept, len(value)) for of in of_rows]
        return torch.stack([*_outputs(model, before, after, part), *means], 1)

    columns = [quantities(before, rows[site], (rows[site] != 0).sum(1))]
    for replacement in replacements.values():
        made, active = replacement(rows)
        edit = where(counts, lambda _, made=made: shaped_like(made, value).to(value))
        with intervene(model, {site: edit}):
            after = model.logits(part.inputs).float().log_softmax(-1)
        columns.append(quantities(after, made, active))
    return require_finite(torch.stack(columns, 1), "the output with a reconstruction").cpu()


def predicts(model: Model) -> bool:
    """Whether outputs are next tokens."""
    return {"tokens", "causal"} <= model.kinds


def _random(
    model: Model, dictionary: Dictionary, inputs: Inputs, survey: Survey, *, seed: int
) -> SparseDictionary:
    """Random unit directions, as many and as sparse, about the mean; one number scales them to the first contexts."""
    drawn = torch.randn(
        len(survey.active), len(survey.mean), generator=torch.Generator().manual_seed(seed + 1)
    ).to(survey.mean)
    directions = drawn / drawn.norm(dim=1, keepdim=True)
    plain = SparseDictionary.of_directions(dictionary.site, directions, k=survey.k)
    about = replace(plain, b_in=survey.mean, b_dec=survey.mean)
    first = next(activations_of(model, dictionary.site, inputs, batch=8)).rows
    wanted, made = first - survey.mean, about.reconstruct(first) - survey.mean
    scale = (wanted * made).sum() / made.square().sum().clamp(min=1e-12)
    return replace(about, W_dec=scale * directions)


def _by_example(values: Float[Tensor, " row"], kept: Tensor, examples: int) -> Float[Tensor, " example"]:
    """Means over the rows of each example that count."""
    weight = kept.to(values).reshape(examples, -1)
    return (values.reshape(examples, -1) * weight).sum(1) / weight.sum(1)


def _outputs(
    model: Model, before: Float[Tensor, "example *pos outcome"], after: Tensor, part: Batch
) -> list[Float[Tensor, " example"]]:
    """Loss of the next token (0 where there is none), divergence from `before`, same likeliest outcome; means."""
    divergence = (before.exp() * (before - after)).sum(-1)
    same = (before.argmax(-1) == after.argmax(-1)).float()
    if part.counts is None or before.dim() == 2:
        each = [quantity.reshape(len(before), -1).mean(1) for quantity in (divergence, same)]
        return [torch.zeros_like(each[0]), *each]
    weight = part.counts.to(before)
    each = [(quantity * weight).sum(1) / weight.sum(1) for quantity in (divergence, same)]
    if not predicts(model):
        return [torch.zeros_like(each[0]), *each]
    ids, weight = part.inputs.to(after.device)[:, 1:, None], weight[:, :-1]
    losses = -after[:, :-1].gather(2, ids)[..., 0]
    return [(losses * weight).sum(1) / weight.sum(1).clamp(min=1), *each]
