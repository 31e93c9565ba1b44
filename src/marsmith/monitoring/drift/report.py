"""What is known of a version's drift in words, for terminals and pages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from marsmith.monitoring.drift.baseline import LEAST_WINDOWS, WEEK_S
from marsmith.monitoring.drift.monitor import DriftMonitor
from marsmith.monitoring.drift.state import DriftState, WindowVerdict
from marsmith.statistics import RateInterval

COLUMNS = ("STATISTIC", "AGAINST", "OBSERVATIONS", "DISTANCE", "P", "VERDICT")


def facts(monitor: DriftMonitor, accuracies: Mapping[str, RateInterval]) -> dict[str, str]:
    """Return the facts by name, as text."""
    state, rule = monitor.state, monitor.rule
    found = {
        "version": f"{state.model}:{state.version}",
        "baseline": _baseline(state, monitor.is_period_named),
        "skew": _skew(state, has_reference=monitor.has_reference),
        "drift": _drift(state),
        "next window": f"{monitor.waiting:,} of at least {rule.window:,} observations",
    }
    if (accuracy := accuracies.get(state.version)) is not None:
        found["accuracy"] = (
            f"{accuracy.rate:.2%} of {accuracy.observations:,} labelled; with a confidence of {1 - accuracy.alpha:.0%}"
            f" at any time between {accuracy.lower:.2%} and {accuracy.upper:.2%}"
        )
    found["rule"] = (
        f"p below {rule.level(_statistics(state)):.1e} and a distance above {rule.tolerance:g}: at most one false alarm"
        " a year, over all statistics, for traffic like the baseline's"
    )
    return found


def rows(state: DriftState) -> list[tuple[str, ...]]:
    """Return a row for each statistic of the last window, the most different first, then of the skew."""
    found: list[tuple[str, ...]] = []
    for against, window in (("baseline", state.windows[-1] if state.windows else None), ("reference", state.skew)):
        ordered = sorted(window.statistics, key=lambda one: (-one.drifted, -one.distance)) if window else []
        for one in ordered:
            verdict = "differs" if one.drifted else "as before" if against == "baseline" else "alike"
            figures = (f"{one.observations:,}", f"{one.distance:.3f}", f"{one.p_value:.2g}")
            found.append((one.statistic, against, *figures, verdict))
    return found


def _baseline(state: DriftState, is_named: bool) -> str:
    if state.baseline is not None:
        found = state.baseline
        return f"{_time(found.begin)} to {_time(found.end)}, {found.windows:,} windows"
    if is_named:
        return (
            f"the period has {state.seen} windows, and needs {LEAST_WINDOWS}: name a longer one, or a smaller --window"
        )
    days = (state.until - state.began) / 86_400 if state.began else 0.0
    return (
        f"still collected: {state.seen} of at least {LEAST_WINDOWS} windows, {days:.1f} of {WEEK_S / 86_400:.0f} days;"
        " --baseline FROM..TO names another period"
    )


def _skew(state: DriftState, *, has_reference: bool) -> str:
    if state.skew is not None:
        return _named(state.skew, "the reference")
    if has_reference:
        return "told with the first full window"
    return "the archive has no reference: give the spec validation data (reference:), and build it again"


def _drift(state: DriftState) -> str:
    if not state.windows:
        return "no window after the baseline yet"
    last = state.windows[-1]
    drifted = sum(bool(window.drifted) for window in state.windows)
    more = f"; {drifted} of the last {len(state.windows)} windows differ" if len(state.windows) > 1 else ""
    return f"{_named(last, 'the baseline')}{more}"


def _named(window: WindowVerdict, what: str) -> str:
    period = f"{_time(window.begin)} to {_time(window.end)}, {window.observations:,} observations"
    if not window.drifted:
        return f"no difference from {what}: {period}"
    return f"{', '.join(window.drifted)} differ from {what}: {period}"


def _statistics(state: DriftState) -> int:
    if state.baseline is not None:
        return len(state.baseline.statistics)
    return len(state.skew.statistics) if state.skew else 1


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
