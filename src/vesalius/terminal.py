"""What a person sees in a terminal: how far the work is, and the claims that came out of it.

Progress goes to stderr, so that what a program reads on stdout stays clean. In a terminal it is a bar; elsewhere
(a log, a pipe) it is one line for each analysis.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vesalius.method import watching
from vesalius.result import Headline

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_WIDTH = 160
"""Columns of a table that is not shown in a terminal."""

VERDICT_STYLES = {"evidence": "green", "no evidence": "red", "descriptive": "dim"}


@contextmanager
def progress_of(total: int) -> Iterator[Callable[[str], None]]:
    """Show how far a work of `total` parts is; the caller says which part begins.

    The time left assumes that parts take equally long, so it is called "about".
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr()
    started, begun, part = time.monotonic(), 0, ""
    columns = [
        TextColumn("{task.description:<44.44}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    ]
    bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True)
    bar.disable = not console.is_terminal
    task = bar.add_task("", total=total, count=f"0/{total}", left="")

    def begin(name: str) -> None:
        nonlocal begun, part
        begun, part = begun + 1, name
        tell("", 0, None)
        if bar.disable and total > 1:
            console.print(
                f"[{begun}/{total}] {name}{_left(started, begun - 1, total)}", markup=False, highlight=False
            )

    def tell(what: str, done: int, out_of: int | None) -> None:
        finished = begun - 1 + (done / out_of if out_of else 0)
        description = f"{part}: {what}" if what else part
        bar.update(
            task,
            completed=finished,
            description=description,
            count=f"{begun}/{total}",
            left=_left(started, finished, total),
        )

    with bar, watching(tell):
        yield begin


def _left(started: float, finished: float, total: int) -> str:
    if finished <= 0:
        return ""
    return f", about {duration((time.monotonic() - started) * (total - finished) / finished)} left"


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it.

    >>> duration(0.42), duration(75), duration(5400)
    ('0.4 s', '1 min 15 s', '1 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def summary_table(rows: Iterable[tuple[str, Headline]]) -> "Table":
    """One row for each claim: the analysis, the claim, its number, its control, its interval and the verdict."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("analysis", "claim"):
        table.add_column(name)
    for name in ("value", "control", "interval"):
        table.add_column(name, justify="right")
    table.add_column("verdict", no_wrap=True)
    last = None
    for analysis, headline in rows:
        interval = (
            ""
            if headline.interval is None
            else f"{number(headline.interval[0])} … {number(headline.interval[1])}"
        )
        claim = Text.assemble(headline.claim, (f" ({headline.note})" if headline.note else "", "dim"))
        numbers = map(Text, (number(headline.value), number(headline.control), interval))
        verdict = Text(headline.verdict, style=VERDICT_STYLES[headline.verdict])
        table.add_row("" if analysis == last else analysis, claim, *numbers, verdict)
        last = analysis
    return table


def number(value: float | str | None) -> str:
    """A number with three significant digits; text as it is, nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def stdout() -> "Console":
    """A console on stdout; a log gets wide lines."""
    return _console(stderr=False)


def stderr() -> "Console":
    """A console on stderr, for everything that is not the answer."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=LOG_WIDTH)
