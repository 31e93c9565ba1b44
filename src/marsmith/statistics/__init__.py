"""Decisions from counts that hold at any time: evidence against a version, and intervals of rates."""

from __future__ import annotations

from marsmith.statistics.evidence import RATIOS, TOLERATED_RATIO, Evidence, tolerated, value, weigh, weigh_rate
from marsmith.statistics.interval import RateInterval, rate_interval
from marsmith.statistics.latency import latency_limit_ms
from marsmith.statistics.ledger import Finding, Ledger
from marsmith.statistics.users import SeenUsers

__all__ = [
    "RATIOS",
    "TOLERATED_RATIO",
    "Evidence",
    "Finding",
    "Ledger",
    "RateInterval",
    "SeenUsers",
    "latency_limit_ms",
    "rate_interval",
    "tolerated",
    "value",
    "weigh",
    "weigh_rate",
]
