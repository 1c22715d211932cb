"""Figures: small JSON, safe pages, static twins that repeat, and one look through a real browser."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import figures
from vesalius.errors import VesaliusError
from vesalius.figures.figure import STATIC, Figure, bundle, embedded, page, placeholder

HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028"


def every() -> dict[str, Figure]:
    """One figure of every kind, with a missing number and a hostile word wherever words go."""
    words = ["Mr", " and", " Mrs\n", HOSTILE]
    square = torch.softmax(torch.arange(32.0).reshape(2, 4, 4), dim=-1)
    made = {
        "heatmap": figures.heatmap(
            [[1.0, float("nan")], [-2.0, 0.5]], title=HOSTILE, x=["a", HOSTILE], value_label="score"
        ),
        "scatter": figures.scatter(
            torch.arange(4), [1, 2, None, 4], title="t", x_label="x", y_label="y", labels=words,
            groups=["a", "a", "b", "b"], references=[("x", 1, "x"), ("y", 2, "y"), ("diagonal", 0, "same")],
        ),
        "lines": figures.lines(
            [1, 10, 100], {"trained": np.ones(3), "random": [0, None, 1]},
            title="t", x_label="x", y_label="y",
            bands={"trained": ([0, 0, 0], [2, 2, 2])}, marks=[(10, "here")], log_x=True,
        ),
        "bars": figures.bars(
            ["0.0", "0.1"], {"s": [1.0, -1.0]}, title="t", y_label="y", intervals={"s": [(0.5, 1.5), (-2, 0)]}
        ),
        "histogram": figures.histogram({"a": torch.arange(100), "b": [0.0]}, title="t", x_label="x", bins=4),
        "polar": figures.polar({"a": torch.tensor([1 + 1j, -2, 1e-9]), "b": [0.0, -1.0]}, title="t"),
        "attention": figures.attention(square, words, title="t", heads=["0.0", "0.1"]),
        "tokens": figures.tokens(
            words,
            [{"label": "r", "layers": {"attention": [0, 0.5, 1, None], "effect": [-1, 0, 1, 2]}}],
            title="t",
        ),
        "graph": figures.graph(
            [{"id": 1, "label": "embed", "column": 0}, {"id": 2, "label": HOSTILE, "column": 1}],
            [{"source": 1, "target": 2, "weight": -0.5, "kind": "K"}], title="t",
        ),
        "table": figures.table(["in", "out"], [[" a", {"text": "\n", "value": 1.5}], [None, 2.0]], title="t"),
    }  # fmt: skip
    made["group"] = figures.group(made.values(), title="all", caption="together")
    return made


KINDS = list(every())


@pytest.mark.parametrize("kind", KINDS)
def test_json_is_plain_and_finite(kind):
    figure = every()[kind]
    assert figure.component == kind
    text = json.dumps(figure.to_json(), allow_nan=False)
    assert json.loads(text) == figure.to_json()


def test_numbers_are_short():
    figure = figures.scatter([1 / 3], [2e-9 / 3], title="", x_label="", y_label="")
    assert (figure.data["x"], figure.data["y"]) == ([0.33333], [6.6667e-10])
    large = figures.heatmap(torch.full((200, 200), 1 / 3), title="")
    assert large.data["values"][0][0][0] == 0.333


def test_histogram_counts_every_value():
    figure = figures.histogram({"a": [0, 1, 2, 3], "b": [3, float("nan")]}, title="", x_label="", bins=3)
    assert figure.data["edges"] == [0.0, 1.0, 2.0, 3.0]
    assert figure.data["groups"] == {"a": [0.25, 0.25, 0.5], "b": [0.0, 0.0, 1.0]}
    assert figure.data["sizes"] == {"a": 4, "b": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: figures.heatmap([[1, 2], [3]], title=""),
        lambda: figures.heatmap([1, 2], title=""),
        lambda: figures.heatmap([[1, 2]], title="", x=["a"]),
        lambda: figures.scatter([1], [1, 2], title="", x_label="", y_label=""),
        lambda: figures.lines([0, 1], {"a": [1, 2]}, title="", x_label="", y_label="", log_x=True),
        lambda: figures.lines([0], {"a": [1]}, title="", x_label="", y_label="", bands={"b": ([0], [1])}),
        lambda: figures.attention(torch.zeros(1, 2, 2), ["a"], title="", heads=["0"]),
        lambda: figures.graph([], [{"source": "a", "target": "b", "weight": 1}], title=""),
        lambda: figures.table(["a"], [["b", "c"]], title=""),
        lambda: figures.histogram({"a": []}, title="", x_label=""),
        lambda: figures.heatmap([[1]], title="").save("figure.gif"),
    ],
)
def test_wrong_input_is_told(wrong):
    with pytest.raises(VesaliusError, match="expected"):
        wrong()


def test_page_stands_alone_and_is_safe():
    text = every()["group"].html()
    assert HOSTILE not in text and "<img" not in text.split('<script type="module">')[0]
    assert text.count("</script>") == 2
    assert not [mark for mark in ('src="http', 'href="http', "@import", "url(http", "fetch(") if mark in text]
    assert json.loads(embedded({"a": HOSTILE})) == {"a": HOSTILE}


def test_bundle_can_stand_inside_a_script_element():
    assert not [mark for mark in ("<!--", "<script", "</script") if mark in bundle().lower()]
    assert sum(file.stat().st_size for file in STATIC.iterdir()) < 600_000


@pytest.mark.slow
def test_bundle_is_what_its_source_builds():
    web = Path(__file__).parents[1] / "web"
    if shutil.which("npm") is None or not (web / "node_modules").is_dir():
        pytest.skip("needs Node and `npm ci` in web/")
    done = subprocess.run(["npm", "run", "verify"], cwd=web, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_widget_carries_the_bundle_and_the_figure():
    pytest.importorskip("anywidget")
    figure = every()["bars"]
    state = figure.widget().get_state()
    assert state["figure"] == figure.to_json() and state["_esm"] == bundle()


def test_notebook_frame_escapes_the_page():
    text = every()["table"]._repr_html_()
    assert text.startswith("<iframe srcdoc=") and text.count("<") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_static_twin(kind, tmp_path):
    pytest.importorskip("matplotlib")
    path = every()[kind].save(tmp_path / "figure.svg")
    assert path.read_text(encoding="utf-8").count("<svg") == 1


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_static_twin_repeats(suffix, tmp_path):
    pytest.importorskip("matplotlib")
    figure = every()["bars"]
    first, second = figure.save(tmp_path / f"a{suffix}"), figure.save(tmp_path / f"b{suffix}")
    assert first.read_bytes() == second.read_bytes()


WATCH = """<script>
const root = document.documentElement;
window.onerror = (message) => (root.dataset.error = message);
new MutationObserver(() => {
  if (root.dataset.drawn !== "all" || root.dataset.head) return;
  const heads = document.querySelector("[role=radiogroup]");
  heads.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  setTimeout(() => (root.dataset.head = heads.querySelector("[aria-checked=true]").innerText.trim()), 100);
}).observe(root, { attributes: true });
</script>"""


def test_every_kind_is_drawn_by_a_browser(tmp_path):
    """Opened from a file: each figure has its own marks, keys choose a head, and the hostile word is text."""
    path = tmp_path / "all.html"
    body = WATCH + "".join(map(placeholder, every().values()))
    path.write_text(page(body, title="all"), encoding="utf-8")
    drawn = browse(path)
    assert 'data-drawn="all"' in drawn and "data-error" not in drawn
    assert drawn.count('data-component="') == len(KINDS) + len(KINDS) - 1
    assert 'data-head="0.1"' in drawn
    assert "<img" not in drawn
    marks = ("<rect", "<circle", "<canvas", "u-over", "v-token", "aria-sort", 'role="radio"', "␣and", "↵")
    assert not [mark for mark in marks if mark not in drawn]


def browse(path: Path) -> str:
    """The page's elements after Chromium has run it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    )
    command = [chromium, *flags.split(), f"--user-data-dir={path.parent}/profile", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
