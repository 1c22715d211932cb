"""Any server that answers as OpenAI's chat completions do, a local one for instance: asked, asked again, remembered.

1. A question that fails for want of a connection, or with 408, 429 or a server's error, is asked again after a pause
   that doubles; after the last the server counts as down, which raises Unreachable.
2. An answer that is not what was asked for, JSON of the right length, is asked for again as often; after the last it
   is Nonsense, which costs one feature and not the run.
3. Every good answer is kept on disk under the hash of its question, so a run that was stopped goes on where it was.

The key, where a server wants one, is read from the environment variable VESALIUS_API_KEY.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vesalius.errors import VesaliusError
from vesalius.files import whole
from vesalius.interpreters.snippets import LEVELS, Explained, Nonsense, Unreachable

T = TypeVar("T")
AGAIN = (408, 429, 500, 502, 503, 504)
PER_QUESTION = 10
"""Snippets in one question."""
ROLE = (
    "You study one feature of a neural network, which is active on some tokens of a text and silent on the others. "
    "Answer with JSON alone, without any other words."
)


@dataclass(frozen=True)
class Endpoint:
    """A model behind an address; `answers` is the folder in which its answers are kept."""

    url: str
    """As it ends before `/chat/completions`."""
    model: str = ""
    answers: Path | None = None
    attempts: int = 4
    pause: float = 1.0
    """Seconds before the second attempt."""
    timeout: float = 120.0

    @property
    def name(self) -> str:
        return f"{self.model or 'default'} at {self.url}"

    def explain(self, shown: Explained) -> str:
        lines = [
            " ".join(
                f"{json.dumps(token, ensure_ascii=False)}:{level}"
                for token, level in zip(one.tokens, one.levels)
            )
            for one in shown.snippets
        ]
        question = (
            "Each line is a piece of text, token by token, with the feature's activation from 0 to 9 after the colon. "
            "Think about what the active tokens and their contexts share, and what silent ones lack.\n\n"
            + "\n".join(lines)
        )
        if shown.promoted:
            question += (
                f"\n\nIt makes these tokens likelier next: {json.dumps(shown.promoted, ensure_ascii=False)}"
            )
        if shown.suppressed:
            question += f"\nAnd these less likely: {json.dumps(shown.suppressed, ensure_ascii=False)}"
        question += '\n\nSay in one sentence what the feature is active on, as {"explanation": "…"}.'
        return self._asked(question, _explanation)

    def simulate(self, explanation: str, tokens: Sequence[Sequence[str]]) -> list[list[float]]:
        """Several snippets at a time."""
        task = (
            "For every token of every text, predict the feature's activation from 0 to 9. Most tokens are 0. "
            'Answer with one list of numbers for each text, in order, as {"levels": [[0, 7, …], …]}.'
        )
        found: list[list[float]] = []
        for texts in _parts(tokens):
            found += self._asked(
                _about(explanation, texts, task), lambda answer, texts=texts: _levels(answer, texts)
            )
        return found

    def detect(self, explanation: str, tokens: Sequence[Sequence[str]]) -> list[bool]:
        return self._judged(explanation, ["".join(text) for text in tokens], "is active anywhere in it")

    def fuzz(self, explanation: str, snippets: Sequence[tuple[Sequence[str], Sequence[bool]]]) -> list[bool]:
        shown = ["".join(f"«{t}»" if mark else t for t, mark in zip(*snippet)) for snippet in snippets]
        return self._judged(explanation, shown, "is active on exactly the tokens in « »")

    def promotes(self, explanation: str, tokens: Sequence[str]) -> list[bool]:
        return self._judged(explanation, list(tokens), "makes this token likelier to come next", part=100)

    def _judged(
        self, explanation: str, texts: list[str], claim: str, *, part: int = PER_QUESTION
    ) -> list[bool]:
        task = (
            f'Say for every text whether the feature {claim}: 1 or 0, in order, as {{"answers": [1, 0, …]}}.'
        )
        found: list[bool] = []
        for some in _parts(texts, part):
            found += self._asked(
                _about(explanation, some, task), lambda answer, some=some: _yes(answer, len(some))
            )
        return found

    def _asked(self, question: str, understood: Callable[[Any], T]) -> T:
        """The answer, from the disk if it was given before."""
        messages = [{"role": "system", "content": ROLE}, {"role": "user", "content": question}]
        kept = self._place(messages)
        if kept is not None and kept.exists():
            return understood(json.loads(kept.read_text(encoding="utf-8")))
        reason = ""
        for attempt in range(self.attempts):
            text = self._answered(messages, temperature=0.3 * attempt)
            try:
                answer = _json(text)
                result = understood(answer)
            except (ValueError, KeyError, TypeError) as error:
                reason = f"{error}"
                continue
            if kept is not None:
                with whole(kept) as fresh:
                    fresh.write_text(json.dumps(answer, ensure_ascii=False), encoding="utf-8")
            return result
        raise Nonsense(f"{self.name} answered {self.attempts} times with what is no answer: {reason}")

    def _answered(self, messages: list[dict[str, str]], *, temperature: float) -> str:
        """What the server says; raises Unreachable if it is down."""
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise VesaliusError("asking an endpoint takes httpx; install vesalius[interpreters]") from error

        key = os.environ.get("VESALIUS_API_KEY", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"messages": messages, "temperature": temperature} | (
            {"model": self.model} if self.model else {}
        )
        address, reason = f"{self.url.rstrip('/')}/chat/completions", ""
        secure = address.startswith("https:")  # certificates are slow to load, and of no use elsewhere
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                reply = httpx.post(address, json=body, headers=headers, timeout=self.timeout, verify=secure)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code in AGAIN:
                reason = f"HTTP {reply.status_code}"
                continue
            if reply.status_code != 200:
                raise Unreachable(f"{self.name} refuses: HTTP {reply.status_code} {reply.text[:200]!r}")
            return _content(reply.text)
        raise Unreachable(
            f"{self.name} does not answer after {self.attempts} attempts ({reason}); what it has answered is kept"
        )

    def _place(self, messages: list[dict[str, str]]) -> Path | None:
        """Where the answer to a question is kept."""
        if self.answers is None:
            return None
        asked = json.dumps([self.url, self.model, messages], ensure_ascii=False)
        return self.answers / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"


def _about(explanation: str, texts: Sequence[Any], task: str) -> str:
    lines = "\n".join(
        f"{number}. {json.dumps(text, ensure_ascii=False)}" for number, text in enumerate(texts, 1)
    )
    return f"The feature: {explanation}\n\n{task}\n\n{lines}"


def _parts(items: Sequence[T], size: int = PER_QUESTION) -> list[Sequence[T]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _content(text: str) -> str:
    """The words of a reply, empty if it has none."""
    try:
        return str(json.loads(text)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""


def _json(text: str) -> Any:
    """The first object in an answer, with or without words around it."""
    match = re.search(r"\{.*\}", text, re.DOTALL)
    if match is None:
        raise ValueError(f"no JSON in {text[:80]!r}")
    return json.loads(match[0])


def _explanation(answer: Any) -> str:
    words = answer["explanation"]
    if not isinstance(words, str) or not words.strip():
        raise ValueError("the explanation is empty")
    return words.strip()


def _levels(answer: Any, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    found = [[float(level) for level in levels] for levels in answer["levels"]]
    if [len(levels) for levels in found] != [len(text) for text in texts]:
        raise ValueError(
            f"{[len(levels) for levels in found]} levels for {[len(text) for text in texts]} tokens"
        )
    if any(not 0 <= level < LEVELS for levels in found for level in levels):
        raise ValueError("a level is not in 0 to 9")
    return found


def _yes(answer: Any, count: int) -> list[bool]:
    found = answer["answers"]
    if len(found) != count or any(one not in (0, 1) for one in found):
        raise ValueError(f"{len(found)} answers to {count} questions, or not 0 and 1")
    return [bool(one) for one in found]
