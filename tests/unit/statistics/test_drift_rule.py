"""Drift: the distributions against scipy, sketches and thinning as properties, and both conditions of the rule."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from marsmith.statistics import (
    Calibration,
    ClassSketch,
    DriftRule,
    NumberSketch,
    Thinning,
    binned,
    calibrated,
    difference,
    judge,
    sketch_of,
)
from marsmith.statistics.chi_square import noncentral_survival, quantile, survival

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
counts = st.lists(st.integers(0, 2_000), min_size=2, max_size=40)
RULE, LEVEL, PLAIN = DriftRule(), DriftRule().level(12), Calibration()


@given(st.floats(1e-3, 2_000), st.integers(1, 60))
def test_the_tail_of_chi_square_is_the_one_of_scipy(value: float, degrees: int) -> None:
    assert survival(value, degrees) == pytest.approx(stats.chi2.sf(value, degrees), rel=1e-8, abs=1e-300)


@settings(max_examples=40)
@given(st.floats(1e-3, 600), st.integers(1, 40), st.floats(1e-3, 300))
def test_the_tail_of_noncentral_chi_square_is_the_one_of_scipy(value: float, degrees: int, away: float) -> None:
    assert noncentral_survival(value, degrees, away) == pytest.approx(stats.ncx2.sf(value, degrees, away), abs=1e-9)


@given(st.floats(1e-9, 0.5), st.integers(1, 40))
def test_a_quantile_is_exceeded_with_its_probability(probability: float, degrees: int) -> None:
    assert survival(quantile(probability, degrees), degrees) == pytest.approx(probability, rel=1e-6)


@given(st.lists(numbers, max_size=300))
def test_a_sketch_counts_each_number_once_in_at_most_20_bins(values: list[float]) -> None:
    sketch = NumberSketch.of(values)
    assert sum(sketch.counts) == len(values)
    assert len(sketch.edges) <= 19
    assert list(sketch.edges) == sorted(set(sketch.edges))
    assert len(sketch.labels) == len(sketch.counts)
    assert binned(sketch, values) == sketch.counts
    assert NumberSketch.of(random.Random(1).sample(values, len(values))) == sketch


@given(st.lists(numbers, min_size=40, max_size=300, unique=True))
def test_bins_have_equal_probability(values: list[float]) -> None:
    found = NumberSketch.of(values).counts
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize("other", [639.0, 641.0])
def test_a_number_that_never_changed_has_a_bin_of_its_own(other: float) -> None:
    sketch = NumberSketch.of([640.0] * 1000)
    assert difference(binned(sketch, [other] * 1000), sketch.counts).distance == 1


@given(st.lists(st.text(max_size=3), max_size=200), st.lists(st.text(max_size=300), max_size=20))
def test_classes_are_counted_and_unknown_ones_among_the_others(values: list[str], later: list[str]) -> None:
    sketch = ClassSketch.of(values)
    assert sum(sketch.counts) == len(values)
    assert all(values.count(name) * 20 >= len(values) for name in sketch.names)
    assert sum(binned(sketch, later)) == len(later)
    assert len(sketch.labels) == len(sketch.counts) <= 40


def test_the_kind_of_a_sketch_is_that_of_its_values_and_the_other_kind_is_left_out() -> None:
    assert isinstance(sketch_of(["cat", "dog"]), ClassSketch)
    assert sum(binned(sketch_of([1.0, 2.0]), ["cat"])) == sum(binned(sketch_of(["cat"]), [1.0])) == 0


@given(counts)
def test_a_sample_does_not_differ_from_itself_and_the_distance_is_a_share(sample: list[int]) -> None:
    same = difference(tuple(sample), tuple(sample))
    assert (same.chi_square, same.distance) == (0, 0)
    turned = difference(tuple(sample), tuple(reversed(sample)))
    assert 0 <= turned.distance <= 1
    assert turned.chi_square >= 0


@given(counts, st.integers(1, 5))
def test_the_test_is_that_of_a_table_with_two_rows(sample: list[int], times: int) -> None:
    ours, theirs = [n + 50 for n in sample], [times * n + 60 for n in reversed(sample)]
    found = difference(tuple(ours), tuple(theirs))
    table = stats.chi2_contingency([ours, theirs], correction=False)
    assert found.degrees == table.dof
    assert found.chi_square == pytest.approx(table.statistic, rel=1e-9, abs=1e-9)


def test_significance_alone_and_size_alone_are_not_reported() -> None:
    flat = (50_000,) * 20
    small_shift = tuple(50_000 + (2_000 if i < 10 else -2_000) for i in range(20))
    found = judge(small_shift, flat, RULE, LEVEL, PLAIN)
    assert (found.p_value < LEVEL, found.differs) == (True, False)
    few = judge((9, 3) * 10, (1000,) * 20, RULE, LEVEL, PLAIN)
    assert (few.distance > RULE.tolerance, few.differs) == (True, False)
    assert judge((150, *(850 // 19,) * 19), flat, RULE, LEVEL, PLAIN).differs
    assert not judge((0,) * 20, flat, RULE, LEVEL, PLAIN).differs


def test_one_observation_of_a_body_and_of_a_second_counts() -> None:
    thinning = Thinning()
    given_ = [("a", 10.0), ("b", 10.9), ("b", 11.0), ("c", 12.5), ("a", 13.0), ("d", 12.9), ("e", 14.0)]
    assert [body for body, time_s in given_ if thinning.keeps(body, time_s)] == ["a", "b", "c", "e"]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1e6)), max_size=60), st.floats(0.1, 100))
def test_what_is_kept_lies_in_blocks_of_its_own(given_: list[tuple[int, float]], block_s: float) -> None:
    thinning = Thinning(block_s)
    kept = [(body, time_s) for body, time_s in given_ if thinning.keeps(str(body), time_s)]
    assert len({body for body, _ in kept}) == len({time_s // block_s for _, time_s in kept}) == len(kept)


def _windows(draw: random.Random, count: int, *, burst: int = 1, swing: float = 0.0) -> list[list[float]]:
    def window(hour: int) -> list[float]:
        mean, common, values = swing * math.sin(hour), 0.0, []
        for number in range(1000):
            common = draw.gauss(0, 1) if number % burst == 0 else common
            values.append(mean + math.sqrt(0.5) * (common + draw.gauss(0, 1)))
        return values

    return [window(hour) for hour in range(count)]


def _verdicts(baseline: list[list[float]], later: list[list[float]]) -> list[bool]:
    sketch = NumberSketch.of(value for window in baseline for value in window)
    found = calibrated(sketch, baseline)
    return [judge(binned(sketch, window), sketch.counts, RULE, LEVEL, found).differs for window in later]


def test_independent_windows_need_no_calibration() -> None:
    windows = _windows(random.Random(2), 10)
    sketch = NumberSketch.of(value for window in windows for value in window)
    assert calibrated(sketch, windows) == PLAIN
    assert _verdicts(windows, [[value + 0.5 for value in window] for window in windows[:3]]) == [True] * 3


@pytest.mark.parametrize(("burst", "swing"), [(20, 0.0), (1, 0.4)])
def test_bursts_and_days_of_the_baseline_are_no_drift_later(burst: int, swing: float) -> None:
    windows = _windows(random.Random(3), 10, burst=burst, swing=swing)
    later = _windows(random.Random(4), 20, burst=burst, swing=swing)
    assert not any(_verdicts(windows, later))
    plain, sketch = 0, NumberSketch.of(value for window in windows for value in window)
    for window in later:
        plain += judge(binned(sketch, window), sketch.counts, RULE, LEVEL, PLAIN).differs
    assert plain > 0, "without calibration they would be"


def test_bursts_of_a_class_are_seen_too() -> None:
    draw = random.Random(5)
    windows = [[name for _ in range(50) for name in [draw.choice("abc")] * 20] for _ in range(8)]
    found = calibrated(sketch_of(windows[0]), windows)
    assert 10 < found.spread < 30


def test_the_level_is_split_over_statistics_and_windows_of_a_year() -> None:
    assert RULE.level(12) == pytest.approx(0.25 / (12 * 8760))
    assert DriftRule(window_s=86_400, false_alarms=2).level(1) == pytest.approx(2 / 365)
