"""The rule of drift, by simulation: false alarms in years of traffic, what it finds in a window, and what others say.

    python benchmarks/drift.py [--years 2] [--runs 1000] [--page docs/explanation/drift-rule.md] [--json F]

The figures depend on the seed and not on the machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from drift_rivals import by_evidently, by_test_alone
from drift_simulation import (
    STATISTICS,
    WINDOWS_A_YEAR,
    Draw,
    alarms,
    bursts,
    day_and_night,
    found_in_one_window,
    independent,
)
from marsmith.statistics import DriftRule
from prose import fold
from report import markdown

RULE = DriftRule()
SHIFTS = (0.1, 0.25, 0.5)
BASELINES = (10, 32)
# Sizes of reference and window that Evidently's default method depends on.
SIZES = ((800, 1000), (5000, 1000), (5000, 200))
TRAFFIC: dict[str, Draw] = {
    "independent": independent(RULE.window),
    "bursts of 20 alike, thinned": bursts(RULE.window, thinned=True),
    "bursts of 20 alike, every photo counted": bursts(RULE.window, thinned=False),
    "days and nights": day_and_night(RULE.window),
}
TEXT = """# The rule of drift

Written by `{command}`. The figures are of simulated traffic and depend on the seed, not on the machine.

A window of at least {window:,} observations and an hour is compared with a baseline: the first week of live traffic of
the version, or a period that you name. Each statistic, such as the confidence or the brightness, has 20 bins of equal
probability in the baseline. A window is reported if two things hold. The difference is *significant*: the p-value of a
two-sample chi-square test is below {alarms:g} / (statistics x windows a year), {level:.1e} for {statistics} statistics.
And it is *large*: the total variation distance is above {tolerance:g}, so that at least a tenth of the observations
would have to be others. A test alone reports any difference if there are enough observations, and a distance alone
reports noise if there are few.

Observations are thinned first: one of each body, and one of each second, in a window. What dependence is left, the
baseline shows. Chi-square is divided by what bursts enlarge it by: the variance of the means of 50 consecutive
observations. And the null hypothesis is that a window differs from the baseline no more than the baseline's own windows
do. `src/marsmith/statistics/drift.py` has the arithmetic and its sources.

## Targets

{targets}
The promise is at most one false alarm a year, over all statistics, for traffic like that of the baseline. A quarter of
one is expected, so that a year with more than one is rare.

## False alarms without a change

{years:g} years of a window an hour, {statistics} statistics, a baseline of 32 windows from a week. The second column
counts what the same rule reports if it takes observations as independent.

{false}
Half of the variance of a photo in a burst is that of its burst. Days and nights: the mean swings by 0.3 standard
deviations to either side.

## What is found in one window

The first window after a shift of the mean, in standard deviations, {runs:,} runs a line.

{found}
A shift of 0.1 changes less than a tenth of the observations and is never reported. If photos come in bursts, a window
of {window:,} has fewer independent observations, and small shifts drown in what bursts differ by.

## The same data, judged otherwise

Independent observations of one statistic, without a change and with a shift of 0.1, {runs:,} windows a line.
Evidently's default depends on the size of the reference: a Kolmogorov-Smirnov test at 0.05 up to 1,000 rows, above that
Wasserstein's distance at 0.1 standard deviations.

{rivals}
"""


def measure(years: float, runs: int, seed: int) -> dict[str, Any]:
    """Simulate all."""
    windows = round(years * WINDOWS_A_YEAR * STATISTICS)
    plain = min(windows, 20 * runs)
    return {
        "years": years,
        "runs": runs,
        "false": [
            {
                "traffic": name,
                "a_year": alarms(draw, RULE, windows=windows, seed=seed) * WINDOWS_A_YEAR * STATISTICS,
                "uncalibrated": alarms(draw, RULE, windows=plain, seed=seed, calibrate=False),
            }
            for name, draw in TRAFFIC.items()
        ],
        "found": [
            {
                "traffic": name,
                "baseline": baseline,
                "shift": shift,
                "found": found_in_one_window(TRAFFIC[name], shift, RULE, baseline=baseline, runs=runs, seed=seed),
            }
            for name in list(TRAFFIC)[:2]
            for baseline in BASELINES
            for shift in SHIFTS
        ],
        "rivals": [_rivals(reference, window, runs, seed) for reference, window in SIZES],
    }


def _rivals(reference: int, window: int, runs: int, seed: int) -> dict[str, Any]:
    random, shifts = np.random.default_rng(seed), (0.0, 0.1)
    rules = {"evidently": by_evidently, "test": by_test_alone}
    found = {name: [0.0, 0.0] for name in rules}
    for _ in range(runs):
        base, later = random.normal(size=reference), random.normal(size=window)
        for name, rule in rules.items():
            for place, shift in enumerate(shifts):
                found[name][place] += rule(later + shift, base) / runs
    return {"reference": reference, "window": window, **found}


def targets(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return each target beside what was found."""
    worst = max(row["a_year"] for row in found["false"])
    power = {
        shift: min(row["found"] for row in found["found"] if row["shift"] == shift and row["traffic"] == "independent")
        for shift in SHIFTS
    }
    rows = [
        ("false alarms a year, worst traffic", "<= 1", f"{worst:.1f}", worst <= 1),
        ("shift of 0.25 sd found in one window", ">= 75%", f"{power[0.25]:.1%}", power[0.25] >= 0.75),
        ("shift of 0.5 sd found in one window", "100%", f"{power[0.5]:.1%}", power[0.5] >= 1),
    ]
    return [(what, goal, value, "met" if met else "**not met**") for what, goal, value, met in rows]


def page(found: dict[str, Any], command: str) -> str:
    """Render the page."""
    text = TEXT.format(
        command=command,
        window=RULE.window,
        level=RULE.level(STATISTICS),
        alarms=RULE.false_alarms,
        tolerance=RULE.tolerance,
        statistics=STATISTICS,
        years=found["years"],
        runs=found["runs"],
        targets=markdown(("what", "target", "simulated", ""), targets(found)),
        false=markdown(
            ("traffic", "false alarms a year", "windows reported as if independent"),
            [(r["traffic"], f"{r['a_year']:.1f}", f"{r['uncalibrated']:.2%}") for r in found["false"]],
        ),
        found=markdown(
            ("traffic", "windows of the baseline", "shift", "found"),
            [(r["traffic"], r["baseline"], f"{r['shift']:g}", f"{r['found']:.1%}") for r in found["found"]],
        ),
        rivals=markdown(
            ("reference", "window", "Evidently, no change", "Evidently, 0.1", "test at 5%, no change", "test, 0.1"),
            [_rival_cells(row) for row in found["rivals"]],
        ),
    )
    return fold("\n\n".join(map(_paragraph, text.split("\n\n")))).rstrip() + "\n"


def _rival_cells(row: dict[str, Any]) -> tuple[str, ...]:
    shares = (*row["evidently"], *row["test"])
    return (f"{row['reference']:,}", f"{row['window']:,}", *(f"{share:.1%}" for share in shares))


def _paragraph(text: str) -> str:
    return text if text.lstrip().startswith(("|", "#")) else " ".join(text.split())


def main() -> None:
    """Simulate, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=float, default=2.0, help="of each kind of traffic")
    parser.add_argument("--runs", type=int, default=1000, help="windows of each shift and rule")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = measure(args.years, args.runs, args.seed)
    text = page(found, f"python benchmarks/drift.py --years {args.years:g} --runs {args.runs} --seed {args.seed}")
    print(text)
    if args.page:
        args.page.write_text(text, encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
