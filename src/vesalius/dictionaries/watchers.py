"""Who is told how a training goes, besides the log in its folder: `fit_sae(…, watch=terminal())`.

A watcher is a function of the entry of the log: name, step, steps, rows, loss, fvu, l0, dead, lr, seconds.
"""

import sys
from pathlib import Path

from vesalius.dictionaries.train import Watch
from vesalius.errors import VesaliusError


def terminal() -> Watch:
    """One line that is written over and over; where stderr is no terminal, a line for each entry."""
    live = sys.stderr.isatty()

    def watch(entry: dict) -> None:
        name = f"{entry['name']}: " if entry["name"] else ""
        line = (
            f"{name}step {entry['step']:,} of {entry['steps']:,} · unexplained {entry['fvu']:.3f} · "
            f"{entry['l0']:.1f} active · {entry['dead']:,} dead · {entry['rows'] / entry['seconds']:,.0f} rows/s"
        )
        end = "\n" if not live or entry["step"] == entry["steps"] else ""
        print(f"\r\033[K{line}" if live else line, end=end, file=sys.stderr, flush=True)

    return watch


def tensorboard(folder: str | Path) -> Watch:
    """Curves for TensorBoard; raises VesaliusError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise VesaliusError(
            "curves for TensorBoard need the package tensorboard: pip install tensorboard"
        ) from error
    writer = SummaryWriter(str(folder))

    def watch(entry: dict) -> None:
        for key in ("loss", "fvu", "l0", "dead", "lr"):
            writer.add_scalar("/".join(filter(None, (entry["name"], key))), entry[key], entry["step"])
        writer.flush()

    return watch


def weights_and_biases(project: str) -> Watch:
    """Curves for Weights & Biases; raises VesaliusError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise VesaliusError(
            "curves for Weights & Biases need the package wandb: pip install wandb"
        ) from error
    run = wandb.init(project=project)

    def watch(entry: dict) -> None:
        shown = {
            "/".join(filter(None, (entry["name"], key))): entry[key]
            for key in ("loss", "fvu", "l0", "dead", "lr")
        }
        run.log(shown, step=entry["step"])

    return watch
