"""Prompts of many lengths: their tokens within a template, what the network holds at one place of each, and how
likely it finds an answer.

Prompts are sorted by length and run in batches padded on the right without a mask, which a causal network's earlier
positions cannot see; a forward ends at the last site that is asked for, so that no logits are computed in vain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import record, sites_of
from vesalius.data.concepts import Question
from vesalius.data.pairs import TEMPLATES
from vesalius.errors import VesaliusError
from vesalius.model import Model

Rows = list[list[int]]
BATCH = 64
"""How many answers are judged at once."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Questions as token rows, padded on the right: for each, the prompt with one answer and with the other."""

    ids: Int[Tensor, "answer pos"]
    starts: list[int]
    ends: list[int]
    prompts: list[int]
    """The number of the prompt each row belongs to."""
    signs: list[int]
    texts: list[str]
    """The prompts."""


def token_rows(model: Model, texts: Sequence[str], *, template: str = "") -> Rows:
    """The tokens of texts that stand within one template.

    Raises VesaliusError if what the template says before or after the text becomes other tokens in some of them, so
    that one position would not mean the same everywhere, or if a text does not fit the context.
    """
    rows = [model.tokens(text)[0].tolist() for text in texts]
    before, _, after = TEMPLATES.get(template or "plain", template).partition("{text}")
    before = before.rstrip()  # a space belongs to the word that follows
    if before and "{concept}" not in before:
        begun = model.tokens(before)[0].tolist()
        for text, row in zip(texts, rows, strict=True):
            if row[: len(begun)] != begun:
                raise VesaliusError(
                    f"the beginning of the template, {before[-20:]!r}, becomes other tokens before "
                    f"{text[len(before) :][:12]!r} than alone; end it where a word ends"
                )
    if after and len({row[-1] for row in rows}) > 1:
        raise VesaliusError(
            f"the end of the template, {after[-20:]!r}, becomes other tokens after some of the texts; "
            "begin it with a space or a new line"
        )
    longest = max(map(len, rows))
    if longest > model.n_ctx:
        raise VesaliusError(f"a prompt is {longest} tokens; {model.name} reads at most {model.n_ctx}")
    return rows


def values_at(
    model: Model,
    rows: Rows,
    role: str,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] = (-1,),
    batch: int = 32,
) -> Float[Tensor, "prompt position layer *rest"]:
    """What every layer (or some) holds at some positions of each prompt; -1 is its last token, 0 its first.

    Raises VesaliusError for a position past the end of the shortest prompt.
    """
    shortest = min(map(len, rows))
    for position in positions:
        if not -shortest <= position < shortest:
            raise VesaliusError(
                f"position {position} is past the end of a prompt of {shortest} tokens; "
                f"expected {-shortest} to {shortest - 1}"
            )
    chosen = "*" if layers is None else ",".join(map(str, layers))
    sites = [str(site) for site in sites_of(model, f"{role}@{chosen}")]
    heads = role in ("q", "k", "v", "z")
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: list[Tensor | None] = [None] * len(rows)
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        lengths = torch.tensor([len(rows[number]) for number in numbers])
        with torch.no_grad(), record(model, sites, stop=True) as acts:
            model(padded([rows[number] for number in numbers], fill=model.bos or 0).to(model.device))
        where = torch.stack([lengths + p if p < 0 else torch.full_like(lengths, p) for p in positions], 1)
        row = torch.arange(len(numbers))[:, None]
        taken = [(acts[site].transpose(1, 2) if heads else acts[site])[row, where] for site in sites]
        for number, value in zip(numbers, torch.stack(taken, 2).cpu(), strict=True):
            found[number] = value
    return torch.stack([value for value in found if value is not None])


def padded(rows: Rows, *, fill: int) -> Int[Tensor, "row pos"]:
    """Rows as one tensor, the shorter ones filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def answers_of(model: Model, questions: Sequence[Question]) -> Answers:
    """Questions as rows of tokens.

    Raises VesaliusError if there are none, or an answer changes the tokens of its prompt.
    """
    if not questions or not all(towards and away and towards != away for _, towards, away in questions):
        raise VesaliusError(
            "there are no questions to measure steering on; give prompts, and two answers: towards and away"
        )
    texts = list(dict.fromkeys(prompt for prompt, _, _ in questions))
    rows, starts, prompts, signs = [], [], [], []
    for prompt, towards, away in questions:
        asked = model.tokens(prompt)[0].tolist()
        for sign, answer in ((1, towards), (-1, away)):
            row = model.tokens(prompt + answer)[0].tolist()
            if row[: len(asked)] != asked or len(row) == len(asked):
                raise VesaliusError(
                    f"the answer {answer!r} changes the tokens of the prompt {prompt[-20:]!r}; "
                    "begin it with a space, or end the prompt where a token ends"
                )
            rows.append(row)
            starts.append(len(asked))
            prompts.append(texts.index(prompt))
            signs.append(sign)
    ends = list(map(len, rows))
    return Answers(padded(rows, fill=model.bos or 0), starts, ends, prompts, signs, texts)


def preference(model: Model, answers: Answers, *, batch: int = BATCH) -> Float[Tensor, " prompt"]:
    """log P(answer with the concept) - log P(answer without) in nats, the mean over each prompt's answers.

    Raises VesaliusError if a logit is NaN or infinite.
    """
    total, asked = torch.zeros(len(answers.texts)), torch.zeros(len(answers.texts))
    for start in range(0, len(answers.ids), batch):
        numbers = range(start, min(start + batch, len(answers.ids)))
        longest = max(answers.ends[number] for number in numbers)
        ids = answers.ids[start : numbers.stop, :longest].to(model.device)
        first = min(answers.starts[number] for number in numbers) - 1
        logits = model.logits(ids)[:, first:-1].float().log_softmax(-1)
        chosen = logits.gather(-1, ids[:, first + 1 :, None])[..., 0].cpu()
        for row, number in enumerate(numbers):
            span = chosen[row, answers.starts[number] - 1 - first : answers.ends[number] - 1 - first]
            total[answers.prompts[number]] += answers.signs[number] * span.sum()
            asked[answers.prompts[number]] += answers.signs[number] > 0
    return total / asked
