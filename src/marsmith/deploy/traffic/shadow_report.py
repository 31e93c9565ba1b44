"""What a shadow has found, as commands and the report show it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.config.rollout_spec import WHOLE
from marsmith.deploy.traffic.decision import SHADOWING
from marsmith.deploy.traffic.shadow import Shadow, Trial
from marsmith.deploy.traffic.state import RolloutState
from marsmith.errors import ServerError
from marsmith.predictions.page import render_page
from marsmith.predictions.report import fields, flip_rows


def about_shadow(state: RolloutState, now_s: float) -> Mapping[str, str]:
    """Return what is known of a rollout's shadow, in words; nothing if it has none."""
    shadow, trial = state.shadow, state.trial
    if shadow is None:
        return {}
    told = {"copies": _copies(shadow, trial)}
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


def shadow_flips(state: RolloutState) -> Sequence[tuple[str, str, int]]:
    """Return the most frequent flips of a class."""
    return flip_rows(state.trial.report) if state.trial.report else ()


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
        "began_s": trial.began_s or None,
        "ended_s": trial.ended_s or None,
        "copied": trial.copied,
        "dropped": trial.dropped,
        "unanswered": trial.unanswered,
        "agreement_of_copies": {
            "rate": found.rate if found.observations else None,
            "observations": found.observations,
            "lower": found.lower,
            "upper": found.upper,
            "alpha": found.alpha,
        },
        "page": trial.page or None,
        "report": trial.report.record() if trial.report else None,
    }


def write_report(folder: Path, state: RolloutState) -> Path:
    """Write the report of a shadow as JSON and as a page with plots, and return the page's path.

    Raises:
        ServerError: they cannot be written.
    """
    page = folder / f"{state.model}-{state.version}.html"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = json.dumps({"model": state.model, **(shadow_data(state) or {}), "page": page.name}, indent=2)
        files.write_atomically(page.with_name(f"{state.model}-{state.version}.json"), data + "\n", mode=0o600)
        if state.trial.report is not None:
            files.write_atomically(page, render_page(state.trial.report, state.model), mode=0o600)
    except OSError as error:
        raise ServerError(f"cannot write the report {page}: {error.strerror}") from None
    return page


def _copies(shadow: Shadow, trial: Trial) -> str:
    return f"{shadow.sample:g}% of the requests: {trial.copied:,} sent, {trial.dropped:,} dropped"
