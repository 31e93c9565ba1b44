"""How long does ``marsmith --help`` take, beside a Python that does nothing?

Run: python benchmarks/startup.py [--json]

Both are whole processes, in turn, with one warm-up; the design goal is under 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "marsmith --help": [str(Path(sys.executable).parent / "marsmith"), "--help"],
    "marsmith archive --help": [str(Path(sys.executable).parent / "marsmith"), "archive", "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runs: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(args.rounds + 1):
        for name, command in COMMANDS.items():
            taken = seconds(command)
            if turn:
                runs[name].append(taken)
    base = statistics.median(runs["python -c pass"])
    rows = [
        {"command": name, "median_s": median, "max_s": max(taken), "ratio": median / base}
        for name, taken in runs.items()
        for median in [statistics.median(taken)]
    ]
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    if args.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
        return
    for row in rows:
        print(f"{row['command']:<24} median {row['median_s']:.3f} s  max {row['max_s']:.3f} s  x {row['ratio']:.1f}")


if __name__ == "__main__":
    main()
