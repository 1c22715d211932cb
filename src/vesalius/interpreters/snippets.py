"""What an interpreter is shown and asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vesalius.errors import VesaliusError

LEVELS = 10
"""Activations are told as 0 to 9."""


class Nonsense(VesaliusError):
    """An answer that is none, after it was asked for as often as allowed."""


class Unreachable(VesaliusError):
    """Nobody answers any more."""


@dataclass(frozen=True)
class Snippet:
    """A few tokens and how active a feature is on each, 0 to 9."""

    tokens: tuple[str, ...]
    levels: tuple[int, ...]

    def marked(self, marks: Sequence[bool]) -> str:
        """The text with the marked tokens in « »."""
        return "".join(
            f"«{token}»" if mark else token for token, mark in zip(self.tokens, marks, strict=True)
        )


@dataclass(frozen=True)
class Explained:
    """What the explanation of one feature is made from."""

    snippets: tuple[Snippet, ...]
    promoted: tuple[str, ...] = ()
    """The tokens that it makes likeliest, where the way to the logits is known."""
    suppressed: tuple[str, ...] = ()


@runtime_checkable
class Interpreter(Protocol):
    """Explains, and answers from an explanation. Every answer may raise Nonsense, or Unreachable."""

    @property
    def name(self) -> str: ...
    def explain(self, shown: Explained) -> str: ...
    def simulate(self, explanation: str, tokens: Sequence[Sequence[str]]) -> list[list[float]]:
        """How active each token of each snippet would be, 0 to 9."""
        ...

    def detect(self, explanation: str, tokens: Sequence[Sequence[str]]) -> list[bool]:
        """Whether the feature would be active anywhere in each snippet."""
        ...

    def fuzz(self, explanation: str, snippets: Sequence[tuple[Sequence[str], Sequence[bool]]]) -> list[bool]:
        """Whether the marked tokens of each snippet are those on which it is active."""
        ...

    def promotes(self, explanation: str, tokens: Sequence[str]) -> list[bool]:
        """Whether the feature would make each token likelier."""
        ...
