"""Write the pages that are made from the code: one for each analysis, and the table of the benchmarks.

python docs/generate.py
"""

import inspect
import json
import re
import sys
from pathlib import Path

from vesalius.method import Method, methods

DOCS = Path(__file__).parent
MEASURED = DOCS.parent / "bench" / "results.json"


def method_pages(folder: Path) -> list[Path]:
    """One page for each registered analysis, and an index of them all."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, method in methods().items():
        written.append(folder / f"{name}.md")
        written[-1].write_text(method_page(method), encoding="utf-8")
    rows = "\n".join(f"| [{name}]({name}.md) | {method.headline} |" for name, method in methods().items())
    index = folder / "index.md"
    index.write_text(f"# Analyses\n\n| analysis | what is computed |\n|---|---|\n{rows}\n", encoding="utf-8")
    return [*written, index]


def method_page(method: Method) -> str:
    """What an analysis computes, how it is called, its parameters, the module's account of it, and its result."""
    result = inspect.signature(method.function).return_annotation
    module = inspect.getmodule(inspect.unwrap(method.function))
    kind = getattr(module, result if isinstance(result, str) else result.__name__)
    title = method.name.replace("_", " ").capitalize()
    rows = [f"| `{p.name}` | `{_type(p.annotation)}` | `{p.default!r}` |" for p in method.parameters.values()]
    needs = ", ".join(sorted(method.needs)) or "any model"
    parts = [
        f"# {title}",
        _prose(inspect.getdoc(method.function) or ""),
        f"```text\nvesalius {method.name.replace('_', '-')} MODEL [--json] [--save DIR] [--figure FILE]\n```",
        f"Needs a model with: {needs}.",
        "| parameter | type | default |\n|---|---|---|\n" + "\n".join(rows) if rows else "",
        "## How it works",
        _prose(inspect.getdoc(module) or ""),
        f"## The result: `{kind.__name__}`",
        _prose(inspect.getdoc(kind) or ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _prose(docstring: str) -> str:
    """A docstring as Markdown: its example in a block, and what a page would read as HTML or a link shown as it is."""
    text, arrow, example = docstring.partition(">>> ")
    text = re.sub(r"<(?=\w)", "&lt;", text).replace("[", "\\[").strip()
    return text + (f"\n\n```pycon\n>>> {example.strip()}\n```" if arrow else "")


def _type(annotation: object) -> str:
    """An annotation as it is written, in a cell of a table."""
    return inspect.formatannotation(annotation).replace("typing.", "").replace("|", "\\|")


def bench_page(measured: Path) -> str:
    """The table that the last `make bench` printed, and the machine it ran on."""
    head = "# Benchmarks\n\nOurs beside the library that does the same: one run, the same weights, equal numbers.\n\n"
    if not measured.exists():
        return head + "Not measured here yet: `make bench` measures and fills this page.\n"
    sys.path.insert(0, str(DOCS.parent))
    from bench.run import table

    document = json.loads(measured.read_text(encoding="utf-8"))
    machine = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    return f"{head}{table(document['rows'])}\n\n{machine}.\n"


if __name__ == "__main__":
    pages = method_pages(DOCS / "methods")
    (DOCS / "methods" / "bench.md").write_text(bench_page(MEASURED), encoding="utf-8")
    print(f"{len(pages)} pages of analyses, 1 of benchmarks")
