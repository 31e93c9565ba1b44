"""Drift of a version's live traffic: against the archive's reference once, against a baseline all the time."""

from __future__ import annotations

from marsmith.monitoring.drift.monitor import DriftMonitor
from marsmith.monitoring.drift.state import Against, Baseline, DriftFile, DriftState, StatisticVerdict, WindowVerdict

__all__ = ["Against", "Baseline", "DriftFile", "DriftMonitor", "DriftState", "StatisticVerdict", "WindowVerdict"]
