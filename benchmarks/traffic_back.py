"""The part of `traffic.py` about the way back: how long users wait after a canary has begun to fail."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import serving
from marsmith import run_state
from marsmith.client.key_file import read_key_file
from marsmith.deploy import Canary, deploy
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.rollout.steps import Options
from marsmith.deploy.traffic.state import RolloutFile, RolloutState
from marsmith.project import Project
from support.deploy_fixtures import MODEL, write_version
from support.live_server import make_project, until
from support.steady_load import SteadyLoad, steady_load

SHARE, PER_SECOND = 5, 50.0
# Errors of the canary in percent, with the goal for the 95th percentile in seconds; runs for 20 rounds.
CASES = {100: (4.0, 20), 5: (70.0, 5)}
OPTIONS = Options(keep=0, limits=RolloutLimits(max_latency_ratio=1000))


@dataclass(frozen=True)
class WaysBack:
    """Canaries that begin to fail while users ask.

    Attributes:
        errors: percentage of the canary's requests that fail then.
        goal_s: goal for the 95th percentile.
        times_s: from the moment when it begins to fail to that when it gets no requests, for each run; sorted.
        requests: sent by users in all runs, each once.
        failed: how many of them failed.
        other_end: runs that did not end because of failures.
    """

    errors: int
    goal_s: float
    times_s: list[float]
    requests: int
    failed: int
    other_end: int


def measure(rounds: int) -> dict[str, object]:
    """Measure everything; ``rounds`` of 20 are the 20 and 5 runs of the goal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = {errors: folder / f"flag{errors}" for errors in CASES}
        archives = [write_version(folder, "1.0")]
        for number, (errors, flag) in enumerate(flags.items(), 2):
            fails = f"if os.path.exists({str(flag)!r}) and os.urandom(1)[0] < {2.56 * errors}: raise ValueError('now')"
            archives.append(write_version(folder, f"{number}.0", at_request=fails))
        project = make_project(folder / "project", {archives[0].name: archives[0]}, token_expiration_min="600")
        project.settings_file.write_text("front: envoy\n")
        with serving(project):
            found = [
                asdict(_ways_back(project, archive, errors, flags[errors], max(1, rounds * CASES[errors][1] // 20)))
                for errors, archive in zip(CASES, archives[1:], strict=True)
            ]
    return {"ways_back": found}


def tables(found: dict[str, object]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| of the canary's requests fail | runs | goal, p95 | median | p95 | users saw fail |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    rows: list[dict[str, Any]] = found["ways_back"]  # type: ignore[assignment]
    for row in rows:
        times = row["times_s"]
        # With few runs the 95th percentile is the longest.
        p95 = times[min(len(times) - 1, round(0.95 * len(times)))]
        lines.append(
            f"| {row['errors']}% | {len(times)} | {row['goal_s']:g} s | {times[len(times) // 2]:.1f} s | {p95:.1f} s"
            f" | {row['failed']} of {row['requests']} |"
        )
        if row["other_end"]:
            lines.append(f"\n{row['other_end']} runs at {row['errors']}% ended otherwise.")
    return "\n".join(lines)


def _ways_back(project: Project, archive: Path, errors: int, flag: Path, runs: int) -> WaysBack:
    times, requests, failed, other = [], 0, 0, 0
    for number in range(runs):
        with _load(project) as load:
            state, began_s = _until_back(project, archive, flag)
        requests, failed = requests + load.count(), failed + len(load.failed())
        back_s = next(moment.at_s for moment in state.timeline if moment.phase == "going back")
        times.append(back_s - began_s)
        other += " failed, and " not in state.reason
        print(f"{errors}%, run {number + 1}: {times[-1]:.2f} s, {state.reason}", file=sys.stderr, flush=True)
    return WaysBack(errors, CASES[errors][0], sorted(times), requests, failed, other)


def _until_back(project: Project, archive: Path, flag: Path) -> tuple[RolloutState, float]:
    """Deploy a version, let it fail once it answers, and return the rollout and when it began to fail."""
    file = RolloutFile.of(project, MODEL)

    def rollout() -> RolloutState:
        state = file.read()
        assert state is not None
        return state

    deploy(project, str(archive), OPTIONS, strategy=Canary(steps=(SHARE,), interval_s=3600, max_wait_s=3600))
    try:
        until(lambda: rollout().canary_tally.answers >= 10)
        began_s = time.time()
        flag.touch()
        until(lambda: rollout().is_over, 600)
    finally:
        flag.unlink(missing_ok=True)
    return rollout(), began_s


@contextmanager
def _load(project: Project) -> Iterator[SteadyLoad]:
    state = run_state.read(project)
    load = SteadyLoad(state, MODEL, read_key_file(state.key_file).inference.value)
    with steady_load(load, closed=0, per_second=PER_SECOND, grpc=0):
        yield load
