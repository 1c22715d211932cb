"""The exceptions Vesalius raises: for what a person can put right, and for an analysis that does not apply."""

from collections.abc import Iterable
from difflib import get_close_matches


class VesaliusError(Exception):
    """One sentence: what was given, what was expected, the nearest valid thing."""


class Inapplicable(VesaliusError):
    """An analysis has nothing to say about a model as it is: a dissection skips it, and tells why."""


def nearest(word: str, options: Iterable[str], n: int = 3) -> str:
    """A hint naming the options closest to `word`, or an empty string if none is close.

    >>> nearest("blocks.0.atn", ["blocks.0.attn", "unembed"])
    '; the nearest is blocks.0.attn'
    """
    close = get_close_matches(word, list(options), n=n, cutoff=0.5)
    return f"; the nearest is {', '.join(close)}" if close else ""
