"""The part of `traffic.py` about routes: how soon a share is in effect, and what users see of a failing canary."""

from __future__ import annotations

import statistics
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
from marsmith.client.blocking_client import Client
from marsmith.client.key_file import read_key_file
from marsmith.project import Project
from marsmith.server.front.access_log import read_answers
from marsmith.server.front.bootstrap import ANSWERS_FILE
from marsmith.server.front.door import Front
from marsmith.server.front.files import apply_traffic
from marsmith.server.front.traffic import WHOLE, Canary, Traffic
from support.deploy_fixtures import MODEL, write_version
from support.live_server import make_project, until
from support.steady_load import Sent, SteadyLoad, steady_load

CHANGES = 60
REQUESTS = 10_000
FAILING_SHARE = 2_500


@dataclass(frozen=True)
class Changes:
    """What a number of changes of the share cost.

    Attributes:
        changes: how many.
        requests, failed: sent meanwhile, over REST and gRPC, each once.
        effect_p50_ms, effect_p95_ms, effect_max_ms: from the call that asks for a new share to the moment when the last
            request was sent that the other version still answered.
        call_p50_ms, call_max_ms: how long that call took; it returns when Envoy has accepted the routes.
    """

    changes: int
    requests: int
    failed: int
    effect_p50_ms: float
    effect_p95_ms: float
    effect_max_ms: float
    call_p50_ms: float
    call_max_ms: float


@dataclass(frozen=True)
class Failing:
    """What users see of a canary that fails on every request.

    Attributes:
        requests: sent by users, by API.
        failed: how many of them failed.
        repeated: how many the default version has answered instead, as the log of answers says.
    """

    requests: dict[str, int]
    failed: int
    repeated: int


def measure(rounds: int) -> dict[str, object]:
    """Measure everything; ``rounds`` of 20 are the 60 changes that the target names."""
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as project:
        changes = _changes(project, max(1, rounds * CHANGES // 20))
        failing = _failing(project, REQUESTS // 5)
    return {"changes": asdict(changes), "failing": asdict(failing)}


def tables(found: dict[str, object]) -> str:
    """Return the figures as Markdown."""
    changes, failing = (dict[str, Any](found[name]) for name in ("changes", "failing"))  # type: ignore[call-overload]
    effects = (changes["effect_p50_ms"], changes["effect_p95_ms"], changes["effect_max_ms"])
    rows = {
        f"requests that failed over {changes['changes']} changes of a share": (
            "0 of 10,000",
            f"{changes['failed']} of {changes['requests']}",
        ),
        "a new share is in effect after": (
            "< 50 ms",
            "p50 {:.1f} ms, p95 {:.1f} ms, at most {:.1f} ms".format(*effects),
        ),
        "the call returns after": ("", f"p50 {changes['call_p50_ms']:.1f} ms, at most {changes['call_max_ms']:.1f} ms"),
        "failures that users see of a canary that fails 100% at 25%": (
            "0",
            f"{failing['failed']} of {failing['requests']}, {failing['repeated']} were repeated",
        ),
    }
    lines = [f"| {what} | {target} | {measured} |" for what, (target, measured) in rows.items()]
    return "\n".join(["| what | target | measured |", "|---|---|---|", *lines])


@contextmanager
def _served(folder: Path) -> Iterator[Project]:
    archives = [write_version(folder, "1.0"), write_version(folder, "2.0")]
    archives.append(write_version(folder, "3.0", at_request="raise ValueError('fails')", example=False))
    project = make_project(folder / "project", {each.name: each for each in archives}, token_expiration_min="600")
    project.settings_file.write_text("front: envoy\n")
    with serving(project):
        with Client.of(run_state.read(project)) as client:
            client.set_default(MODEL, "1.0")
        yield project


def _load(project: Project) -> SteadyLoad:
    state = run_state.read(project)
    return SteadyLoad(state, MODEL, read_key_file(state.key_file).inference.value)


def _changes(project: Project, count: int) -> Changes:
    """Send everything to the one version and to the other in turns, under load."""
    folder, load = Front.of(project).folder, _load(project)
    asked: list[tuple[str, float, float]] = []
    with steady_load(load, closed=2, per_second=20.0, grpc=2):
        # The first one is checked by another Envoy; those that differ in shares only are not.
        apply_traffic(folder, Traffic((Canary(MODEL, "2.0", 0),)))
        until(lambda: load.count() > 100)
        for number in range(count):
            share, version = ((WHOLE, "2.0"), (0, "1.0"))[number % 2]
            began = time.monotonic()
            apply_traffic(folder, Traffic((Canary(MODEL, "2.0", share),)))
            asked.append((version, began, time.monotonic()))
            seen = load.count()
            until(lambda seen=seen: load.count() > seen + REQUESTS // count)  # type: ignore[misc]
    effects = _effects_ms(load.sent, asked)
    calls = [1000 * (done - began) for _, began, done in asked]
    return Changes(
        count,
        load.count(),
        len(load.failed()),
        statistics.median(effects),
        sorted(effects)[max(0, round(0.95 * len(effects)) - 1)],
        max(effects),
        statistics.median(calls),
        max(calls),
    )


def _effects_ms(sent: list[Sent], asked: list[tuple[str, float, float]]) -> list[float]:
    ends = [began for _, began, _ in asked[1:]] + [float("inf")]
    found = []
    for (version, began, _), end in zip(asked, ends, strict=True):
        stale = [each.began_s for each in sent if began <= each.began_s < end and each.version not in {version, None}]
        found.append(1000 * (max(stale, default=began) - began))
    return found


def _failing(project: Project, count: int) -> Failing:
    folder, load = Front.of(project).folder, _load(project)
    apply_traffic(folder, Traffic((Canary(MODEL, "3.0", FAILING_SHARE),)))
    log = folder / ANSWERS_FILE
    _, begin = read_answers(log, 0)
    with steady_load(load, closed=2, per_second=0, grpc=2):
        until(lambda: load.count() > count)
    # The log is at most 50 ms behind.
    time.sleep(1)
    answers, _ = read_answers(log, begin)
    repeated = sum(each.failed_on_canary_alone for each in answers if each.version == "3.0")
    return Failing(dict(load.by_way()), len(load.failed()), repeated)
