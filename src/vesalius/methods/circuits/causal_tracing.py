"""Causal tracing: where, in layers and tokens, a fact about a subject is looked up.

Meng et al. 2022 (Locating and Editing Factual Associations in GPT, arXiv 2202.05262). The embeddings of the subject's
tokens are hidden under noise of three times the sd of all embeddings, so that the network no longer gives the answer;
then one state at a time is put back as it was, at one token, over a window of layers for what attention or an MLP
writes. The effect is the share of what the noise took from the answer's log probability that comes back: 0 nothing, 1
all. The control puts back, at the same place, a state that is as far from the noisy one but in a random direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import intervene, record
from vesalius.data.repeated import repeated_random_tokens
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, family_wise
from vesalius.model import Model
from vesalius.result import Headline, Result

ROLES = {"residual": "resid_post", "attention": "attn_out", "mlp": "mlp_out"}
SDS = 3.0
DRAWS = 8
"""Random states put back in the control."""
LEAST = 0.01
"""Nats that the noise has to take, for shares of it to mean anything."""


@dataclass(frozen=True)
class CausalTracing(Result):
    """Shares of the answer's log probability that come back, means over prompts and draws of noise."""

    effects: dict
    """`residual`, `attention` and `mlp`, each `[layer, pos]` of prompts of one length, else `[layer, place]`."""
    best: dict
    """By kind: the cell with most effect before the last token, its value, interval and chance."""
    clean: float
    """Mean log probability of the answer in nats, as it is."""
    hidden: float
    """And with the subject hidden."""
    lost: list
    """The interval of the difference over prompts and draws."""
    tokens: list
    """Of the first prompt; the subject's are in brackets."""
    choices: dict

    def headlines(self) -> list[Headline]:
        rows = [
            Headline(
                "nats of the answer that hiding the subject takes",
                self.clean - self.hidden,
                0.0,
                tuple(self.lost),
                note=self.choices["prompts"],
            )
        ]
        for kind, cell in self.best.items():
            claim = f"share that comes back with {kind} at layer {cell['layer']}, {cell['token']}"
            evidence = self.lost[0] > LEAST and cell["interval"][0] > max(cell["chance"], 0.0)
            note = "control: random states as far away"
            rows.append(
                Headline(claim, cell["value"], cell["chance"], tuple(cell["interval"]), evidence, note)
            )
        return rows

    def figure(self) -> Figure:
        positions = [f"{number} {token}" for number, token in enumerate(self.tokens)]
        drawn = [
            figures.heatmap(
                effects.T,
                title=f"Put back: {kind}",
                x=[str(layer) for layer in range(len(effects))],
                y=positions,
                x_label="layer" if kind == "residual" else f"middle of {self.choices['window']} layers",
                y_label="token",
                value_label="share that comes back",
            )
            for kind, effects in self.effects.items()
        ]
        return figures.group(drawn, title="Causal tracing", caption="Tokens in brackets are the subject's.")


