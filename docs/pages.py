"""Run the code of the pages, so that what they show is what it does.

    python docs/pages.py README.md docs/book/01-framework.md

Every ```python block of a page runs in order, in one namespace, in an empty folder. A ```text block right
below one holds what it printed, and is written anew; the figures that the page shows are those its code saved.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REAL = "<!-- real -->"
"""The first line of a page whose code opens networks out of packages: `make real` runs it, and `make test` does not."""
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Block:
    """One piece of code of a page, the line it starts on, and what the page says it prints (None: nothing said)."""

    code: str
    line: int
    output: str | None


def blocks(page: Path) -> list[Block]:
    """The code of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(m["code"], text.count("\n", 0, m.start()) + 2, m["output"]) for m in BLOCK.finditer(text)]


def is_real(page: Path) -> bool:
    """Whether the page asks for networks that do not ship with the package."""
    return page.read_text(encoding="utf-8").startswith(REAL)


def images(page: Path) -> list[str]:
    """The local images a page shows, as it writes them."""
    return [link for link in IMAGE.findall(page.read_text(encoding="utf-8")) if not link.startswith("http")]


def run(page: Path, folder: Path) -> list[str]:
    """Run the code of `page` with `folder` as the working directory; returns what each block printed."""
    page, namespace = page.resolve(), {"__name__": "__main__"}
    printed = []
    for link in images(page):
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        for block in blocks(page):
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)  # noqa: S102 (that is its purpose)
            printed.append("\n".join(line.rstrip() for line in output.getvalue().splitlines()))
    return printed


def agree(shown: str, printed: str, *, relative: float = 0.02, absolute: float = 0.011) -> bool:
    """Whether two texts are the same word for word, and number for number within a tolerance."""
    if NUMBER.sub("#", " ".join(shown.split())) != NUMBER.sub("#", " ".join(printed.split())):
        return False
    pairs = zip(map(float, NUMBER.findall(shown)), map(float, NUMBER.findall(printed)), strict=True)
    return all(abs(a - b) <= absolute + relative * abs(a) for a, b in pairs)


def refresh(page: Path) -> None:
    """Run a page in an empty folder, write its outputs into it, and put the images it shows beside it."""
    with tempfile.TemporaryDirectory() as folder:
        printed = iter(run(page, Path(folder)))
        for link in images(page):
            (page.parent / link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / link, page.parent / link)

    def renewed(match: re.Match) -> str:
        output = next(printed)
        shown = f"\n```text\n{output}\n```\n" if match["output"] is not None else ""
        return f"```python\n{match['code']}```\n{shown}"

    page.write_text(BLOCK.sub(renewed, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in sys.argv[1:]:
        refresh(Path(name))
        print(f"{name}: run, its outputs and figures are new")
