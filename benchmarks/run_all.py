"""Every benchmark of serving, one after the other, and the page that they end on: docs/explanation/benchmarks.md.

Run: make bench              (about two hours on 2 cores; nothing else should run)
     make bench BENCH=--quick
     python benchmarks/run_all.py --only serving peers       # measure these again, and render the page anew

Results lie in benchmarks/results/ as JSON, one file a benchmark, each with its machine; the page says which machine it
was, and refuses to mix machines: on another one measure all, or remove that folder first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine_record
from report import hardware, render_page

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "explanation" / "benchmarks.md"
# How closed loops are counted; results that do not say so were measured before.
RATES = "every answer after the warm-up"
# In this order; the first is short, so that what is not set up shows soon.
COMMANDS = {
    "ready": ("ready.py", ["--rounds", "3"], ["--rounds", "2"]),
    "serving": ("serving.py", ["--rounds", "2", "--seconds", "5"], ["--rounds", "1", "--seconds", "2"]),
    "judged": ("judged.py", ["--seconds", "10"], ["--seconds", "4"]),
    "service_level": ("service_level.py", ["--minutes", "10", "--seconds", "5"], ["--minutes", "1", "--seconds", "3"]),
    "frontend": ("frontend.py", ["--rounds", "1", "--seconds", "8"], ["--rounds", "1", "--seconds", "5"]),
    "peers": ("peers.py", ["--rounds", "2", "--seconds", "3"], ["--rounds", "1", "--seconds", "2"]),
    "stages": ("stages.py", ["--rounds", "3", "--seconds", "5"], ["--rounds", "1", "--seconds", "3"]),
    "tuner": ("tuner.py", [], ["--quick"]),
    "optimize": ("optimize.py", ["--seconds", "5"], ["--quick", "--seconds", "2", "--rounds", "1"]),
}


def main() -> int:
    """Run what was asked for, and render the page from all results there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--quick", action="store_true", help="shorter, with more noise")
    parser.add_argument("--render", action="store_true", help="measure nothing, render the page")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    here = hardware(machine_record())
    others = [name for name, result in stored().items() if hardware(result["machine"]) != here]
    if not args.render and (kept := sorted(set(others) - set(args.only))):
        parser.error(
            f"these results are of another machine: {', '.join(kept)}; figures of two machines make no page. Measure"
            " them too (make bench does), or remove benchmarks/results first"
        )
    failed = []
    for name in [] if args.render else args.only:
        file, usual, quick = COMMANDS[name]
        options, result = quick if args.quick else usual, RESULTS / f"{name}.json"
        command = " ".join(["python", f"benchmarks/{file}", *options])
        print(f"== {command}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, str(HERE / file), *options, "--json", str(result)], check=False).returncode:
            failed.append(name)
            continue
        # The page says how each figure was made.
        measured = json.loads(result.read_text(encoding="utf-8")) | {"command": command, "rates": RATES}
        result.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    # What could not be measured here may still lie there from another machine.
    results = {name: each for name, each in stored().items() if args.render or hardware(each["machine"]) == here}
    PAGE.write_text(render_page(results, PAGE.parent / "plots"), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}; the page shows their earlier results, if any", file=sys.stderr)
    return 1 if failed else 0


def stored() -> dict[str, Any]:
    """Return the results that there are, by the benchmark's name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


if __name__ == "__main__":
    sys.exit(main())