@method(needs=("tokens", "attention", "causal", "embedding"))
@torch.no_grad()
def causal_tracing(
    model: Model,
    *,
    prompts: list[str] | None = None,
    subjects: list[str] | None = None,
    answers: list[str] | None = None,
    noise: float = SDS,
    window: int | None = None,
    draws: int = 4,
    pairs: int = 6,
    seed: int = 0,
) -> CausalTracing:
    """Which states, put back by layer and token, restore an answer that noise on the subject has hidden.

    `prompts`, the `subjects` in them and the `answers`, one token each, are as many (None: random tokens of which the
    end repeats what the answer followed; the subject is its first occurrence; `pairs` of them). `noise` is in sds
    of all embeddings. `window` is how many layers of attention or MLPs are put back together (None: a fifth of them).
    Prompts must be of one length, with the subject at the same tokens. Raises VesaliusError if they are not.

    >>> from vesalius.testbed import handwritten_induction
    >>> result = causal_tracing(handwritten_induction(), noise=6.0, pairs=8)
    >>> result.best["residual"]["layer"], result.best["residual"]["value"] > 0.9
    (0, True)
    """
    if prompts is None:
        ids, (first, last), truth = _random_prompts(model, pairs, seed)
    else:
        ids, (first, last), truth = _given(model, prompts, subjects or [], answers or [])
    across = window or max(1, model.n_layers // 5)
    roles = {kind: role for kind, role in ROLES.items() if role in model.architecture.sites}
    with record(model, ["embed", *(f"{role}@*" for role in roles.values())]) as acts:
        clean = _answer(model.logits(ids), truth)
    states = {kind: acts.stack(f"{role}@*") for kind, role in roles.items()}
    sd = model.weight("W_E").float().std()
    generator = torch.Generator().manual_seed(seed)
    shape = (draws, len(ids), last - first, model.d_model)
    drawn = (torch.randn(shape, generator=generator) * noise * sd.cpu()).to(acts["embed"])

    given = {kind: [] for kind in roles}
    hidden, control = [], {kind: [] for kind in roles}
    for one in progress(list(drawn), "draws of noise"):
        noisy = acts["embed"].clone()
        noisy[:, first:last] += one
        hide = {"embed": lambda value, noisy=noisy: noisy.to(value)}
        with intervene(model, hide), record(model, [f"{role}@*" for role in roles.values()]) as dark:
            hidden.append(_answer(model.logits(ids), truth))
        for kind, role in roles.items():
            tracer = _Tracer(model, ids, truth, role, states[kind], hide, 1 if kind == "residual" else across)
            given[kind].append(tracer.sweep(first) - hidden[-1][:, None, None])
            if not control[kind]:  # of one draw
                control[kind] = [tracer, dark.stack(f"{role}@*"), hidden[-1]]
    dark_mean = torch.stack(hidden).mean(0)
    total = (clean - dark_mean).mean()
    span = total if total.abs() > LEAST else torch.tensor(LEAST)
    effects, best = {}, {}
    for kind, parts in given.items():
        shares = torch.stack(parts).mean(0) / span  # [prompt, layer, pos]
        effects[kind] = shares.mean(0)
        layer, place = _strongest(effects[kind], first)
        tracer, dark_states, dark_answer = control[kind]
        random = tracer.random(layer, place, dark_states, generator) - dark_answer
        best[kind] = {
            "layer": layer,
            "position": place,
            "token": f"token {place} {_bare(model, ids, place)}",
            "value": effects[kind][layer, place].item(),
            "interval": list(bootstrap(shares[:, layer, place], seed=seed)),
            "chance": family_wise((random.mean(1) / span)[:, None]),
        }
    taken = (clean - torch.stack(hidden)).mean(0)
    names = model.strings(ids[0])
    shown = [f"[{name}]" if first <= place < last else name for place, name in enumerate(names)]
    return CausalTracing(
        effects,
        best,
        clean.mean().item(),
        dark_mean.mean().item(),
        list(bootstrap(taken, seed=seed)),
        shown,
        {
            "prompts": f"{len(ids)} prompts of {ids.shape[1]} tokens, {draws} draws of noise",
            "noise": f"{noise:g} sd of all embeddings, {sd.item():.3g}",
            "window": across,
        },
    )


def _bare(model: Model, ids: Int[Tensor, "prompt pos"], place: int) -> str:
    return repr(model.strings(ids[0])[place])


def _strongest(effects: Float[Tensor, "layer pos"], first: int) -> tuple[int, int]:
    """From the subject on, and before the last token, where everything comes together anyway."""
    layer, place = divmod(int(effects[:, first:-1].argmax()), effects.shape[1] - 1 - first)
    return layer, first + place


@dataclass(frozen=True)
class _Tracer:
    """States of one kind, and the run into which they are put back."""

    model: Model
    ids: Int[Tensor, "prompt pos"]
    truth: Int[Tensor, " prompt"]
    role: str
    states: Float[Tensor, "layer prompt pos d_model"]
    hide: dict
    window: int

    def sweep(self, first: int) -> Float[Tensor, "prompt layer pos"]:
        """The answer's log probability with one place put back; before the subject nothing has changed."""
        layers, _, positions, _ = self.states.shape
        found = torch.zeros(len(self.ids), layers, positions)
        with intervene(self.model, self.hide):
            found[:] = _answer(self.model.logits(self.ids), self.truth)[:, None, None]
        for layer in range(layers):
            for place in range(first, positions):
                found[:, layer, place] = self.put(layer, place, self.states)
        return found

    def put(
        self, layer: int, place: int, states: Float[Tensor, "layer prompt pos d_model"]
    ) -> Float[Tensor, " prompt"]:
        low = max(0, layer - self.window // 2)
        chosen = range(low, min(len(states), low + self.window))
        back = {f"{self.role}@{one}": _placed(place, states[one][:, place]) for one in chosen}
        with intervene(self.model, {**self.hide, **back}):
            return _answer(self.model.logits(self.ids), self.truth)

    def random(
        self,
        layer: int,
        place: int,
        dark: Float[Tensor, "layer prompt pos d_model"],
        generator: torch.Generator,
    ) -> Float[Tensor, "draw prompt"]:
        """The same with states as far from the noisy ones as the clean ones are, in random directions."""
        far = (self.states - dark).norm(dim=-1, keepdim=True)
        found = []
        for _ in range(DRAWS):
            drawn = torch.randn(dark.shape, generator=generator).to(dark)
            found.append(self.put(layer, place, dark + far * drawn / drawn.norm(dim=-1, keepdim=True)))
        return torch.stack(found)


def _placed(place: int, states: Float[Tensor, "prompt d_model"]):
    def edit(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, place] = states.to(value)
        return value

    return edit


def _answer(
    logits: Float[Tensor, "prompt pos d_vocab"], truth: Int[Tensor, " prompt"]
) -> Float[Tensor, " prompt"]:
    """Log probability at the last token."""
    return logits[:, -1].float().log_softmax(-1).cpu().gather(1, truth[:, None])[:, 0]


def _random_prompts(
    model: Model, pairs: int, seed: int
) -> tuple[Int[Tensor, "prompt pos"], tuple[int, int], Int[Tensor, " prompt"]]:
    """[BOS, r, start of r]: the answer is what followed the last token in r, and its first occurrence the subject."""
    length = min(12, (model.n_ctx - 2) * 2 // 3, model.d_vocab - 4)
    half = length // 2
    rows = repeated_random_tokens(model, length=length, batch=pairs, repeats=1, seed=seed)
    begin = rows.shape[1] - length
    ids = torch.cat([rows, rows[:, begin : begin + half]], 1)
    return ids, (begin + half, begin + half + 1), rows[:, begin + half].cpu()


def _given(
    model: Model, prompts: list[str], subjects: Sequence[str], answers: Sequence[str]
) -> tuple[Int[Tensor, "prompt pos"], tuple[int, int], Int[Tensor, " prompt"]]:
    if not len(prompts) == len(subjects) == len(answers):
        raise VesaliusError(
            f"{len(prompts)} prompts, {len(subjects)} subjects and {len(answers)} answers were given; expected as many"
        )
    ids, spans = model.tokens(prompts), set()
    for prompt, subject, row in zip(prompts, subjects, ids):
        if not subject or subject not in prompt:
            raise VesaliusError(f"the subject '{subject}' does not occur in '{prompt}'")
        start = prompt.index(subject)
        before = (
            model.tokens(prompt[:start].rstrip())[0]
            if prompt[:start].strip()
            else row[: int(model.bos is not None)]
        )
        until = model.tokens(prompt[: start + len(subject)])[0]
        if not (torch.equal(row[: len(before)], before) and torch.equal(row[: len(until)], until)):
            raise VesaliusError(
                f"the subject '{subject}' does not begin and end where tokens do in '{prompt}'"
            )
        spans.add((len(before), len(until)))
    if len(spans) > 1:
        raise VesaliusError(f"the subjects are at tokens {sorted(spans)}; expected the same in all prompts")
    return ids, spans.pop(), torch.tensor([model.token(answer) for answer in answers])
