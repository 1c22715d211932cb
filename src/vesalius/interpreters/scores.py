"""How well an explanation predicts: each score from answers on pieces that it was not made from.

- simulation: Spearman's correlation of predicted and true activations over all tokens, 0 for a constant prediction
  (Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features); importance: the same with pieces weighted
  by how often the feature is so active, which is near 0 for any sparse feature;
- detection and fuzzing: balanced accuracy of "is it active here" and "is it active on the marked tokens" (Paulo et al.
  2024, arXiv 2410.13928); logits: accuracy on tokens that it promotes and others. 0.5 is chance.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.interpreters.layout import Layout, Pieces, texts_of
from vesalius.interpreters.snippets import Interpreter

SCORES = ("simulation", "importance", "detection", "fuzzing", "logits")
LOGITS = 50
"""Promoted tokens asked for, of ranks 10 to 60, and as many random ones."""
SHOWN = 10
"""Tokens at each end that an explainer is shown."""


def scores_of(
    interpreter: Interpreter,
    explanation: str,
    layout: Layout,
    values: Float[Tensor, "context pos"],
    tokens: Sequence[Sequence[str]],
    *,
    effects: Float[Tensor, " d_vocab"] | None,
    vocabulary: Sequence[str],
    generator: torch.Generator,
) -> Float[Tensor, " score"]:
    """SCORES of one explanation; NaN where there is nothing to ask, as of logits that are not known (`effects`)."""
    true = layout.scored.of(values)
    predicted = torch.tensor(interpreter.simulate(explanation, texts_of(layout.scored, tokens)))
    weights = layout.scored.weights[:, None].expand_as(true)
    found = [
        spearman(predicted.flatten(), true.flatten()),
        spearman(predicted.flatten(), true.flatten(), weights.flatten()),
        _detection(interpreter, explanation, layout, values, tokens),
        _fuzzing(interpreter, explanation, layout.scored, true, tokens, generator),
        torch.nan if effects is None else _logits(interpreter, explanation, effects, vocabulary, generator),
    ]
    return torch.tensor(found)


def spearman(
    a: Float[Tensor, " sample"], b: Float[Tensor, " sample"], weights: Float[Tensor, " sample"] | None = None
) -> float:
    """Correlation of ranks, ties at their mean rank (Spearman 1904); 0 if either is constant.

    >>> round(spearman(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 5.0, 6.0])), 4)
    1.0
    """
    weight = torch.ones_like(a, dtype=torch.float64) if weights is None else weights.double()
    x, y = (_ranks(part) for part in (a, b))
    x, y = (part - (weight * part).sum() / weight.sum() for part in (x, y))
    spread = (weight * x * x).sum() * (weight * y * y).sum()
    return ((weight * x * y).sum() / spread.sqrt()).item() if spread > 1e-12 else 0.0


def _ranks(values: Float[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[places]


def _detection(
    interpreter: Interpreter,
    explanation: str,
    layout: Layout,
    values: Tensor,
    tokens: Sequence[Sequence[str]],
) -> float:
    active = (layout.scored.of(values) > 0).any(1)
    shown = Pieces(
        *(part[active] for part in (layout.scored.contexts, layout.scored.starts, layout.scored.weights))
    )
    if not len(shown) or not len(layout.silent):
        return torch.nan
    answers = interpreter.detect(explanation, [*texts_of(shown, tokens), *texts_of(layout.silent, tokens)])
    return _balanced(answers[: len(shown)], answers[len(shown) :])


def _fuzzing(
    interpreter: Interpreter,
    explanation: str,
    pieces: Pieces,
    true: Float[Tensor, "piece token"],
    tokens: Sequence[Sequence[str]],
    generator: torch.Generator,
) -> float:
    """Of every second active piece as many other tokens are marked as are active."""
    marked: tuple[list, list] = ([], [])
    for number, (text, active) in enumerate(zip(texts_of(pieces, tokens), true > 0)):
        count = int(active.sum())
        if not 0 < count <= len(text) // 2:
            continue
        silent = (~active).nonzero()[:, 0]
        other = silent[torch.randperm(len(silent), generator=generator)[:count]]
        wrong = torch.zeros_like(active).index_fill(0, other, True)
        marked[number % 2].append((text, (active, wrong)[number % 2].tolist()))
    right, wrong = marked
    if not right or not wrong:
        return torch.nan
    answers = interpreter.fuzz(explanation, [*right, *wrong])
    return _balanced(answers[: len(right)], answers[len(right) :])


def _logits(
    interpreter: Interpreter,
    explanation: str,
    effects: Float[Tensor, " d_vocab"],
    vocabulary: Sequence[str],
    generator: torch.Generator,
) -> float:
    order = effects.argsort(descending=True)
    promoted = order[SHOWN : SHOWN + LOGITS]
    others = order[SHOWN + LOGITS :]
    others = others[torch.randperm(len(others), generator=generator)[:LOGITS]]
    if not len(promoted) or not len(others):
        return torch.nan
    answers = interpreter.promotes(explanation, [*named(promoted, vocabulary), *named(others, vocabulary)])
    return _balanced(answers[: len(promoted)], answers[len(promoted) :])


def named(tokens: Int[Tensor, " token"], vocabulary: Sequence[str]) -> list[str]:
    """Tokens as text."""
    numbers: list[int] = tokens.tolist()
    return [vocabulary[number] for number in numbers]


def _balanced(yes: Sequence[bool], no: Sequence[bool]) -> float:
    """The mean of the shares of right answers to what is true and to what is not."""
    return (sum(yes) / len(yes) + 1 - sum(no) / len(no)) / 2
