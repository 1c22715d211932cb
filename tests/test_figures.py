"""Figures: small JSON, safe pages, static twins that repeat, and one look through a real browser."""

import base64
import html as markup
import io
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vesalius import figures
from vesalius.errors import VesaliusError
from vesalius.figures.figure import STATIC, Figure, bundle, embedded, page, placeholder

HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028"


@cache
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
        "images": figures.images(
            [pictures(1, channels=c)[0] for c in (1, 3, 4)], title=HOSTILE, labels=["grey", "RGB", HOSTILE], columns=2
        ),
        "gallery": figures.gallery(
            [
                {"label": "conv2", "pictures": pictures(3), "texts": ["r = 0.9", HOSTILE, ""]},
                {"label": HOSTILE, "pictures": [pictures(1)[0], None]},
            ],
            title="t", columns=["0°", "90°", HOSTILE],
        ),
        "circuit": figures.circuit(
            [
                {"id": "w", "label": "windows", "column": "mixed4b", "picture": pictures(1)[0]},
                {"id": "b", "label": HOSTILE, "column": "mixed4b", "picture": None},
                {"id": "c", "label": "car", "column": "mixed4c", "picture": pictures(1)},
            ],
            [
                {"source": "w", "target": "c", "weight": 1.5, "map": torch.linspace(-1, 1, 9).reshape(3, 3)},
                {"source": "b", "target": "c", "weight": -0.5, "map": None, "label": HOSTILE},
            ],
            title="t",
        ),
        "tuning": figures.tuning(
            range(0, 360, 30), {HOSTILE: torch.randn(12), "b": [None, *range(11)]}, title="t", value_label="sd"
        ),
        "board": figures.board(
            [
                {"label": HOSTILE, "dark": torch.eye(4), "light": 0.5 - torch.eye(4) / 2, "marked": ["A1", "d4"]},
                {"label": "b", "values": [[0.1, None], [-0.2, 12]], "legal": [[True, False], [False, True]]},
            ],
            title="t", stones=("mine", HOSTILE), value_label="p", diverging=True,
        ),
        "labelling": figures.labelling(
            pictures(3), classes=["curve", HOSTILE], keys=["a", "b", HOSTILE], title="t", caption="c"
        ),
    }  # fmt: skip
    made["group"] = figures.group(made.values(), title="all", caption="together")
    return made


