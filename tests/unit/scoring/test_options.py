"""Limits, slices and dates as they are written on the command line."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from marsmith.errors import UsageError
from marsmith.scoring.options import AsOf, ErrorLimit, Slice


@pytest.mark.parametrize(
    ("text", "inputs", "allowed"), [("7", 10, 7), ("0", 10, 0), ("1.5%", 1000, 15), ("100%", 3, 3)]
)
def test_a_limit_of_errors_is_a_number_or_a_share(text: str, inputs: int, allowed: int) -> None:
    assert ErrorLimit.parse(text).of(inputs) == allowed


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "few", "%"])
def test_any_other_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-errors"):
        ErrorLimit.parse(text)


def test_a_slice_is_given_or_taken_from_the_pod() -> None:
    assert Slice.parse("2/4", {}) == Slice(2, 4)
    assert Slice.parse("/4", {"JOB_COMPLETION_INDEX": "3"}) == Slice(3, 4)


@pytest.mark.parametrize("text", ["4/4", "/4", "1", "a/b", "1/0", "-1/2"])
def test_any_other_slice_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slice"):
        Slice.parse(text, {})


def test_a_date_ends_with_its_day_and_fills_names() -> None:
    day = AsOf.parse("2026-11-27")
    assert day.until.isoformat() == "2026-11-28T00:00:00+00:00"
    assert day.fill("in/{date}/{date:%Y/%m}/{x}") == "in/2026-11-27/2026/11/{x}"
    assert AsOf.parse("yesterday").until <= datetime.now(UTC)
    assert AsOf.parse("2026-11-27T06:00+01:00").until_ns == 1_795_755_600 * 10**9


@pytest.mark.parametrize("text", ["last week", "2026-13-01", "2026-11-32", "9999-12-31", ""])
def test_any_other_date_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--as-of"):
        AsOf.parse(text)
