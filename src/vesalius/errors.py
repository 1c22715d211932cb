"""The one exception Vesalius raises for what a person can put right."""

from collections.abc import Iterable
from difflib import get_close_matches


class VesaliusError(Exception):
    """One sentence: what was given, what was expected, the nearest valid thing."""


def nearest(word: str, options: Iterable[str], n: int = 3) -> str:
    """A hint naming the options closest to `word`, or an empty string if none is close.

    >>> nearest("blocks.0.atn", ["blocks.0.attn", "unembed"])
    '; the nearest is blocks.0.attn'
    """
    close = get_close_matches(word, list(options), n=n, cutoff=0.5)
    return f"; the nearest is {', '.join(close)}" if close else ""
