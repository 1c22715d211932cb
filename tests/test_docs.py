"""The documentation is true: its code runs, prints and draws what it shows, and its links lead somewhere."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import vesalius.method  # noqa: F401 (its registry is looked up by name)

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "methods" not in page.relative_to(ROOT).parts]  # those are generated


def _module(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pages = _module("pages")
generate = _module("generate")


def _marked(page: Path):
    return pytest.param(page, marks=[pytest.mark.real] if pages.is_real(page) else [], id=page.name)


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES if pages.blocks(page)])
def test_code_of_a_page_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    registry = sys.modules["vesalius.method"].methods()  # a page may register an analysis of its own
    monkeypatch.setattr(sys.modules["vesalius.method"], "_registry", registry)
    loose = (
        {"relative": 0.5, "absolute": 0.5} if pages.is_real(page) else {}
    )  # pictures are optimised: rounding grows
    for block, printed in zip(pages.blocks(page), pages.run(page, tmp_path), strict=True):
        if block.output is not None:
            assert pages.agree(block.output, printed, **loose), (
                f"{page.name}:{block.line} prints\n{printed}\nnot\n{block.output}"
            )
    made_elsewhere = {link for link in pages.images(page) if not (tmp_path / link).exists()}
    assert not made_elsewhere, f"{page.name} shows figures that its code does not make: {made_elsewhere}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:|mailto:", link) and "methods/" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


def test_agreement_is_word_for_word_and_within_a_tolerance():
    assert pages.agree("loss 4.31 nats", "loss  4.32 nats\n")
    assert not pages.agree("loss 4.31 nats", "loss 4.91 nats")
    assert not pages.agree("loss 4.31 nats", "entropy 4.31 nats")


def test_make_commands_of_the_readme_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named <= targets


def test_ci_runs_only_what_the_readme_says():
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    used = set(re.findall(r"\bmake ([a-z]+)", script))
    assert {"demo", "test", "check"} <= used <= named


def test_every_method_gets_a_page(tmp_path):
    from vesalius.method import methods

    written = generate.method_pages(tmp_path)
    assert {path.stem for path in written} == {"index", *methods()}


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        if not name.startswith("methods/"):
            assert name in listed, f"{name} is not in mkdocs.yml"
