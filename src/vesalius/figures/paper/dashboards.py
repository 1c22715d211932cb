"""One dashboard on paper: the first latent of the figure that fired."""

import math
from typing import TYPE_CHECKING, Any

from vesalius.figures.dashboards import unpacked
from vesalius.figures.paper.ink import SERIES, Data, ink_on, label, scale
from vesalius.figures.paper.pictures import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

LINES, WORDS = 14, 8


def dashboard(data: Data, sheet: "SubFigure") -> None:
    starts = unpacked(data["examples"]["starts"]).tolist()
    latent = next((i for i in range(len(starts) - 1) if starts[i + 1] > starts[i]), 0)
    left, right = sheet.subfigures(1, 2, width_ratios=(1, 1.9), squeeze=False)[0]
    number = int(unpacked(data["latents"])[latent])
    values = {name: float(unpacked(column)[latent]) for name, column in data["columns"].items()}
    above, *below = left.subplots(2 if data["logits"] else 1, 1, squeeze=False)[:, 0]
    counts, width = unpacked(data["counts"])[latent], float(unpacked(data["widths"])[latent])
    above.bar([(i + 0.5) * width for i in range(len(counts))], counts.tolist(), width, color=SERIES[0])
    above.set_xlim(0, (int((counts > 0).nonzero().max()) + 1 if counts.any() else 1) * width)
    above.set_title(f"latent {number}: {values['density']:.2%}", loc="left", fontsize=7.5)
    above.set_xlabel("value")
    above.set_ylabel("positions")
    for axes in below:
        _logits(axes, data["logits"], latent)
    _written(right, data, latent, starts)


def _logits(axes: "Axes", logits: Data, latent: int) -> None:
    low, high = (float(unpacked(logits[end])[latent]) for end in ("low", "high"))
    heights = (unpacked(logits["counts"])[latent].float() / 255) ** 2
    step = (high - low) / len(heights)
    axes.bar([low + (i + 0.5) * step for i in range(len(heights))], heights.tolist(), step, color=SERIES[1])
    axes.set_xlabel("logit weight")
    axes.set_ylabel("tokens, of the most")


def _written(sheet: "SubFigure", data: Data, latent: int, starts: list[int]) -> None:
    axes = sheet.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, 60)
    axes.set_ylim(LINES + 2, 0)
    line = 0
    if data["logits"]:
        tokens = unpacked(data["logits"]["tokens"])[latent].tolist()
        for words, some in (("+", tokens[: len(tokens) // 2]), ("−", tokens[len(tokens) // 2 :])):
            shown = " ".join(label(data["vocabulary"][token], everywhere=True)[:10] for token in some[:WORDS])
            axes.text(0, line + 0.6, f"{words} {shown}"[:66], fontsize=6.5, family="DejaVu Sans Mono")
            line += 1
    numbers = range(starts[latent], min(starts[latent + 1], starts[latent] + LINES - line))
    if data["pictures"]:
        _pictured(axes, data, numbers)
        return
    shades, norm = scale([0.0, 1.0], False)
    windows, tokens = (unpacked(data["examples"][name]) for name in ("windows", "tokens"))
    for number in numbers:
        x = 0.0
        for share, token in zip(
            (windows[number].float() / 255).tolist(), tokens[number].tolist(), strict=True
        ):
            if not token or x > 58:
                continue
            word = label(data["vocabulary"][token], everywhere=True)[:12]
            ground: Any = {
                "facecolor": shades(norm(share)) if share else "none",
                "edgecolor": "none",
                "pad": 0.8,
            }
            ink = ink_on(shades, norm, share) if share else "#222"
            axes.text(
                x,
                line + 0.6,
                word,
                fontsize=6.5,
                family="DejaVu Sans Mono",
                color=ink,
                bbox=ground,
                clip_on=True,
            )
            x += len(word) * 0.98 + 0.5
        line += 1


def _pictured(axes: "Axes", data: Data, numbers: range) -> None:
    of = unpacked(data["pictures"]["of"])
    axes.set_aspect("equal", adjustable="box")
    columns = math.ceil(math.sqrt(len(numbers) or 1))
    side = 60 / columns
    axes.set_ylim(side * math.ceil(len(numbers) / columns), 0)
    for place, number in enumerate(numbers):
        row, column = divmod(place, columns)
        show(axes, data["pictures"]["images"][int(of[number])], column * side, row * side, side * 0.94)


def dashboard_size(data: Data) -> tuple[float, float]:
    return 7.0, 3.6
