"""What a shadow has found, as commands and the report show it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from marsmith import files
from marsmith.config.rollout_spec import WHOLE
from marsmith.deploy.traffic.decision import SHADOWING
from marsmith.deploy.traffic.shadow import Trial
from marsmith.deploy.traffic.state import RolloutState
from marsmith.errors import ServerError
from marsmith.predictions.page import render_page
from marsmith.predictions.report import fields, flip_rows

# Whose requests are copied: of the old version to the new one, or of the canary to the old version.
Kind = Literal["trial", "comparison"]


def about_shadow(state: RolloutState, now_s: float) -> Mapping[str, str]:
    """Return what is known of a rollout's shadow, in words; nothing if it has none."""
    shadow, trial = state.shadow, state.trial
    if shadow is None:
        return {}
    told = {"copies": _copies(f"{shadow.sample:g}% of the requests", trial)}
    if state.phase in SHADOWING and trial.began_s:
        told["shadow for"] = f"{now_s - trial.began_s:.0f} of {shadow.time_s:g} s"
    told["after it"] = (
        f"a canary, if the agreement is at least {shadow.min_agreement:.2%}" if shadow.then else "it is taken off"
    )
    if trial.report is not None:
        found = trial.agreement
        told["of all copies"] = (
            f"{found.happened:,} of {found.observations:,} agree, between {found.lower:.2%} and {found.upper:.2%};"
            f" {trial.unanswered:,} have no logged reply"
        )
        told |= fields(trial.report)
    if trial.page:
        told["report"] = trial.page
    return told


def about_comparison(state: RolloutState) -> Mapping[str, str]:
    """Return what is known of the comparison during a canary, in words; nothing if there is none."""
    trial, part = state.comparison, state.canary.compare
    if part is None:
        return {}
    told = {"compared": _copies(f"{part:g}% of the canary's requests", trial)}
    if trial.report is not None:
        told |= fields(trial.report)
    if trial.page:
        told["report"] = trial.page
    return told


def flips(state: RolloutState) -> Sequence[tuple[str, str, int]]:
    """Return the most frequent flips of a class: of the canary if it is compared, else of the shadow."""
    report = state.comparison.report or state.trial.report
    return flip_rows(report) if report else ()


def comparison_data(state: RolloutState) -> dict[str, Any] | None:
    """Return the comparison during a canary as plain data for JSON; None if there is none."""
    trial, canary = state.comparison, state.canary
    if canary.compare is None:
        return None
    return {
        "compare": canary.compared_part / WHOLE,
        "min_agreement": canary.min_agreement,
        **_trial_data(trial),
    }


def shadow_data(state: RolloutState) -> dict[str, Any] | None:
    """Return a rollout's shadow as plain data for JSON; None if it has none."""
    shadow, trial = state.shadow, state.trial
    if shadow is None:
        return None
    found = trial.agreement
    return {
        "sample": shadow.part / WHOLE,
        "time_s": shadow.time_s,
        "min_agreement": shadow.min_agreement,
        "then": "canary" if shadow.then else None,
        "ended_s": trial.ended_s or None,
        "unanswered": trial.unanswered,
        "agreement_of_copies": {
            "rate": found.rate if found.observations else None,
            "observations": found.observations,
            "lower": found.lower,
            "upper": found.upper,
            "alpha": found.alpha,
        },
        **_trial_data(trial),
    }


def _trial_data(trial: Trial) -> dict[str, Any]:
    return {
        "began_s": trial.began_s or None,
        "copied": trial.copied,
        "dropped": trial.dropped,
        "page": trial.page or None,
        "report": trial.report.record() if trial.report else None,
    }


def write_report(folder: Path, state: RolloutState, kind: Kind) -> Path:
    """Write what a comparison has found as JSON and as a page with plots, and return the page's path.

    Raises:
        ServerError: they cannot be written.
    """
    trial, found = (state.trial, shadow_data(state)) if kind == "trial" else (state.comparison, comparison_data(state))
    name = f"{state.model}-{state.version}{'' if kind == 'trial' else '-canary'}"
    page = folder / f"{name}.html"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = json.dumps({"model": state.model, **(found or {}), "page": page.name}, indent=2)
        files.write_atomically(folder / f"{name}.json", data + "\n", mode=0o600)
        if trial.report is not None:
            files.write_atomically(page, render_page(trial.report, state.model), mode=0o600)
    except OSError as error:
        raise ServerError(f"cannot write the report {page}: {error.strerror}") from None
    return page


def _copies(part: str, trial: Trial) -> str:
    return f"{part}: {trial.copied:,} sent, {trial.dropped:,} dropped"
