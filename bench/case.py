"""One side of one case, measured in a process of its own: `python bench/case.py CASE SIDE REPEATS OUT`.

Prints seconds (all repeats), the growth of resident memory over what was there before the first call, and writes
the numbers that must agree. A repeat before the measured ones warms the caches, except where memory is the question.
"""

import json
import sys
import time
from pathlib import Path

import torch

from bench.registry import CASES


def resident(field: str) -> float:
    """What this process holds now (VmRSS) or has held at most (VmHWM), in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main(case: str, side: str, repeats: int, out: Path) -> None:
    torch.manual_seed(0)
    run = CASES[case].sides[side]()
    Path("/proc/self/clear_refs").write_text("5")  # from here on, VmHWM counts anew
    before = resident("VmRSS")
    with torch.no_grad():
        numbers = run()
        peak = resident("VmHWM") - before
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    torch.save(numbers, out)
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
