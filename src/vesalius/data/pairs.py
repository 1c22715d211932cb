"""Contrast pairs: texts that differ in one concept, from the built-in sets or from a file of the reader's own.

A file is JSONL or CSV. Each row is either a pair, `positive` and `negative` with an optional `group`, or a labelled
text, `text` and `label` (1 with the concept, 0 without) with a `group` that says which belong together. Pairs of one
group are never split between what a direction is fitted on and what it is tested on.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from vesalius.data.concepts import CONCEPTS, Question
from vesalius.errors import VesaliusError, nearest

TEMPLATES = {
    "plain": "{text}",
    "concept": "Consider the amount of {concept} in the following text:\n{text}\nThe amount of {concept} is",
}
"""`concept` is the declarative template of Zou et al. 2023 (arXiv 2310.01405) in our words."""
POSITIVE = {"1", "1.0", "true", "positive", "+", "yes"}
NEGATIVE = {"0", "0.0", "-1", "false", "negative", "-", "no"}


@dataclass(frozen=True)
class Pairs:
    """Texts with a concept and texts without, pair by pair; `questions` are what steering by it is measured on."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    groups: tuple[str, ...]
    concept: str = ""
    questions: tuple[Question, ...] = ()
    follow: Question = ("", "", "")

    def __post_init__(self) -> None:
        if not len(self.positive) == len(self.negative) == len(self.groups):
            raise VesaliusError(
                f"the pairs of {self.name} do not align: {len(self.positive)} positive texts, "
                f"{len(self.negative)} negative ones and {len(self.groups)} groups; expected as many of each"
            )
        if len(set(self.groups)) < 4:
            raise VesaliusError(
                f"{self.name} has {len(set(self.groups))} groups of pairs; expected at least 4, to hold some out"
            )

    def __len__(self) -> int:
        return len(self.positive)

    def take(self, count: int, *, seed: int = 0) -> "Pairs":
        """At most `count` pairs, drawn at random, in their order."""
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        kept = sorted(order[:count].tolist())
        columns = (tuple(column[i] for i in kept) for column in (self.positive, self.negative, self.groups))
        return Pairs(self.name, *columns, self.concept, self.questions, self.follow)

    def filled(self, template: str) -> tuple[list[str], list[str]]:
        """Both sides within a template, named or with `{text}` in it. Raises VesaliusError if it has no `{text}`."""
        form = TEMPLATES.get(template or "plain", template)
        if form.count("{text}") != 1:
            raise VesaliusError(
                f"the template '{template}' has {form.count('{text}')} places for a text; expected one {{text}}, "
                f"or a template by name: {', '.join(TEMPLATES)}{nearest(template, TEMPLATES)}"
            )
        form = form.replace("{concept}", self.concept or self.name)
        return tuple(
            [form.replace("{text}", text) for text in side] for side in (self.positive, self.negative)
        )  # type: ignore

    def save(self, path: str | Path) -> Path:
        """Write the pairs as JSONL, a form that `open_pairs` reads."""
        rows = zip(self.positive, self.negative, self.groups, strict=True)
        lines = [
            json.dumps({"positive": p, "negative": n, "group": g}, ensure_ascii=False) for p, n, g in rows
        ]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Path(path)


def open_pairs(given: str | Path) -> Pairs:
    """The pairs of a built-in concept, or of a `.jsonl` or `.csv` file.

    >>> pairs = open_pairs("sentiment")
    >>> len(pairs), pairs.positive[0], pairs.negative[0]
    (96, 'The film was wonderful.', 'The film was terrible.')

    Raises VesaliusError for an unknown name, a damaged row, one class only, or classes that do not pair.
    """
    if str(given) in CONCEPTS:
        concept = CONCEPTS[str(given)]
        positive, negative, groups = zip(*concept.pairs(), strict=True)
        return Pairs(str(given), positive, negative, groups, concept.title, concept.questions, concept.follow)
    path = Path(given).expanduser()
    if path.suffix not in (".jsonl", ".csv") or not path.is_file():
        raise VesaliusError(
            f"'{given}' is neither a file of pairs (.jsonl or .csv) nor a concept; those are "
            f"{', '.join(CONCEPTS)}{nearest(str(given), CONCEPTS)}"
        )
    rows = _rows(path)
    if {"positive", "negative"} <= set(rows[0]):
        return _from_pairs(path.name, rows)
    if {"text", "label"} <= set(rows[0]):
        return _from_labels(path.name, rows)
    raise VesaliusError(
        f"the rows of {path.name} have {', '.join(rows[0]) or 'nothing'}; expected positive and negative, "
        "or text and label"
    )


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file as words, which all have the first row's columns."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = (
            list(csv.DictReader(text.splitlines()))
            if path.suffix == ".csv"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except (json.JSONDecodeError, csv.Error) as error:
        raise VesaliusError(f"{path.name} is damaged: {error}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise VesaliusError(f"{path.name} holds no rows; expected one pair or one labelled text a row")
    for number, row in enumerate(rows, 1):
        lacking = [name for name in rows[0] if row.get(name) is None or str(row[name]).strip() == ""]
        if lacking:
            raise VesaliusError(f"row {number} of {path.name} has no {', '.join(lacking)}; the first row has")
    return [{str(key): str(value) for key, value in row.items()} for row in rows]


def _from_pairs(name: str, rows: list[dict[str, str]]) -> Pairs:
    groups = [row.get("group", str(number)) for number, row in enumerate(rows)]
    return Pairs(
        name, tuple(row["positive"] for row in rows), tuple(row["negative"] for row in rows), tuple(groups)
    )


def _from_labels(name: str, rows: list[dict[str, str]]) -> Pairs:
    """Texts of both labels, paired within their group in the order of the file."""
    sides: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    counts = {True: 0, False: 0}
    for number, row in enumerate(rows, 1):
        label = row["label"].strip().lower()
        if label not in POSITIVE | NEGATIVE:
            raise VesaliusError(f"row {number} of {name} has the label '{row['label']}'; expected 1 or 0")
        positive = label in POSITIVE
        group = row.get("group", str(counts[positive]))
        counts[positive] += 1
        sides[positive].setdefault(group, []).append(row["text"])
    for label, words in ((True, "without"), (False, "with")):
        if not sides[label]:
            raise VesaliusError(
                f"every text of {name} is {words} the concept; expected both labels, 1 and 0, to tell apart"
            )
    for group in sides[True] | sides[False]:
        ours, theirs = (len(sides[label].get(group, [])) for label in (True, False))
        if ours != theirs:
            raise VesaliusError(
                f"the pairs of {name} do not align: group '{group}' has {ours} positive and {theirs} negative "
                "texts; expected as many of each"
            )
    found = [(p, n, g) for g in sides[True] for p, n in zip(sides[True][g], sides[False][g], strict=True)]
    positive, negative, groups = zip(*found, strict=True)
    return Pairs(name, positive, negative, groups)
