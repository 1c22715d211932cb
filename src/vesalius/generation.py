"""Text continued token by token, plain or under edits: many prompts at once, with the network's cache if it has one.

Prompts of one length run together, so that nothing is padded and every prompt gets exactly what it would alone.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import Edit, intervene
from vesalius.errors import VesaliusError
from vesalius.model import Model


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[str] | Int[Tensor, "batch pos"],
    *,
    tokens: int = 20,
    edits: Mapping[str, Edit] | None = None,
    on: Literal["all", "prompt", "generated"] = "all",
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that follow each prompt; `edits` steer the prompt's tokens, the generated ones, or all.

    The likeliest token every time at temperature 0, else drawn. Contrastive Activation Addition steers the `generated`
    tokens (Rimsky et al. 2023, arXiv 2312.06681); a network without a cache sees the edits at all positions of every
    forward, so that it offers `all` alone. Raises VesaliusError if prompt and continuation do not fit the context, or
    a logit is NaN or infinite.

    >>> from vesalius.testbed import handwritten_induction
    >>> generate(handwritten_induction(), torch.tensor([[0, 3, 7, 5, 3]]), tokens=2)
    [[7, 5]]
    """
    rows = [row.tolist() for row in prompts] if isinstance(prompts, Tensor) else [
        model.tokens(text)[0].tolist() for text in prompts
    ]  # fmt: skip
    longest = max(map(len, rows)) + tokens
    if longest > model.n_ctx:
        raise VesaliusError(
            f"prompt and continuation are {longest} tokens; {model.name} reads at most {model.n_ctx}"
        )
    cached = "past_key_values" in inspect.signature(model.module.forward).parameters
    if edits and on != "all" and not cached:
        raise VesaliusError(
            f"{model.name} keeps no cache, so its forwards cannot steer {on} tokens alone; expected on='all'"
        )
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = [[] for _ in rows]
    for length in sorted(set(map(len, rows))):
        numbers = [number for number, row in enumerate(rows) if len(row) == length]
        ids = torch.tensor([rows[number] for number in numbers], device=model.device)
        made = _continued(
            model, ids, tokens=tokens, edits=edits or {}, on=on, cached=cached,
            pick=lambda logits: _picked(model, logits, temperature, generator),
        )  # fmt: skip
        for number, row in zip(numbers, made.tolist(), strict=True):
            found[number] = row
    return found


def _continued(
    model: Model,
    ids: Int[Tensor, "batch pos"],
    *,
    tokens: int,
    edits: Mapping[str, Edit],
    on: str,
    cached: bool,
    pick: Callable[[Tensor], Tensor],
) -> Int[Tensor, "batch token"]:
    made, past, shown = [], None, ids
    for _ in range(tokens):
        steering = edits and (on == "all" or (on == "prompt") == (not made))
        with intervene(model, edits) if steering else nullcontext():
            if cached:
                output = model({"input_ids": shown}, past_key_values=past, use_cache=True)
                logits, past = output.logits[:, -1], output.past_key_values
            else:
                logits = _last(model(shown))
        picked = pick(logits)
        made.append(picked)
        shown = picked if cached else torch.cat([shown, picked], 1)
    return torch.cat(made, 1)


def _last(output: Any) -> Float[Tensor, "batch d_vocab"]:
    return (output if isinstance(output, Tensor) else output[0])[:, -1]


def _picked(
    model: Model, logits: Float[Tensor, "batch d_vocab"], temperature: float, generator: torch.Generator
) -> Int[Tensor, "batch 1"]:
    if not logits.isfinite().all():
        raise VesaliusError(f"{model.name} computes NaN or infinite logits; a smaller strength may help")
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    chances = (logits.float().cpu() / temperature).softmax(-1)
    return torch.multinomial(chances, 1, generator=generator).to(logits.device)
