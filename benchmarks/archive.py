"""How long an archive takes to write: marsmith beside torch-model-archiver and coreutils.

    python benchmarks/archive.py                    # 1 GB, 3 rounds, about 3 minutes
    python benchmarks/archive.py --size-mb 200 --rounds 5 --json

Every contestant is a process of its own and works on the same file of random bytes (no deflate can shrink it, like
weights), on one disk, with the file in the page cache. They take turns, in another order each round. marsmith's time
includes every member's digest and waiting for the disk; torch-model-archiver takes no digest and does not wait. Shown
are the best and the median of the wall times with their ratios to marsmith's, the time of all cores, and the peak of
memory. The goals are judged by the medians. Let the machine rest meanwhile: marsmith hashes on a second core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MARSMITH = "marsmith pack --archive-format zip-store"
STOCK_DEFAULT = "torch-model-archiver (default)"
STOCK_STORED = "torch-model-archiver --archive-format zip-store"
COREUTILS = "cp + sha256sum"
# What must hold, as ratios to marsmith's time: (contestant, least ratio).
GOALS = ((STOCK_DEFAULT, 10.0), (STOCK_STORED, 2.0), (COREUTILS, 1 / 1.5))
MAX_PEAK_MB = 100.0


@dataclass(frozen=True)
class Run:
    """One run of one contestant: wall time, time of all cores, and the most memory that one of its processes held."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Result:
    """What one contestant needs, over all rounds; each ratio is its time divided by marsmith's."""

    name: str
    best_s: float
    best_ratio: float
    median_s: float
    median_ratio: float
    cpu_s: float
    peak_mb: float


def contestants() -> dict[str, list[str]]:
    """Give the command of each contestant; they run in a folder with ``model.pt`` and ``handler.py``."""
    flags = [
        "--model-name",
        "toy",
        "--version",
        "1.0",
        "--serialized-file",
        "model.pt",
        "--handler",
        "handler.py",
        "--export-path",
        "out",
    ]
    beside = Path(sys.executable).parent
    stock = str(beside / "torch-model-archiver")
    ours = [sys.executable, "-m", "marsmith", "pack"]
    return {
        COREUTILS: ["sh", "-c", "cp model.pt out/toy.mar && sha256sum out/toy.mar"],
        MARSMITH: [*ours, *flags, "--archive-format", "zip-store"],
        "marsmith pack (default)": [*ours, *flags],
        STOCK_STORED: [stock, *flags, "--archive-format", "zip-store"],
        STOCK_DEFAULT: [stock, *flags],
    }


def clear(folder: Path) -> None:
    """Empty the place, wait until the disk rests, and have the memory ready that a contestant will need.

    A virtual machine gives free memory back to its host, and getting it again takes longer than any contestant. So two
    copies of the model, the most that one writes, are written and deleted right before each run.
    """
    for name in ("out", "tmp"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    for name in ("one", "two"):
        shutil.copyfile(folder / "model.pt", folder / "tmp" / name)
    for name in ("one", "two"):
        (folder / "tmp" / name).unlink()
    os.sync()


def run_once(command: list[str], folder: Path) -> Run:
    """Run a contestant."""
    clear(folder)
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with exit code {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(folder: Path, rounds: int, *, quick: bool) -> list[Result]:
    """Run all contestants in turns; a first one, which fills the page cache, does not count."""
    commands = {name: command for name, command in contestants().items() if not (quick and name == STOCK_DEFAULT)}
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    run_once(commands[MARSMITH], folder)
    order = list(commands)
    for number in range(rounds):
        order = order[1:] + order[:1]
        for name in order:
            runs[name].append(run_once(commands[name], folder))
            print(f"round {number + 1}: {name}: {runs[name][-1].seconds:.2f} s", file=sys.stderr)
    best = {name: min(run.seconds for run in found) for name, found in runs.items()}
    median = {name: statistics.median(run.seconds for run in found) for name, found in runs.items()}
    return [
        Result(
            name,
            best[name],
            best[name] / best[MARSMITH],
            median[name],
            median[name] / median[MARSMITH],
            statistics.median(run.cpu_seconds for run in found),
            max(run.peak_mb for run in found),
        )
        for name, found in runs.items()
    ]


def write_inputs(folder: Path, size_mb: int) -> None:
    """Write the model and its handler."""
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    with (folder / "model.pt").open("wb") as file:
        for _ in range(size_mb):
            file.write(os.urandom(1_000_000))


def machine() -> str:
    """Say on what this ran: cores, and the instructions that decide how fast SHA-256 is."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = dict(line.split(":", 1) for line in info.replace("\t", "").splitlines() if ":" in line)
    flags = [flag for flag in ("sha_ni", "avx2", "avx512f", "pclmulqdq") if flag in found.get("flags", "").split()]
    name = found.get("model name", platform.processor()).strip()
    return f"{os.cpu_count()} cores, {name}, {' '.join(flags)}, Python {platform.python_version()}"


def verdicts(results: list[Result]) -> list[str]:
    """Say for each goal whether it was reached."""
    by_name = {result.name: result for result in results}
    lines = []
    for name, least in GOALS:
        if name in by_name:
            ratio = by_name[name].median_ratio
            verdict = "ok  " if ratio >= least else "MISS"
            lines.append(f"{verdict} {name}: {ratio:.2f} times marsmith's time (goal: at least {least:.2f})")
    peak = by_name[MARSMITH].peak_mb
    return [*lines, f"{'ok  ' if peak < MAX_PEAK_MB else 'MISS'} memory: {peak:.0f} MB (goal: below {MAX_PEAK_MB:.0f})"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1000, help="size of the weights in MB (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant runs (default: 3)")
    parser.add_argument("--quick", action="store_true", help="leave out torch-model-archiver's slow default")
    parser.add_argument("--folder", type=Path, help="where to work; needs four times the size (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marsmith-benchmark-", dir=args.folder) as name:
        write_inputs(Path(name), args.size_mb)
        results = measure(Path(name), args.rounds, quick=args.quick)
    if args.json:
        rows = [asdict(result) for result in results]
        print(json.dumps({"machine": machine(), "size_mb": args.size_mb, "results": rows}, indent=2))
        return
    print(f"{args.size_mb} MB, {args.rounds} rounds; {machine()}\n")
    print("    best   ratio    median   ratio     cores  memory")
    for result in results:
        times = f"{result.best_s:6.2f} s {result.best_ratio:7.2f}  {result.median_s:6.2f} s {result.median_ratio:7.2f}"
        print(f"{times}  {result.cpu_s:6.2f} s {result.peak_mb:4.0f} MB  {result.name}")
    print("\n" + "\n".join(verdicts(results)))


if __name__ == "__main__":
    main()
