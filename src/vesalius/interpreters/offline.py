"""Statistics of tokens as an explanation: what a feature does on a token, after a token, and on a kind of tokens.

No model of language is asked, so an explanation is the same on every computer and costs nothing. It is a list of
means, each shrunk towards 0 as if one more example had been silent:

    on " the" 7, " of" 3; then " of" " the" 9; after " in" 2; kind "digit" 4; promotes " end", " way"

A token is predicted by the longest of these that knows it: the pair with the token before it, the token, the token
before it, its kind; else 0. What follows a token, and a kind, are means over different tokens, of which there must be
a few, so that none speaks for all. What a feature does with meaning or with distant tokens is not seen, so scores are a
lower bound on those of a reader who understands.
"""

import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vesalius.data.token_classes import CLASSES, classes_of
from vesalius.interpreters.snippets import Explained

LEAST = 1.0
"""The level from which a token counts as active."""
DIFFERENT = 4
"""Tokens from which something is said of others."""
KEPT = 40
"""Of each list, those of the highest mean."""
WORD = r'"(?:[^"\\]|\\.)*"'


@dataclass(frozen=True)
class TokenStatistics:
    """The interpreter that is always there."""

    name: str = "offline"

    def explain(self, shown: Explained) -> str:
        on, then = _Means(), _Means()
        for snippet in shown.snippets:
            for before, token, level in zip(("", *snippet.tokens), snippet.tokens, snippet.levels):
                on.add(token, level)
                if before:
                    then.add((before, token), level)
        known, following = on.shrunk(), then.shrunk()
        after, kind = _Means(), _Means()
        for (before, _), mean in following.items():
            after.add(before, mean)
        for token, mean in known.items():
            for name in classes_of(token):
                kind.add(name, mean)
        pairs = then.shrunk(least=2)
        pairs = {pair: mean for pair, mean in pairs.items() if abs(mean - known[pair[1]]) >= 1}
        afters, kinds = after.shrunk(least=DIFFERENT), kind.shrunk(least=DIFFERENT)
        parts = [
            _told("on", known),
            _told("then", pairs),
            _told("after", {before: mean for before, mean in afters.items() if mean >= LEAST}),
            _told("kind", {name: mean for name, mean in kinds.items() if mean >= LEAST}),
        ]
        if shown.promoted:
            parts.append("promotes " + ", ".join(json.dumps(token) for token in shown.promoted))
        return "; ".join(part for part in parts if part)

    def simulate(self, explanation: str, tokens: Sequence[Sequence[str]]) -> list[list[float]]:
        read = _read(explanation)
        return [
            [read.level(before, token) for before, token in zip(["", *snippet], snippet)]
            for snippet in tokens
        ]

    def detect(self, explanation: str, tokens: Sequence[Sequence[str]]) -> list[bool]:
        return [max(levels) >= LEAST for levels in self.simulate(explanation, tokens)]

    def fuzz(self, explanation: str, snippets: Sequence[tuple[Sequence[str], Sequence[bool]]]) -> list[bool]:
        found = self.simulate(explanation, [tokens for tokens, _ in snippets])
        answers = []
        for levels, (_, marks) in zip(found, snippets):
            marked = [level for level, mark in zip(levels, marks) if mark]
            others = [level for level, mark in zip(levels, marks) if not mark]
            answers.append(_mean(marked) > max(_mean(others), LEAST / 2))
        return answers

    def promotes(self, explanation: str, tokens: Sequence[str]) -> list[bool]:
        promoted = _read(explanation).promoted
        return [_resembles(token, promoted) for token in tokens]


class _Means:
    """Of levels by what they were seen with."""

    def __init__(self) -> None:
        self.seen: dict[Hashable, list[float]] = defaultdict(list)

    def add(self, key: Hashable, level: float) -> None:
        self.seen[key].append(level)

    def shrunk(self, *, least: int = 1) -> dict:
        return {key: sum(of) / (len(of) + 1) for key, of in self.seen.items() if len(of) >= least}


@dataclass(frozen=True)
class _Read:
    """An explanation taken at its word."""

    on: dict[str, float]
    then: dict[tuple[str, str], float]
    after: dict[str, float]
    kind: dict[str, float]
    promoted: tuple[str, ...]

    def level(self, before: str, token: str) -> float:
        if (before, token) in self.then:
            return self.then[before, token]
        if token in self.on:
            return self.on[token]
        if before in self.after:
            return self.after[before]
        return max((self.kind.get(name, 0.0) for name in classes_of(token)), default=0.0)


@lru_cache(maxsize=1024)
def _read(explanation: str) -> _Read:
    number = r"(\d+(?:\.\d+)?)"
    lists = {}
    for name in ("on", "then", "after", "kind", "promotes"):
        word = rf"{WORD}(?: {WORD})?(?: \d+(?:\.\d+)?)?"
        match = re.search(rf"(?:^|; ){name} ({word}(?:, {word})*)", explanation)
        lists[name] = match[1] if match else ""
    single = {
        name: {json.loads(word): float(mean) for word, mean in re.findall(rf"({WORD}) {number}", lists[name])}
        for name in ("on", "after", "kind")
    }
    pairs = re.findall(rf"({WORD}) ({WORD}) {number}", lists["then"])
    return _Read(
        single["on"],
        {(json.loads(first), json.loads(second)): float(mean) for first, second, mean in pairs},
        single["after"],
        {name: mean for name, mean in single["kind"].items() if name in CLASSES},
        tuple(json.loads(word) for word in re.findall(WORD, lists["promotes"])),
    )


def _told(name: str, means: dict) -> str:
    """The largest and the zeros: that a token is silent is worth saying where its kind is not."""
    ordered = sorted(means.items(), key=lambda pair: (-pair[1], str(pair[0])))
    loud = [pair for pair in ordered if pair[1] >= 0.05][:KEPT]
    silent = [pair for pair in ordered if pair[1] < 0.05] if name in ("on", "then") else []
    told = [f"{_quoted(key)} {mean:.1f}".removesuffix(".0") for key, mean in loud + silent]
    return f"{name} " + ", ".join(told) if told else ""


def _quoted(key: str | tuple[str, ...]) -> str:
    return json.dumps(key) if isinstance(key, str) else " ".join(map(json.dumps, key))


def _resembles(token: str, promoted: Iterable[str]) -> bool:
    """Whether a token begins or ends with three letters as one of some does, or is of the same kinds as most."""
    promoted = tuple(promoted)
    bare = token.strip().lower()
    others = [other.strip().lower() for other in promoted]
    if len(bare) >= 3 and any(bare[:3] == other[:3] or bare[-3:] == other[-3:] for other in others):
        return True
    alike = sum(_written(token) == _written(other) for other in promoted)
    return bool(promoted) and 2 * alike > len(promoted)


def _written(token: str) -> set[str]:
    return {*classes_of(token)} - {"vowel"}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
