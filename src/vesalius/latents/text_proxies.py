"""Proxies of what a text is at each token: how much likelier its last tokens are if it is of a kind than in general.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features) compare features with
log P(s | kind) − log P(s), where s is a string that ends at the token and P(s) is the product of its tokens'
frequencies. Of all strings that end there the best one counts, and the empty one is 0, so that a proxy is 0 where
nothing speaks for the kind and a value is in nats of evidence. There are two sorts of kinds:

- an alphabet (`base64`, `DNA`): each of its letters is as likely as the others, any other character 1e-10;
- what a pattern finds (`digits`, `camel case`, scripts by their Unicode blocks, or a regular expression of one's own):
  by Bayes, P(token | kind) / P(token) = P(kind | token) / P(kind), with the share of the token's characters that are
  found for P(kind | token), at least 1e-10, and the mean of these shares over the text for P(kind).
"""

import math
import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError, nearest
from vesalius.model import Model

UNLIKELY = 1e-10
ALPHABETS = {
    "base64": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    "hexadecimal": "0123456789abcdef",
    "DNA": "ACGT",
}
PATTERNS = {
    "digits": r"[0-9]+",
    "capitals": r"\b[A-Z][A-Z_]+\b",
    "camel case": r"\b[A-Z]?[a-z0-9]+(?:[A-Z][a-z0-9]+)+\b",
    "snake case": r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b",
    "indentation": r"\n[ \t]+",
    "quoted": r"\"[^\"\n]*\"|'[^'\n]*'",
    "brackets": r"[()\[\]{}]+",
    "Arabic": r"[\u0600-\u06ff]+",
    "Chinese": r"[\u4e00-\u9fff]+",
    "Cyrillic": r"[\u0400-\u04ff]+",
    "Greek": r"[\u0370-\u03ff]+",
    "Hebrew": r"[\u0590-\u05ff]+",
    "Korean": r"[\uac00-\ud7af]+",
}
USUAL = ("digits", "capitals", "camel case", "snake case", "indentation", "quoted", "base64")
"""Those that English, and Python, hold."""


def text_proxies(
    model: Model, ids: Int[Tensor, "row pos"], kinds: Sequence[str]
) -> Float[Tensor, "kind row pos"]:
    """The proxy of each kind at every token of some rows, in nats; frequencies are those of the rows.

    A kind is a name of ALPHABETS or PATTERNS, or `NAME=REGULAR EXPRESSION`. BOS belongs to no string. Raises
    VesaliusError for a kind that is not known, and for an expression that is none.

    >>> from vesalius.testbed import random_attn
    >>> model = random_attn(d_vocab=12, n_ctx=8)
    >>> text_proxies(model, torch.tensor([[3, 3, 5, 6]]), ["threes=#3"]).mul(10).round()
    tensor([[[ 7., 14.,  0.,  0.]]])
    """
    texts = model.strings(list(range(model.d_vocab)))
    words = ["" if token == model.bos else text for token, text in enumerate(texts)]
    counts = ids.flatten().bincount(minlength=model.d_vocab).double()
    if model.bos is not None:
        counts[model.bos] = 0
    frequency = (counts / counts.sum().clamp(min=1)).clamp(min=UNLIKELY).log()
    found = []
    for kind in kinds:
        if kind in ALPHABETS:
            evidence = _of_alphabet(words, ALPHABETS[kind])[ids] - frequency[ids]
        else:
            shares = _shares(ids, words, _compiled(kind))
            overall = shares.sum() / counts.sum().clamp(min=1)
            evidence = shares.clamp(min=UNLIKELY).log() - math.log(max(overall.item(), UNLIKELY))
            evidence = torch.where(overall > 0, evidence, -math.inf)
        bos = ids == (-1 if model.bos is None else model.bos)
        found.append(_best_ending(evidence.masked_fill(bos, -math.inf)))
    return torch.stack(found).float()


def kind_name(kind: str) -> str:
    """What a kind is called: the part before `=` of one's own."""
    return kind.partition("=")[0]


def _of_alphabet(words: Sequence[str], alphabet: str) -> Float[Tensor, " token"]:
    """Log probability of each token if every character is drawn from an alphabet."""
    letter, letters = -math.log(len(alphabet)), set(alphabet)
    unlikely = math.log(UNLIKELY)
    return torch.tensor(
        [sum(letter if one in letters else unlikely for one in word) for word in words], dtype=torch.float64
    )


def _compiled(kind: str) -> Callable[[str], list[tuple[int, int]]]:
    """Where a kind is found in a text, as spans of characters."""
    name, own, expression = kind.partition("=")
    if not own and name not in PATTERNS:
        known = [*ALPHABETS, *PATTERNS]
        raise VesaliusError(
            f"'{kind}' is no kind of text; expected {', '.join(known)} or NAME=REGULAR EXPRESSION{nearest(kind, known)}"
        )
    try:
        pattern = re.compile(expression if own else PATTERNS[name])
    except re.error as error:
        raise VesaliusError(f"'{expression}' is no regular expression ({error})") from None
    return lambda text: [match.span() for match in pattern.finditer(text)]


def _shares(
    ids: Int[Tensor, "row pos"],
    words: list[str],
    spans: Callable[[str], list[tuple[int, int]]],
) -> Float[Tensor, "row pos"]:
    """Of each token, the share of its characters that are found in the text of its row."""
    shares = torch.zeros(ids.shape, dtype=torch.float64)
    for number, row in enumerate(ids.tolist()):
        sizes = torch.tensor([len(words[token]) for token in row])
        text = "".join(words[token] for token in row)
        marked = torch.zeros(len(text) + 1, dtype=torch.float64)
        for first, end in spans(text):
            marked[first + 1 : end + 1] = 1.0
        until, ends = marked.cumsum(0), sizes.cumsum(0)
        shares[number] = (until[ends] - until[ends - sizes]) / sizes.clamp(min=1)
    return shares


def _best_ending(evidence: Float[Tensor, "row pos"]) -> Float[Tensor, "row pos"]:
    """At each token the largest sum of evidence of a string that ends there, 0 for the empty one."""
    best, columns = torch.zeros(len(evidence), dtype=evidence.dtype), []
    for column in evidence.T:
        best = (best + column).clamp(min=0)
        columns.append(best)
    return torch.stack(columns, 1)
