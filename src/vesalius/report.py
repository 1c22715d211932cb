"""A study as one HTML file that opens anywhere, offline: claims with their controls, then each analysis.

Every function takes words and numbers and returns a fragment of HTML, in which all that people typed is
escaped. Figures travel as JSON and are drawn by the bundle when the file is opened.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from vesalius.figures.figure import page, placeholder
from vesalius.files import whole
from vesalius.method import methods
from vesalius.result import Headline, Result
from vesalius.study import Entry, Study

MARKS = {"evidence": "●", "no evidence": "○", "descriptive": "–"}


def write_report(study: Study, path: str | Path) -> Path:
    """Write the whole study as one self-contained page at `path`, replacing it whole or not at all."""
    title = study.title or "Study"
    body = "\n".join(
        [
            _contents(study),
            "<main>",
            _opening(study, title),
            _summary(study),
            *(_section(number, entry, study.result(entry)) for number, entry in enumerate(study.entries, 1)),
            _skipped(study),
            "</main>",
        ]
    )
    path = Path(path)
    with whole(path) as partial:
        partial.write_text(page(body, title=title), encoding="utf-8")
    return path


def _contents(study: Study) -> str:
    rows = [_link("summary", "Summary")]
    for number, entry in enumerate(study.entries, 1):
        marks = "".join(MARKS[h.verdict] for h in entry.headlines if h.evidence is not None)
        rows.append(_link(_anchor(number), f"{number} {_spoken(entry.name)}", marks))
    if study.skipped:
        rows.append(_link("skipped", "Not made"))
    toggle = '<button type="button" class="vesalius-theme" hidden>light / dark</button>'
    return f'<nav aria-label="Contents"><p>Contents</p><ol>{"".join(rows)}</ol>{toggle}</nav>'


def _link(anchor: str, words: str, marks: str = "") -> str:
    verdicts = f' <span class="marks" aria-hidden="true">{marks}</span>' if marks else ""
    return f'<li><a href="#{anchor}">{escape(words)}</a>{verdicts}</li>'


def _opening(study: Study, title: str) -> str:
    return f"<header><h1>{escape(title)}</h1>{_prose(study.text)}{_card(study.card)}</header>"


def _card(card: dict[str, Any] | None) -> str:
    if card is None:
        return ""
    plain = {name: value for name, value in card.items() if name not in ("shape", "hash")}
    facts = {**plain, **card["shape"], "weights, sha256": card["hash"]}
    return f'<section class="card" aria-label="The model"><h2>The model</h2>{_facts(facts)}</section>'


def _summary(study: Study) -> str:
    every = [headline for entry in study.entries for headline in entry.headlines]
    counts = {verdict: sum(h.verdict == verdict for h in every) for verdict in MARKS}
    told = (
        f"{len(study.entries)} analyses made {len(every)} statements: {counts['evidence']} stand against "
        f"their control, {counts['no evidence']} do not, and {counts['descriptive']} only describe."
    )
    rows = []
    for number, entry in enumerate(study.entries, 1):
        name = f'<a href="#{_anchor(number)}">{escape(_spoken(entry.name))}</a>'
        first = f'<th scope="row" rowspan="{len(entry.headlines)}">{name}</th>'
        rows += [_row(h, first if place == 0 else "") for place, h in enumerate(entry.headlines)]
    key = " ".join(_verdict(verdict) for verdict in MARKS)
    explained = (
        "The control is the same statistic where nothing should be found, such as a network of the same "
        "shape with random weights. Intervals are over the sample that the analysis names."
    )
    return (
        f'<section id="summary"><h2>Summary</h2><p>{told}</p>{_table(rows, analysis=True)}'
        f'<p class="small">{key} {explained}</p></section>'
    )


def _section(number: int, entry: Entry, result: Result) -> str:
    method = methods().get(entry.name)
    about = f'<p class="about">{_coded(method.headline)}</p>' if method else ""
    said = _prose(entry.text) if not method or entry.text != method.headline else ""
    claims = "".join(f"<li>{escape(claim)}</li>" for claim in entry.claims)
    title = f'<span class="number">{number}</span> {escape(_spoken(entry.name))}'
    return "\n".join(
        [
            f'<section id="{_anchor(number)}"><h2>{title}</h2>',
            about + said + (f"<ul>{claims}</ul>" if claims else ""),
            _table([_row(headline, "") for headline in entry.headlines], analysis=False),
            _choices(entry, result),
            placeholder(result.figure()),
            _provenance(entry),
            "</section>",
        ]
    )


def _table(rows: Iterable[str], *, analysis: bool) -> str:
    columns = [*(["Analysis"] if analysis else []), "Statement", "Value", "Interval", "Control", "Verdict"]
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table class="claims">{body}</table></div>'


def _row(headline: Headline, first: str) -> str:
    note = f'<span class="note">{escape(headline.note)}</span>' if headline.note else ""
    interval = "" if headline.interval is None else f"[{', '.join(map(_number, headline.interval))}]"
    control = "" if headline.control is None else _number(headline.control)
    figures = (f'<td class="figure">{words}</td>' for words in (_number(headline.value), interval, control))
    claim, verdict = escape(headline.claim), _verdict(headline.verdict)
    return f"<tr>{first}<td>{claim}{note}</td>{''.join(figures)}<td>{verdict}</td></tr>"


def _verdict(verdict: str) -> str:
    return f'<span class="verdict" data-verdict="{verdict}">{MARKS[verdict]} {verdict}</span>'


def _choices(entry: Entry, result: Result) -> str:
    """The parameters of the method, and the words in which the result tells how it was done."""
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    told = {name: value for name, value in values.items() if isinstance(value, str)}
    chosen = entry.provenance.get("parameters", {}) | told | values.get("choices", {})
    return f'<div class="choices"><h3>Choices</h3>{_facts(chosen)}</div>' if chosen else ""


def _facts(facts: dict[str, Any]) -> str:
    known = [(escape(name), _number(value)) for name, value in facts.items() if value is not None]
    pairs = (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in known)
    return f"<dl>{''.join(pairs)}</dl>"


def _provenance(entry: Entry) -> str:
    provenance = entry.provenance
    again = ""
    if "method" in provenance and "model" in provenance:
        given = "".join(f", {name}={value!r}" for name, value in provenance.get("parameters", {}).items())
        again = f"vs.{provenance['method']}(vs.load({provenance['model']!r}){given})"
    details = json.dumps(provenance, indent=1, ensure_ascii=False)
    return (
        f"<details><summary>Provenance, and how to run it again</summary><pre>{escape(again)}</pre>"
        f"<p>Saved in the study's folder as <code>{escape(entry.folder)}</code>.</p>"
        f"<pre>{escape(details)}</pre></details>"
    )


def _skipped(study: Study) -> str:
    if not study.skipped:
        return ""
    reasons = [(escape(_spoken(name)), escape(reason)) for name, reason in study.skipped.items()]
    rows = "".join(f"<div><dt>{name}</dt><dd>{reason}</dd></div>" for name, reason in reasons)
    return f'<section id="skipped"><h2>Not made</h2><dl class="skipped">{rows}</dl></section>'


def _prose(text: str) -> str:
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph.strip())


def _coded(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _number(value: Any) -> str:
    """A value as a reader wants it: four significant digits, a true minus sign."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(map(_number, value)) or "none"
    return escape(str(value))


def _anchor(number: int) -> str:
    return f"analysis-{number}"


def _spoken(name: str) -> str:
    return name.replace("_", " ").capitalize()
