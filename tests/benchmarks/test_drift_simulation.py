"""The promise of the rule of drift, on seeded simulations that take seconds, beside what others report."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from support.projects import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))

from drift import RULE, TRAFFIC, targets
from drift_rivals import by_evidently, by_test_alone
from drift_simulation import STATISTICS, alarms, found_in_one_window, independent


@pytest.mark.parametrize("traffic", TRAFFIC)
def test_no_window_is_reported_without_a_change(traffic: str) -> None:
    assert alarms(TRAFFIC[traffic], RULE, windows=240, seed=1) == 0


@pytest.mark.parametrize("traffic", ["bursts of 20 alike, every photo counted", "days and nights"])
def test_without_calibration_bursts_and_nights_would_be_reported(traffic: str) -> None:
    assert alarms(TRAFFIC[traffic], RULE, windows=240, seed=1, calibrate=False) > 0.01


def test_a_shift_is_found_in_one_window_and_a_small_one_is_not_reported() -> None:
    draw = independent(RULE.window)
    found = {s: found_in_one_window(draw, s, RULE, baseline=10, runs=30, seed=2) for s in (0.0, 0.1, 0.25, 0.5)}
    assert (found[0.0], found[0.5]) == (0, 1)
    assert found[0.1] < 0.1 < 0.5 < found[0.25]


def test_evidentlys_default_depends_on_the_sizes() -> None:
    random = np.random.default_rng(1)
    share = np.mean([by_evidently(random.normal(size=200), random.normal(size=5_000)) for _ in range(60)])
    assert share > 0.1
    assert by_evidently(random.normal(size=1_000) + 0.5, random.normal(size=800))
    assert by_test_alone(random.normal(size=5_000) + 0.2, random.normal(size=5_000))


def test_the_page_has_the_limit_that_is_in_force_and_meets_its_targets() -> None:
    page = (REPOSITORY / "docs" / "explanation" / "drift-rule.md").read_text(encoding="utf-8")
    assert f"{RULE.level(STATISTICS):.1e}" in page, "run benchmarks/drift.py --page again"
    assert page.count("| met |") == len(targets({"false": [{"a_year": 0}], "found": _rows()}))


def _rows() -> list[dict[str, object]]:
    return [{"shift": shift, "traffic": "independent", "found": 1.0} for shift in (0.1, 0.25, 0.5)]
