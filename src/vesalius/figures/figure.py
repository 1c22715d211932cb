"""A figure: the name of a component and a small JSON of data for it.

One bundled component draws it in the report, in a notebook and on a page; matplotlib draws its static twin
for a paper. A figure never computes: what it shows are numbers that a result already holds.
"""

import html as markup
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vesalius.errors import VesaliusError
from vesalius.files import whole

STATIC = Path(__file__).parent / "static"
SUFFIXES = (".html", ".png", ".webp", ".pdf", ".svg")


@dataclass(frozen=True)
class Figure:
    """What is drawn (`component`, `data`) and what is said of it (`title`, `caption`)."""

    component: str
    data: dict[str, Any]
    title: str
    caption: str = ""

    def to_json(self) -> dict[str, Any]:
        """The whole figure as JSON values."""
        return asdict(self)

    def html(self) -> str:
        """One self-contained page: data, style and code, opening from a file without a network."""
        return page(placeholder(self), title=self.title)

    def save(self, path: str | Path) -> Path:
        """Write the figure as `.html`, or its static twin as `.png`, `.webp` (small), `.pdf` or `.svg`."""
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise VesaliusError(f"a figure was to be saved as '{path.name}'; expected {', '.join(SUFFIXES)}")
        with whole(path) as partial:
            if path.suffix == ".html":
                partial.write_text(self.html(), encoding="utf-8")
            else:
                from vesalius.figures.paper import draw

                draw(self, partial)
        return path

    def widget(self) -> Any:
        """The figure as an anywidget, for notebooks (extra `notebook`); what a reader labels is in `.labels`."""
        import anywidget
        import traitlets

        class FigureWidget(anywidget.AnyWidget):
            _esm = bundle()
            _css = style()
            figure = traitlets.Dict().tag(sync=True)
            labels = traitlets.Dict().tag(sync=True)

        return FigureWidget(figure=self.to_json())

    def _repr_html_(self) -> str:
        """A sandboxed frame with the whole page, for notebooks without widgets."""
        source = markup.escape(self.html(), quote=True)
        return (
            f'<iframe srcdoc="{source}" title="{markup.escape(self.title)}" sandbox="allow-scripts allow-downloads" '
            'style="width:100%;height:560px;border:0" loading="lazy"></iframe>'
        )


def page(body: str, *, title: str) -> str:
    """A self-contained page around `body`, which is HTML; every placeholder in it is drawn on opening."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{markup.escape(title)}</title>\n<style>\n{style()}</style>\n</head>\n"
        f'<body class="vesalius-page">\n{body}\n'
        f'<script type="module">\n{bundle()}</script>\n</body>\n</html>\n'
    )


def placeholder(figure: Figure) -> str:
    """The element that the bundle turns into the drawn figure; readable words where scripts do not run."""
    data = embedded(figure.to_json())
    return (
        '<figure class="vesalius">'
        f'<script type="application/vesalius-figure+json">{data}</script>'
        f"<noscript>{markup.escape(figure.title)}: {markup.escape(figure.caption)}</noscript></figure>"
    )


def embedded(value: Any) -> str:
    """JSON that is safe inside a `<script>` element, whatever was typed into it.

    >>> embedded({"label": "</script>"})
    '{"label":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def bundle() -> str:
    """The built module: draws every placeholder of its page, and exports anywidget's `render`."""
    return (STATIC / "vesalius.js").read_text(encoding="utf-8")


@cache
def style() -> str:
    """The style sheet of figures and pages."""
    return (STATIC / "vesalius.css").read_text(encoding="utf-8")