def pictures(count: int, *, channels: int = 3, side: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


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


def test_many_numbers_along_an_axis_are_told_by_round_ones():
    figure = figures.heatmap(
        np.zeros((12, 360)), title="", x=range(360), y=np.linspace(4, 40, 12), x_label="orientation (°)"
    )
    assert figure.data["x_ticks"][:3] == [[0.0, "0"], [45.0, "45"], [90.0, "90"]]
    assert [word for _, word in figure.data["y_ticks"]] == ["5", "10", "15", "20", "25", "30", "35", "40"]
    assert figures.heatmap(np.zeros((2, 3)), title="", x=[0, 1, 2]).data["x_ticks"] is None


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_small_pictures_are_kept_exactly(channels):
    picture = pictures(1, channels=channels)
    decoded = pixels(figures.images(picture, title="").data["pictures"][0])
    if channels == 4:  # what cannot be seen has no colour
        picture, decoded = picture * (picture[:, 3:] > 0), decoded * (decoded[3:] > 0)
    assert torch.equal(decoded[:channels], picture[0])


def test_photographs_are_small_and_stay_near():
    ramp = torch.linspace(0, 200, 256)
    grain = pictures(1, side=256)[0] / 8
    photo = ((ramp[:, None] + ramp) / 2 + grain).to(torch.uint8)
    drawn = figures.images(photo[None], title="").data["pictures"][0]
    assert drawn["src"].startswith("data:image/webp") and len(drawn["src"]) < 60_000
    assert (pixels(drawn).float() - photo).abs().mean() < 8
    many = figures.images(pictures(400, side=64), title="").data["pictures"]
    assert sum(len(picture["src"]) for picture in many) < 5_000_000


def pixels(picture: dict) -> torch.Tensor:
    image = Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1])))
    assert image.size == (picture["width"], picture["height"])
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def test_blind_labelling_knows_nothing_but_pictures_and_keys():
    assert set(every()["labelling"].data) == {"pictures", "classes", "keys"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: figures.images(pictures(2).float(), title=""),
        lambda: figures.images(pictures(2, channels=2), title=""),
        lambda: figures.images(pictures(2)[0], title=""),
        lambda: figures.images([], title=""),
        lambda: figures.images([None], title=""),
        lambda: figures.images(pictures(2), title="", labels=["a"]),
        lambda: figures.images(pictures(2), title="", columns=0),
        lambda: figures.gallery([], title=""),
        lambda: figures.gallery([{"label": "a", "pictures": pictures(2)}], title="", columns=["b"]),
        lambda: figures.gallery([{"label": "a", "pictures": pictures(2), "texts": ["b"]}], title=""),
        lambda: figures.circuit([], [], title=""),
        lambda: figures.circuit([node("a"), node("a")], [], title=""),
        lambda: figures.circuit([node("car")], [edge("cat", 1.0)], title=""),
        lambda: figures.circuit([node("car")], [edge("car", float("nan"))], title=""),
        lambda: figures.circuit([node("car")], [edge("car", 1.0) | {"map": [1.0]}], title=""),
        lambda: figures.tuning([0, 1], {}, title=""),
        lambda: figures.tuning([0, 1], {"a": [1]}, title=""),
        lambda: figures.tuning([1, 0], {"a": [1, 2]}, title=""),
        lambda: figures.tuning([0, 400], {"a": [1, 2]}, title=""),
        lambda: figures.board([], title=""),
        lambda: figures.board([{"label": "a"}], title=""),
        lambda: figures.board([{"label": "a", "dark": [[1, 2]]}], title=""),
        lambda: figures.board([{"label": "a", "dark": [[1]], "values": [[1, 2], [3, 4]]}], title=""),
        lambda: figures.board([{"label": "a", "dark": [[1]], "marked": ["A2"]}], title=""),
        lambda: figures.board([{"label": "a", "dark": [[1]]}], title="", stones=("one",)),
        lambda: figures.labelling(pictures(2), classes=["a"], keys=["1", "2"], title=""),
        lambda: figures.labelling(pictures(2), classes=["a", "a"], keys=["1", "2"], title=""),
        lambda: figures.labelling(pictures(2), classes=["a", "b"], keys=["1", "1"], title=""),
        lambda: figures.labelling(pictures(2), classes=["a", "b"], keys=["1"], title=""),
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


def node(name: str) -> dict:
    return {"id": name, "label": name, "column": 0, "picture": None}


def edge(source: str, weight: float) -> dict:
    return {"source": source, "target": "car", "weight": weight}


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


@pytest.mark.parametrize("suffix", [".png", ".webp", ".pdf", ".svg"])
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
    assert '<img src="x"' not in drawn
    marks = ("<rect", "<circle", "<canvas", "u-over", "v-token", "aria-sort", 'role="radio"', "␣and", "↵")
    assert not [mark for mark in marks if mark not in drawn]


WORK = """<script>
const root = document.documentElement;
window.onerror = (message) => (root.dataset.error = message);
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const moment = () => new Promise((resume) => setTimeout(resume, 60));
const find = (what, kind) => document.querySelector(`[data-component=${kind}] ${what}`);
async function work() {
  const desk = find(".labelling", "labelling");
  for (const key of ["2", "1", "Backspace", "2", "ArrowRight"]) await press(desk, key), await moment();
  root.dataset.labels = find("textarea", "labelling").value.replaceAll(/\\s/g, "");
  root.dataset.progress = find("progress", "labelling").value;
  const [first] = document.querySelectorAll("[data-component=gallery] [data-tile]");
  first.focus();
  press(first, "ArrowDown");
  document.activeElement.click();
  await moment();
  root.dataset.enlarged = find("dialog[open] .name", "gallery").innerText;
  press(find("dialog", "gallery"), "ArrowLeft");
  await moment();
  root.dataset.turned = find("dialog[open] .name", "gallery").innerText;
  find("dialog", "gallery").close();
  const [unit, next] = document.querySelectorAll("[data-component=tuning] .list button");
  press(unit, "ArrowDown");
  await moment();
  root.dataset.unit = document.activeElement === next && find(".says b", "tuning").innerText;
  root.dataset.wide = root.scrollWidth > innerWidth;
  root.dataset.done = "all";
}
new MutationObserver((_, watch) => {
  if (root.dataset.drawn === "all") watch.disconnect(), work();
}).observe(root, { attributes: true });
</script>"""


def test_pictures_are_worked_by_keys_on_a_narrow_page(tmp_path):
    """Labels by 1 to 9 and Backspace; a tile enlarged and turned; a unit chosen; and nothing wider than the page."""
    path = tmp_path / "pictures.html"
    made = [every()[kind] for kind in ("images", "gallery", "circuit", "tuning", "labelling")]
    path.write_text(page(WORK + "".join(map(placeholder, made)), title="pictures"), encoding="utf-8")
    drawn = browse(path, width=390)
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', drawn.split("<head>")[0]))
    assert told["done"] == "all" and "error" not in told
    labels = json.loads(markup.unescape(told["labels"]))
    assert labels == {"a": HOSTILE.replace(" ", "").replace("\u2028", ""), "b": labels["a"]}
    assert told["progress"] == "2" and told["unit"] == "b" and told["wide"] == "false"
    assert told["enlarged"].endswith("· 0°") and told["turned"].startswith("conv2 ·")


def browse(path: Path, *, width: int = 1200) -> str:
    """The page's elements after Chromium has run it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    )
    size = f"--window-size={width},900"
    command = [chromium, *flags.split(), size, f"--user-data-dir={path.parent}/profile", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
