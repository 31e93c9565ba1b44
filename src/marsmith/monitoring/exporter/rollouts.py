"""Values of the last rollout of each model, from its state file: share, evidence, answers, and a shadow's agreement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from marsmith import metric_names as names
from marsmith.config.rollout_spec import WHOLE
from marsmith.deploy.traffic.shadow import Trial
from marsmith.deploy.traffic.state import RolloutState
from marsmith.deploy.traffic.tally import Tally
from marsmith.deploy.traffic.view import rollouts
from marsmith.monitoring.exporter.samples import Sample
from marsmith.project import Project
from marsmith.statistics import Ledger

Version = tuple[str, str]


@dataclass(frozen=True)
class RolloutSource:
    """Values of a project's rollouts."""

    project: Project

    def collect(self) -> Iterable[Sample]:
        """Return the values of every rollout.

        Raises:
            ServerError: a state file cannot be read.
        """
        return [sample for state in rollouts(self.project) for sample in of_rollout(state)]


def of_rollout(state: RolloutState) -> Iterator[Sample]:
    """Yield the values of one rollout."""
    version = (state.model, state.version)
    yield Sample(names.ROLLOUT_PHASE, (*version, state.phase), 1.0)
    yield Sample(names.ROLLOUT_SHARE, version, state.share / WHOLE)
    if state.step_began_s:
        yield Sample(names.ROLLOUT_BEGAN, version, state.step_began_s)
    if state.ledger:
        for finding in Ledger.of_record(state.ledger).findings():
            yield Sample(names.ROLLOUT_EVIDENCE, (*version, finding.kind), finding.evidence)
            yield Sample(names.ROLLOUT_LIMIT, (*version, finding.kind), finding.limit)
    yield from _answers(version, "canary", state.canary_tally)
    yield from _answers((state.model, state.stable), "stable", state.stable_tally)
    if state.shadow is not None:
        yield from _shadow(version, state.trial)


def _answers(version: Version, role: str, tally: Tally) -> Iterator[Sample]:
    ok = tally.answers - tally.failed - tally.refused
    for result, count in (("ok", ok), ("failed", tally.failed), ("refused", tally.refused)):
        yield Sample(names.ROLLOUT_ANSWERS, (*version, role, result), count)
    yield Sample(names.ROLLOUT_SLOW, (*version, role), tally.slow)


def _shadow(version: Version, trial: Trial) -> Iterator[Sample]:
    for result, count in (("sent", trial.copied), ("dropped", trial.dropped)):
        yield Sample(names.SHADOW_COPIES, (*version, result), count)
    found = trial.agreement
    for bound, value in (("lower", found.lower), ("estimate", found.rate), ("upper", found.upper)):
        if not math.isnan(value):
            yield Sample(names.SHADOW_AGREEMENT, (*version, bound), value)
