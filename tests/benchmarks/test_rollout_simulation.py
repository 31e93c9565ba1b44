"""The promise of the rule of a rollout, on seeded simulations that take seconds, and the arithmetic of many at once."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from support.projects import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))

from marsmith.statistics import RATIOS, Evidence, value, weigh
from rollout import LIMITS, limits_text
from rollout_rivals import alike, by_evidence, by_mann_whitney, by_threshold, by_z_test
from rollout_simulation import (
    Traffic,
    constant,
    false_by_users,
    log_step,
    log_values,
    outages,
    ramp,
    simulate,
)

# Of failures, which have most of alpha.
LIMIT = LIMITS["failed"]


def test_many_runs_are_weighed_as_single_events_are() -> None:
    evidence, logs = Evidence(), np.zeros((len(RATIOS), 1))
    for share, is_canary in ((0.05, True), (0.05, False), (0.25, True)):
        evidence = weigh(evidence, share, is_canary)
        logs += log_step(share, is_canary)
    assert math.exp(log_values(logs)[0]) == pytest.approx(value(evidence))


def test_a_version_does_not_go_back_from_itself_on_a_ramp_nor_in_an_outage_of_both() -> None:
    for rate in (constant(0.01), outages(0.01, 200, 3, 1800)):
        outcome = simulate(Traffic(constant(50), rate, rate, ramp), LIMIT, 1800, runs=200, seed=2)
        assert outcome.found <= 0.01


def test_a_failing_version_is_found_in_seconds_and_one_that_fails_rarely_in_a_minute() -> None:
    broken = simulate(Traffic(constant(50), constant(1), constant(0), lambda _: 0.05), LIMIT, 60, runs=500, seed=1)
    assert (broken.found, broken.quantile_s(0.95) <= 4) == (1, True)
    rare = simulate(Traffic(constant(50), constant(0.05), constant(0.001), lambda _: 0.05), LIMIT, 300, 500, seed=1)
    assert rare.quantile_s(0.5) < 35


def test_one_event_of_each_user_keeps_the_promise_that_many_events_of_few_users_break() -> None:
    few = {"limit": LIMIT, "users": 5_000, "runs": 200, "seed": 1}
    assert false_by_users(thinned=True, **few) <= 0.01  # type: ignore[arg-type]
    assert false_by_users(thinned=False, **few) > 0.02  # type: ignore[arg-type]


def test_rules_for_one_look_find_differences_where_there_are_none() -> None:
    data = alike(per_second=50, share=0.05, error=0.005, minutes=30, runs=300, seed=1)
    assert by_evidence(data, 0.05, LIMIT) <= 0.01
    assert by_threshold(data) > 0.9
    assert by_z_test(data) > 0.03
    assert by_mann_whitney(data) > 0.05


def test_the_page_has_the_limits_that_are_in_force() -> None:
    page = (REPOSITORY / "docs" / "explanation" / "rollout-rule.md").read_text(encoding="utf-8")
    assert limits_text(LIMITS) in " ".join(page.split()), "run benchmarks/rollout.py --page again"
