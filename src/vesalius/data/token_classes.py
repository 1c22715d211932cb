"""Classes of tokens that their string alone decides: what can be asked of any network that reads text.

>>> classes_of(" Return")
('word start', 'capitalised')
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor

KEYWORDS = (
    "and|as|assert|break|case|class|const|continue|def|elif|else|enum|except|float|for|from|function|if|import|int|"
    "lambda|let|new|not|null|or|pass|private|public|raise|return|self|static|struct|switch|this|try|var|void|while|"
    "with|yield"
)
CLASSES = {
    "word start": re.compile(r"\s+\w.*", re.DOTALL),
    "capitalised": re.compile(r"\s*[A-Z][a-z].*", re.DOTALL),
    "capitals": re.compile(r"\s*[A-Z]{2,}\s*"),
    "digit": re.compile(r"\s*\d+\s*"),
    "punctuation": re.compile(r"\s*[^\w\s]+\s*"),
    "space": re.compile(r"\s+"),
    "keyword": re.compile(rf"\s*(?:{KEYWORDS})\s*"),
    "vowel": re.compile(r"\s*[aeiouAEIOU].*", re.DOTALL),
}


def is_of(name: str, token: str) -> bool:
    """Whether a token, as `Model.strings` gives it, is of a class."""
    return CLASSES[name].fullmatch(token) is not None


@lru_cache(maxsize=2**17)
def classes_of(token: str) -> tuple[str, ...]:
    """The names of all classes that a token is of."""
    return tuple(name for name in CLASSES if is_of(name, token))


def members(names: Sequence[str], vocabulary: Sequence[str]) -> Bool[Tensor, "class d_vocab"]:
    """Which tokens are of which class."""
    return torch.tensor([[is_of(name, token) for token in vocabulary] for name in names])


def first_letters(vocabulary: Sequence[str]) -> list[str]:
    """The first letter of each token that is a word of Latin letters, in lower case; empty for others.

    >>> first_letters([" Apple", "12", "né"])
    ['a', '', '']
    """
    found = (re.fullmatch(r"\s*([A-Za-z])[A-Za-z]+\s*", token) for token in vocabulary)
    return [match[1].lower() if match else "" for match in found]
