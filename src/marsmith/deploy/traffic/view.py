"""A rollout as commands show it: one line, both versions side by side, and the evidence against its limit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from marsmith.config.rollout_spec import WHOLE
from marsmith.deploy.traffic.decision import OPEN, SHADOWING
from marsmith.deploy.traffic.evidence import Weighing
from marsmith.deploy.traffic.shadow_report import about_comparison, about_shadow, comparison_data, shadow_data
from marsmith.deploy.traffic.state import RolloutFile, RolloutState
from marsmith.deploy.traffic.tally import Tally
from marsmith.errors import UsageError
from marsmith.project import Project

LIST_COLUMNS = ("MODEL", "CANARY", "STABLE", "SHARE", "PHASE", "ANSWERS", "EVIDENCE", "LIMIT", "WATCHED", "REASON")
SIDE_COLUMNS = ("VERSION", "REQUESTS", "FAILED", "SLOW", "REFUSED", "P50_MS", "P99_MS")
EVIDENCE_COLUMNS = ("EVENT", "EVIDENCE", "LIMIT", "CANARY", "STABLE")


def rollouts(project: Project, model: str | None = None) -> tuple[RolloutState, ...]:
    """Return the rollouts of a project, the last one of each model; those of one model if it is named.

    Raises:
        UsageError: the named model never had a rollout.
        ServerError: a state file cannot be read.
    """
    names = [model] if model else RolloutFile.models(project)
    found = [state for name in names if (state := RolloutFile.of(project, name).read())]
    if model and not found:
        raise UsageError(f"{model} never had a rollout", tip="marsmith deploy ARCHIVE --canary begins one")
    return tuple(found)


def watched(state: RolloutState) -> str:
    """Return who drives a rollout, in words."""
    if state.is_over:
        return "-"
    return f"pid {state.driver.pid}" if state.driver and state.is_watched else "unwatched"


def sentence(state: RolloutState) -> str:
    """Return a rollout in one sentence."""
    gets = (
        f"gets copies of {state.shadow.sample:g}% of the requests, {state.stable} answers"
        if state.shadow and state.phase in SHADOWING
        else f"gets {percent(state.share)} of the requests, {state.stable} the rest"
    )
    return f"rollout of {state.model}: {state.version} {gets}; {state.phase}, {watched(state)}"


def summary(state: RolloutState) -> dict[str, Any]:
    """Return a rollout in a few values for JSON."""
    fields = {name: getattr(state, name) for name in ("model", "version", "stable", "phase", "reason")}
    return {**fields, "share": state.share / WHOLE, "watched": state.is_watched}


def list_row(state: RolloutState) -> tuple[object, ...]:
    """Return the row of a rollout in the list."""
    largest = max(Weighing(state).findings(), key=lambda finding: finding.evidence / finding.limit)
    return (
        *(state.model, state.version, state.stable, percent(state.share), state.phase),
        *(state.canary_tally.answers, f"{largest.evidence:.3g}", f"{largest.limit:.3g}", watched(state)),
        state.reason or "-",
    )


def side_rows(state: RolloutState) -> Sequence[tuple[object, ...]]:
    """Return the rows of both versions."""
    return [_side(state.version, state.canary_tally), _side(state.stable, state.stable_tally)]


def evidence_rows(state: RolloutState) -> Sequence[tuple[object, ...]]:
    """Return one row for each kind of event."""
    return [
        (finding.kind, f"{finding.evidence:.3g}", f"{finding.limit:.3g}", finding.hits, finding.others)
        for finding in Weighing(state).findings()
    ]


def about(state: RolloutState) -> Mapping[str, str]:
    """Return what is known of a rollout besides its counts, in words."""
    fields = {
        "model": state.model,
        "canary": f"{state.version}, {percent(state.share)} of the requests",
        "stable": state.stable,
        "phase": state.phase + (f": {state.reason}" if state.reason else ""),
        "watched": watched(state),
        "sticky": state.canary.sticky or "no: each request by itself",
    }
    if state.slow_ms is not None:
        fields["slow above"] = f"{state.slow_ms:.0f} ms"
    if state.phase in OPEN and state.step >= 0:
        fields["step"] = _step(state)
    return {**fields, **about_shadow(state, time.time()), **about_comparison(state)}


def timeline(state: RolloutState) -> Sequence[str]:
    """Return what happened, one line each, with the local time."""
    return [
        f"{time.strftime('%H:%M:%S', time.localtime(moment.at_s))} {moment.what}"
        for moment in state.timeline
        if moment.what
    ]


def as_data(state: RolloutState) -> dict[str, Any]:
    """Return a rollout as plain data for JSON."""
    more = {name: getattr(state, name) for name in ("step", "step_answers", "began_s", "ended_s", "slow_ms")}
    return {
        **summary(state),
        **more,
        "canary": asdict(state.canary),
        "versions": {
            state.version: _side_data(state.canary_tally),
            state.stable: _side_data(state.stable_tally),
        },
        "evidence": [finding.record() for finding in Weighing(state).findings()],
        "shadow": shadow_data(state),
        "comparison": comparison_data(state),
        "timeline": [asdict(moment) for moment in state.timeline],
    }


def percent(share: int) -> str:
    """Return a share of ten-thousandths in percent."""
    return f"{share / 100:g}%"


def _step(state: RolloutState) -> str:
    waited_s = max(0.0, time.time() - state.step_began_s)
    return (
        f"{state.step + 1} of {len(state.canary.steps)}, for {waited_s:.0f} of {state.canary.interval_s:g} s,"
        f" {state.step_answers} of {state.canary.min_requests} answers"
    )


def _side(version: str, tally: Tally) -> tuple[object, ...]:
    quantiles = (tally.quantile_ms(0.5), tally.quantile_ms(0.99))
    shown = ("-" if quantile is None else f"{quantile:.1f}" for quantile in quantiles)
    return (version, tally.answers, tally.failed, tally.slow, tally.refused, *shown)


def _side_data(tally: Tally) -> dict[str, Any]:
    counts = {name: getattr(tally, name) for name in ("answers", "failed", "slow", "refused")}
    return {**counts, "p50_ms": tally.quantile_ms(0.5), "p99_ms": tally.quantile_ms(0.99)}
