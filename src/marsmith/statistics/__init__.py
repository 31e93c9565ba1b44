"""Decisions from counts: evidence and intervals that hold at any time, sketches of distributions, and drift."""

from __future__ import annotations

from marsmith.statistics.drift import Calibration, Difference, DriftRule, Verdict, calibrated, difference, judge
from marsmith.statistics.evidence import RATIOS, TOLERATED_RATIO, Evidence, tolerated, value, weigh, weigh_rate
from marsmith.statistics.interval import RateInterval, rate_interval
from marsmith.statistics.latency import latency_limit_ms
from marsmith.statistics.ledger import Finding, Ledger
from marsmith.statistics.sketch import ClassSketch, Counts, NumberSketch, Sketch, Value, binned, sketch_of
from marsmith.statistics.thinning import Thinning
from marsmith.statistics.users import SeenUsers

__all__ = [
    "RATIOS",
    "TOLERATED_RATIO",
    "Calibration",
    "ClassSketch",
    "Counts",
    "Difference",
    "DriftRule",
    "Evidence",
    "Finding",
    "Ledger",
    "NumberSketch",
    "RateInterval",
    "SeenUsers",
    "Sketch",
    "Thinning",
    "Value",
    "Verdict",
    "binned",
    "calibrated",
    "difference",
    "judge",
    "latency_limit_ms",
    "rate_interval",
    "sketch_of",
    "tolerated",
    "value",
    "weigh",
    "weigh_rate",
]
