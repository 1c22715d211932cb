"""Pictures on paper: grids, galleries, and a sheet to label by hand. Places are counted in inches."""

import base64
import io
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.figures.paper.ink import Data, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

PAGE = 7.0
LINE = 0.125
SMALL: Any = {"fontsize": 6.5, "va": "top", "linespacing": 1.1}


def images(data: Data, sheet: "SubFigure") -> None:
    _grid(data["pictures"], data["labels"], data["columns"]).draw(sheet)


def images_size(data: Data) -> tuple[float, float]:
    return _grid(data["pictures"], data["labels"], data["columns"]).size


def gallery(data: Data, sheet: "SubFigure") -> None:
    _quilt(data).draw(sheet)


def gallery_size(data: Data) -> tuple[float, float]:
    return _quilt(data).size


def labelling(data: Data, sheet: "SubFigure") -> None:
    _sheet(data).draw(sheet)


def labelling_size(data: Data) -> tuple[float, float]:
    return _sheet(data).size


@dataclass(frozen=True)
class Laid:
    """Pictures and words with their places."""

    width: float
    height: float
    pictures: list[tuple[Data, float, float, float]]
    words: list[tuple[str, float, float, Any]]

    @property
    def size(self) -> tuple[float, float]:
        return max(self.width + 0.2, 3.0), self.height

    def draw(self, sheet: "SubFigure") -> None:
        axes = board(sheet, self.width, self.height)
        for picture, x, y, width in self.pictures:
            show(axes, picture, x, y, width)
        for text, x, y, style in self.words:
            axes.text(x, y, text, in_layout=False, **{**SMALL, **style})


def board(sheet: "SubFigure", width: float, height: float) -> "Axes":
    """Axes whose units are inches, y downwards."""
    axes = sheet.subplots()
    axes.axis("off")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", anchor="NW")
    return axes


def show(axes: "Axes", picture: Data, x: float, y: float, width: float) -> None:
    """A picture at its place, crisp where it is enlarged; what is transparent lies on a checkerboard."""
    from matplotlib.patches import Rectangle

    height = width * picture["height"] / picture["width"]
    crisp = width * 200 > 2 * picture["width"]
    smooth = "nearest" if crisp else "antialiased"
    axes.imshow(_pixels(picture), extent=(x, x + width, y + height, y), interpolation=smooth, aspect="equal")
    axes.set_autoscale_on(False)
    axes.add_patch(Rectangle((x, y), width, height, fc="none", ec="#ccc", lw=0.4))


def wrapped(text: str, width: float, lines: int = 3) -> str:
    """Words in at most so many lines of so many inches, at the small size."""
    return "\n".join(textwrap.wrap(label(text), max(int(width / 0.052), 6), max_lines=lines, placeholder="…"))


def _grid(pictures: list[Data | None], labels: list[str] | None, columns: int | None) -> Laid:
    across = columns or min(len(pictures), 4 if len(pictures) <= 4 else 6 if len(pictures) <= 12 else 10)
    cell = min(PAGE / across, 1.7)
    inner = cell - 0.08
    placed, words, y = [], [], 0.0
    for start in range(0, len(pictures), across):
        row = list(enumerate(pictures[start : start + across]))
        tall = max(_height(picture, inner) for _, picture in row)
        placed += [(picture, c * cell, y, inner) for c, picture in row if picture]
        y += tall
        if labels:
            texts = [wrapped(labels[start + c], inner) for c, _ in row]
            words += [(text, c * cell, y + 0.03, {}) for c, text in enumerate(texts)]
            y += 0.05 + LINE * max(text.count("\n") + 1 for text in texts)
        y += 0.08
    return Laid(cell * min(across, len(pictures)), y, placed, words)


def _quilt(data: Data) -> Laid:
    rows, columns = data["rows"], data["columns"]
    count = max([len(row["pictures"]) for row in rows] + [len(columns or [])])
    left = 0.95 if any(row["label"] for row in rows) else 0.0
    cell = min(max((PAGE - left) / count, 0.3), 1.3)
    inner = cell - (0.08 if any(row["texts"] for row in rows) else 0.03)
    placed, words, y = [], [], 0.0
    if columns:
        texts = [wrapped(column, inner) for column in columns]
        y = LINE * max(text.count("\n") + 1 for text in texts) + 0.04
        words += [
            (text, left + c * cell, y - 0.03, {"va": "bottom", "color": "#555"})
            for c, text in enumerate(texts)
        ]
    for row in rows:
        tall = max(_height(picture, inner) for picture in row["pictures"])
        words.append((wrapped(row["label"], left), 0.0, y + tall / 2, {"va": "center"}))
        placed += [(p, left + c * cell, y, inner) for c, p in enumerate(row["pictures"]) if p]
        y += tall
        if row["texts"]:
            texts = [wrapped(text, inner) for text in row["texts"]]
            words += [(text, left + c * cell, y + 0.03, {"color": "#555"}) for c, text in enumerate(texts)]
            y += 0.06 + LINE * max(text.count("\n") + 1 for text in texts)
        y += cell - inner
    return Laid(left + cell * count, y, placed, words)


def _sheet(data: Data) -> Laid:
    """The classes with their numbers, then every picture with its key and a line to write on."""
    grid = _grid(data["pictures"], [f"{key}: ____" for key in data["keys"]], None)
    told = "\n".join(f"{number}  {label(name)}" for number, name in enumerate(data["classes"], 1))
    down = LINE * 1.15 * len(data["classes"]) + 0.12
    return Laid(
        grid.width,
        grid.height + down,
        [(picture, x, y + down, width) for picture, x, y, width in grid.pictures],
        [(told, 0.0, 0.0, {"fontsize": 7})]
        + [(text, x, y + down, style) for text, x, y, style in grid.words],
    )


def _height(picture: Data | None, width: float) -> float:
    return width * picture["height"] / picture["width"] if picture else 0.0


def _pixels(picture: Data) -> Any:
    from PIL import Image

    encoded = picture["src"].split(",", 1)[1]
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    if picture["alpha"]:
        ground = Image.new("RGBA", image.size, "#eeeeee")
        side = max(math.ceil(image.width / 24), 1)
        for x in range(0, image.width, side):
            for y in range(0, image.height, side):
                if (x + y) // side % 2:
                    ground.paste("#bbbbbb", (x, y, min(x + side, image.width), min(y + side, image.height)))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
