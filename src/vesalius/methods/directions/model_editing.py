"""Model editing: weights changed by a rank-one diff, and what it does where it should and where it should not.

Two edits (`vesalius.weights.weight_edits`): a direction that nothing writes any more (Arditi et al. 2024,
arXiv 2406.11717), and an association given to one MLP (ROME: Meng et al. 2022, arXiv 2202.05262). Measured are

1. the effect on the target: how much less likely a token becomes where it is what comes next, over what happens to it
   elsewhere; or how much likelier it becomes at the end of the prompts that are to say it, in nats;
2. what else changes: the divergence of the next-token distribution at all other places of a text, in nats;
3. both again for edits of equal norm in random directions, and the first at as many places drawn at random.

The default target is chosen on one half of the text and measured on the other, so that luck does not count.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene
from vesalius.data.text import sample_rows
from vesalius.dictionaries.probe import ProbeDictionary
from vesalius.edits import project_out
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise, kl
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.weight_diff import LowRank, WeightDiff
from vesalius.weights.weight_edits import (
    key_of,
    second_moment,
    value_for,
    with_association,
    without_direction,
)

ENOUGH = 4
"""Times that a token has to come next to be a target."""
BATCH = 16
SHUFFLES = 64


@dataclass(frozen=True)
class ModelEditing(Result):
    """Effects in nats; controls are edits of equal norm in random directions."""

    edit: str
    target: str
    effect: float
    """How much less likely the target became where it comes next (over elsewhere), or likelier where it was wanted."""
    interval: list
    """Over rows of the text, or over prompts; empty for one."""
    random_effects: Float[Tensor, " draw"]
    elsewhere: Float[Tensor, " shuffle"]
    """The effect of the edit itself if the target came next in other places; empty for an association."""
    off_target: float
    """Mean divergence at other places."""
    off_target_interval: list
    random_off_target: Float[Tensor, " draw"]
    prompts: list
    """`[prompt, probability before, after]`."""
    left: dict
    """Parameter → what is added to it is left @ right."""
    right: dict
    about: dict
    choices: dict

    @property
    def chance(self) -> float:
        """What an edit in a random direction, or the edit at random places, passes once in a hundred times."""
        controls = [part for part in (self.random_effects, self.elsewhere) if len(part)]
        return max(family_wise(part.abs()[:, None]) for part in controls)

    def diff(self, model: Model) -> WeightDiff:
        """The edit as a diff of the network that it was made for. Raises VesaliusError for another network."""
        if model.hash != self.provenance.get("model_hash", model.hash):
            raise VesaliusError(
                f"the edit was made for {self.provenance['model']} with the weights "
                f"{self.provenance['model_hash'][:12]}; {model.name} has {model.hash[:12]}"
            )
        factors = {name: (self.left[name], self.right[name]) for name in self.left}
        return WeightDiff.of_factors(model, factors, about=self.about)

    def headlines(self) -> list[Headline]:
        ablated = self.edit == "without_direction"
        claim = (
            f"nats that '{self.target}' loses where it comes next, over elsewhere"
            if ablated
            else f"nats that '{self.target}' gains at the end of the prompts"
        )
        low, high = self.interval or (self.effect, self.effect)
        interval = (low, high) if self.interval else None
        evidence = low > max(self.chance, 0.0)
        note = (
            f"{self.choices['described']}; control: random directions of equal norm"
            + ", random places" * ablated
        )
        off = tuple(self.off_target_interval)
        return [
            Headline(claim, self.effect, self.chance, interval, evidence, note),
            Headline(
                "divergence elsewhere, nats",
                self.off_target,
                self.random_off_target.mean().item(),
                off,
                note=f"{len(self.left)} parameters, rank 1",
            ),
        ]

    def figure(self) -> Figure:
        names = ["the edit", "random directions"]
        spread = [
            (part.min().item(), part.max().item()) for part in (self.random_effects, self.random_off_target)
        ]
        drawn = [
            figures.bars(
                names,
                {"on the target": [self.effect, self.random_effects.mean().item()]},
                title=f"Effect on '{self.target}'",
                y_label="nats",
                intervals={"on the target": [tuple(self.interval) or (self.effect, self.effect), spread[0]]},
                caption="Of random directions, the range of the draws.",
            ),
            figures.bars(
                names,
                {"elsewhere": [self.off_target, self.random_off_target.mean().item()]},
                title="What else changes",
                y_label="divergence, nats",
                intervals={"elsewhere": [tuple(self.off_target_interval), spread[1]]},
            ),
        ]
        if self.prompts:
            rows = [
                [prompt, before, {"text": f"{after:.3g}", "value": after}]
                for prompt, before, after in self.prompts
            ]
            drawn.append(
                figures.table(["prompt", "before", "after"], rows, title=f"Probability of '{self.target}'")
            )
        return figures.group(drawn, title=f"Model editing: {self.choices['described']}")


@method(needs=("tokens", "attention", "causal", "embedding"))
def model_editing(
    model: Model,
    *,
    edit: Literal["without_direction", "with_association"] = "without_direction",
    direction: str | Path = "",
    target: str = "",
    prompts: list[str] | None = None,
    subject: str = "",
    layer: int | None = None,
    text: str | None = None,
    contexts: int = 24,
    length: int = 48,
    draws: int = 8,
    steps: int = 25,
    to: str | Path = "",
    seed: int = 0,
) -> ModelEditing:
    """A rank-one edit of the weights: its effect on a target, what else it changes, and random edits beside it.

    `without_direction` takes away a `direction` of the residual stream: a unit, as `resid_post@3[12]`, a saved probe,
    `FILE.safetensors[CLASS]`, or (empty) that of the unembedding of `target`, which by itself is the token that the
    network foresees best. `with_association` makes the `prompts`, in all of which `subject` occurs, end in `target`, by
    the MLP of one `layer` (None: the middle one) at the subject's last token. `text` is what else is watched (None:
    the held-out sample, or random tokens repeated). The edit is written as a diff of weights if `to` names a file.
    Raises VesaliusError for an edit that lacks what it needs.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = model_editing(handwritten_induction(), target="#7", draws=4)
    >>> result.effect > result.chance
    True
    """
    length = min(length, model.n_ctx)
    ids, described = sample_rows(model, text, length=length, limit=contexts, seed=seed)
    before = _log_probabilities(model, ids)
    generator = torch.Generator().manual_seed(seed)
    if edit == "with_association":
        wanted = _wanted(model, prompts, subject, target)
        at = model.n_layers // 2 if layer is None else layer
        if at == model.n_layers - 1 and any(
            place < len(row) - 1 for row, place in zip(wanted.rows, wanted.places)
        ):
            raise VesaliusError(
                f"after the MLP of layer {at}, the last, nothing reads the subject from the end; name a layer before it"
            )
        diff, others = _associations(model, at, wanted, ids, draws, steps, generator)
        edited = diff.apply(model)
        gains = torch.tensor([_gain(model, edited, row, wanted.target) for row in wanted.rows])
        effect = gains.mean().item()
        interval = list(bootstrap(gains, seed=seed)) if len(gains) > 1 else []
        after = _log_probabilities(edited, ids)
        places = torch.ones_like(ids[:, 1:], dtype=torch.bool)
        random_effects, random_kl = [], []
        for other in progress(others, "random directions"):
            changed = other.apply(model)
            random_effects.append(
                sum(_gain(model, changed, row, wanted.target) for row in wanted.rows) / len(wanted.rows)
            )
            random_kl.append(_divergence(before, _log_probabilities(changed, ids), places)[0])
        shown = [
            [
                prompt,
                *(
                    network.logits(row[None])[0, -1].softmax(-1)[wanted.target].item()
                    for network in (model, edited)
                ),
            ]
            for prompt, row in zip(wanted.prompts, wanted.rows)
        ]
        name, what = model.strings([wanted.target])[0], f"an association in the MLP of layer {at}"
        elsewhere = torch.zeros(0)
    else:
        half = len(ids) // 2
        token = model.token(target) if target else _foreseen(before[:half], ids[:half], ids[half:])
        vector, label = _direction(model, direction, token)
        diff = without_direction(model, vector, label=label)
        after = _log_probabilities(diff.apply(model), ids)
        measured = slice(half, None) if not target else slice(None)
        before, after, rows = before[measured], after[measured], ids[measured]
        places = rows[:, 1:] != token
        losses = _loss_of(before, after, rows, token)
        effect, interval = losses.mean().item(), list(bootstrap(losses, seed=seed))
        elsewhere = torch.stack(
            [_loss_of(before, after, one, token).mean() for one in _dealt(rows, generator)]
        )
        random_effects, random_kl = [], []
        for vector in progress(
            list(torch.randn(draws, model.d_model, generator=generator)), "random directions"
        ):
            with intervene(model, {site: project_out(vector) for site in _writes(model)}):
                changed = _log_probabilities(model, rows)
            random_effects.append(_loss_of(before, changed, rows, token).mean().item())
            random_kl.append(_divergence(before, changed, places)[0])
        shown, name, what = [], model.strings([token])[0], f"nothing writes {label}"
    off_target, per_row = _divergence(before, after, places)
    if to:
        diff.save(to)
    factors = {key: change for key, change in diff.changes.items() if isinstance(change, LowRank)}
    return ModelEditing(
        edit=edit,
        target=name,
        effect=effect,
        interval=interval,
        random_effects=torch.tensor(random_effects),
        elsewhere=elsewhere,
        off_target=off_target,
        off_target_interval=list(bootstrap(per_row, seed=seed)),
        random_off_target=torch.tensor(random_kl),
        prompts=shown,
        left={key: change.left.cpu() for key, change in factors.items()},
        right={key: change.right.cpu() for key, change in factors.items()},
        about=diff.about,
        choices={"described": what, "text": described, "child_hash": diff.child_hash},
    )


@dataclass(frozen=True)
class _Wanted:
    """Prompts that are to end in the target, and the last token of the subject in each."""

    prompts: list[str]
    rows: list[Int[Tensor, " _"]]
    places: list[int]
    target: int


def _wanted(model: Model, prompts: list[str] | None, subject: str, target: str) -> _Wanted:
    if not prompts or not subject or not target:
        raise VesaliusError(
            "an association needs prompts, the subject that occurs in them, and the target they end in"
        )
    if not (model.has("W_out") and "neurons" in model.architecture.sites):
        raise VesaliusError(f"{model.name} has no MLP to give an association to")
    lacking = [prompt for prompt in prompts if subject not in prompt]
    if lacking:
        raise VesaliusError(f"the subject '{subject}' does not occur in '{lacking[0]}'")
    rows = [model.tokens(prompt)[0] for prompt in prompts]
    until = [model.tokens(prompt[: prompt.index(subject) + len(subject)])[0] for prompt in prompts]
    for prompt, row, start in zip(prompts, rows, until):
        if not torch.equal(row[: len(start)], start):
            raise VesaliusError(f"the subject '{subject}' does not end where a token ends in '{prompt}'")
    return _Wanted(prompts, rows, [len(start) - 1 for start in until], model.token(target))


def _associations(
    model: Model,
    layer: int,
    wanted: _Wanted,
    ids: Int[Tensor, "row pos"],
    draws: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[WeightDiff, list[WeightDiff]]:
    """The edit, and edits of the same key that move its value as far in random directions."""
    key = key_of(model, layer, wanted.rows, wanted.places)
    moment = second_moment(model, layer, ids)
    own = key @ model.weight("W_out", layer) + model.weight("b_out", layer)
    value = value_for(model, layer, rows=wanted.rows, places=wanted.places, target=wanted.target, steps=steps)
    label = f"{wanted.prompts[0]} → {model.strings([wanted.target])[0]}"
    drawn = torch.randn(draws, model.d_model, generator=generator).to(own)
    random = own + drawn * ((value - own).norm() / drawn.norm(dim=1, keepdim=True))
    made = [
        with_association(model, layer, key=key, value=one, second_moment=moment, label=label)
        for one in (value, *random)
    ]
    return made[0], made[1:]


def _gain(model: Model, edited: Model, row: Int[Tensor, " pos"], target: int) -> float:
    before, after = (one.logits(row[None])[0, -1].log_softmax(-1)[target] for one in (model, edited))
    return (after - before).item()


def _direction(model: Model, given: str | Path, token: int) -> tuple[Float[Tensor, " d_model"], str]:
    """A direction of the residual stream, and what it is in words."""
    if not str(given):
        column = model.weight("W_U")[:, token].float()
        return column - model.weight("W_U").float().mean(1), f"what says '{model.strings([token])[0]}'"
    named = re.fullmatch(r"(.+\.safetensors)(?:\[(.+)\])?", str(given))
    if named is None:
        feature = model.feature(str(given))
        return feature.vector(model.d_model).float(), str(feature)
    probe = ProbeDictionary.load(named[1])
    feature = probe[named[2]] if named[2] else probe[len(probe) - 1]
    return feature.vector(model.d_model).float(), str(feature)


def _writes(model: Model) -> Sequence[str]:
    """The sites that write to the residual stream."""
    sites = model.architecture.sites
    return ["embed", *(f"{role}@*" for role in ("attn_out", "mlp_out") if role in sites)]


def _log_probabilities(model: Model, ids: Int[Tensor, "row _"]) -> Float[Tensor, "row pos d_vocab"]:
    """Of the next token, at every place that has one."""
    return torch.cat([model.logits(part).float().log_softmax(-1)[:, :-1].cpu() for part in ids.split(BATCH)])


def _foreseen(
    logs: Float[Tensor, "half pos d_vocab"], ids: Int[Tensor, "half _"], others: Int[Tensor, "rest _"]
) -> int:
    """The token that is more likely where it comes next than elsewhere, by most, of those in enough rows of both."""
    following, d_vocab = ids[:, 1:].cpu(), logs.shape[-1]
    rows = torch.stack([_rows_with(part, d_vocab) for part in (ids, others)]).amin(0)
    known = (rows >= min(ENOUGH, int(rows.max()))).nonzero()[:, 0].tolist()
    ahead = [
        logs[following == token][:, token].mean() - logs[following != token][:, token].mean()
        for token in known
    ]
    return known[int(torch.stack(ahead).nan_to_num(-torch.inf).argmax())]


def _rows_with(ids: Int[Tensor, "row _"], d_vocab: int) -> Int[Tensor, " d_vocab"]:
    """In how many rows each token comes next."""
    seen = torch.zeros(len(ids), d_vocab, dtype=torch.bool)
    return seen.scatter_(1, ids[:, 1:].cpu().long(), True).sum(0)


def _dealt(ids: Int[Tensor, "row pos"], generator: torch.Generator) -> list[Int[Tensor, "row pos"]]:
    """The rows with what comes next dealt to other places."""
    dealt = []
    for _ in range(SHUFFLES):
        order = torch.randperm(ids[:, 1:].numel(), generator=generator)
        following = ids[:, 1:].cpu().flatten()[order].view_as(ids[:, 1:])
        dealt.append(torch.cat([ids[:, :1].cpu(), following], 1))
    return dealt


def _loss_of(
    before: Float[Tensor, "row pos d_vocab"],
    after: Float[Tensor, "row pos d_vocab"],
    ids: Int[Tensor, "row _"],
    token: int,
) -> Float[Tensor, " having"]:
    """By row, nats that the token loses where it comes next, less what it loses elsewhere on average.

    Raises VesaliusError if it never comes next.
    """
    lost = (before - after)[..., token]
    next_is = ids[:, 1:].cpu() == token
    having = next_is.any(1)
    if not having.any():
        raise VesaliusError(
            "the target never comes next in the text; name another, or give a text in which it does"
        )
    elsewhere = lost[~next_is].mean()
    return ((lost * next_is).sum(1) / next_is.sum(1).clamp(min=1))[having] - elsewhere


def _divergence(
    before: Float[Tensor, "row pos d_vocab"],
    after: Float[Tensor, "row pos d_vocab"],
    places: Tensor,
) -> tuple[float, Float[Tensor, " row"]]:
    """The mean over the places, and of each row."""
    counts = places.cpu().float()
    per_row = (kl(before, after) * counts).sum(1) / counts.sum(1).clamp(min=1)
    return per_row.mean().item(), per_row
