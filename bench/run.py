"""`make bench`: ours against the peer, same weights, same machine, same minutes; prints a table, writes results.json.

The peers live in an environment of their own (`.bench`), where this package is installed beside them; one that cannot
live with the others has another, which its case names, and there ours runs too. Every side of every case runs in its
own process, the two sides in turn, and the ratio is that of the fastest repeats. Name cases to run only those, and
keep what is known of the others: `python -m bench.run composition`.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results.json"
ROUNDS = 2
TIMED_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
IMPORTS = {"ours": "vesalius", "peer": "transformer_lens", "floor": "torch"}
TARGETS = {"import / transformer_lens": ("ours", "peer", 0.4), "import / torch": ("ours", "floor", 1.2)}


def main(names: list[str]) -> None:
    from bench.registry import CASES

    rows = [measured(name, case) for name, case in CASES.items() if not names or name in names]
    if not names or "import" in names:
        rows += imports()
    machine = {
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    kept = earlier(machine, {row["case"] for row in rows}) if names else []
    document = {"machine": machine, "rows": [*kept, *rows]}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(table(rows))


def earlier(machine: dict, renewed: set[str]) -> list[dict]:
    """The rows that a run of some cases leaves as they were, if they were measured on such a machine."""
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": None, "rows": []}
    same = document["machine"] == machine
    return [row for row in document["rows"] if row["case"] not in renewed] if same else []


def measured(name: str, case) -> dict:
    """Both sides in turn, `ROUNDS` times; the fastest repeat and the largest memory of each."""
    sides: dict[str, list[dict]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            for side in sides:
                out = Path(folder) / f"{side}.pt"
                python = ROOT / case.home / "bin" / "python" if case.home else sys.executable
                command = [str(python), "-m", "bench.case", name, side, str(case.repeats), str(out)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name}, {side}: {done.stderr[-2000:]}")
                sides[side].append(json.loads(done.stdout.splitlines()[-1]))
                print(
                    f"{name} {side} {turn + 1}/{ROUNDS}: {min(sides[side][-1]['seconds']):.4f} s",
                    file=sys.stderr,
                )
        difference = None if case.agree is None else apart(Path(folder))
        reached = not case.higher or at_least(Path(folder))
    seconds = {side: min(s for run in runs for s in run["seconds"]) for side, runs in sides.items()}
    memory = {side: max(run["peak_mb"] for run in runs) for side, runs in sides.items()}
    ratios = {"time": seconds["ours"] / seconds["peer"], "memory": memory["ours"] / max(memory["peer"], 1.0)}
    wanted = {"time": case.time, "memory": case.memory}
    met = all(limit is None or ratios[what] <= limit for what, limit in wanted.items())
    agreed = difference is None or difference <= case.agree
    return {
        "case": case.title, "seconds": seconds, "peak_mb": memory, "ratio": ratios, "must_reach": wanted,
        "difference": difference, "met": met and agreed and reached,
    }  # fmt: skip


def apart(folder: Path) -> float:
    """The largest difference between the sides' numbers where both are numbers, relative to the largest."""
    ours, peer = (torch.load(folder / f"{side}.pt", weights_only=True).double() for side in ("ours", "peer"))
    both = ours.isfinite() & peer.isfinite() & (peer != 0)
    return float((ours - peer)[both].abs().max() / peer[both].abs().max())


def at_least(folder: Path) -> bool:
    """Whether each of our numbers is at least the peer's."""
    ours, peer = (torch.load(folder / f"{side}.pt", weights_only=True) for side in ("ours", "peer"))
    return bool((ours >= peer).all())


def imports() -> list[dict]:
    """Seconds of `import X` in fresh processes; the fastest of seven."""
    seconds = {
        side: min(float(subprocess.run(
            [sys.executable, "-c", TIMED_IMPORT.format(module)],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1]) for _ in range(7))
        for side, module in IMPORTS.items()
    }  # fmt: skip
    return [
        {
            "case": title, "seconds": {"ours": seconds[a], "peer": seconds[b]}, "peak_mb": None,
            "ratio": {"time": seconds[a] / seconds[b], "memory": None}, "must_reach": {"time": limit, "memory": None},
            "difference": None, "met": seconds[a] / seconds[b] <= limit,
        }
        for title, (a, b, limit) in TARGETS.items()
    ]  # fmt: skip


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""

    def show(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [
        "| case | ours s | peer s | time ratio | must be ≤ | memory ratio | must be ≤ | difference | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["case"], show(row["seconds"]["ours"], ".4f"), show(row["seconds"]["peer"], ".4f"),
            show(row["ratio"]["time"], ".3f"), show(row["must_reach"]["time"], ".3f"),
            show(row["ratio"]["memory"], ".3f"), show(row["must_reach"]["memory"], ".3f"),
            show(row["difference"], ".1e"), "yes" if row["met"] else "no",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
