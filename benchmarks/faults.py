"""What does a client see when a worker, a handler or the whole server breaks, with and without marsmith's retries?

Run: python benchmarks/faults.py [--rounds 3] [--json]

A real TorchServe under `marsmith serve --foreground` with tiny models. Half of the clients send every request once, the
others are marsmith's with what it does by default; both are there at the same time, each with a request at a time.
Every fault is repeated; counts are sums, seconds are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from machine import machine_record
from marsmith import run_state
from marsmith.client.blocking_client import NO_RETRIES, Client, RetryPolicy
from marsmith.errors import ClientError, MarsmithError
from marsmith.project import Project
from marsmith.run_state import RunState
from support.faulty_server import (
    CAPACITY_TIMEOUT_S,
    Load,
    command,
    faulty_project,
    kill,
    load,
    until_full_capacity,
    worker_pids,
)

CLIENTS = 3
# For clients that are to outlive a restart of the whole server; by default they wait two seconds for one to listen.
PATIENT = RetryPolicy(unreachable_s=CAPACITY_TIMEOUT_S)


@dataclass(frozen=True)
class Row:
    """One fault: requests sent and failed, by clients without and with retries; times in seconds."""

    fault: str
    plain_sent: int
    plain_failed: int
    plain_errors: str
    ours_sent: int
    ours_failed: int
    ours_longest_s: float
    capacity_s: float | None


@dataclass
class Pair:
    """The two loads of one fault, and how long it took to full capacity, round by round."""

    plain: list[Load]
    ours: list[Load]
    capacity_s: list[float]

    def row(self, fault: str) -> Row:
        """Sum up."""
        errors = sorted({name for seen in self.plain for name in seen.failed})
        return Row(
            fault,
            sum(_sent(seen) for seen in self.plain),
            sum(_failed(seen) for seen in self.plain),
            ", ".join(errors),
            sum(_sent(seen) for seen in self.ours),
            sum(_failed(seen) for seen in self.ours),
            statistics.median(seen.longest_s for seen in self.ours),
            statistics.median(self.capacity_s) if self.capacity_s else None,
        )


def _failed(seen: Load) -> int:
    return seen.wrong + sum(seen.failed.values())


def _sent(seen: Load) -> int:
    return seen.answered + _failed(seen)


def measure(
    project: Project,
    model: str,
    fault: Callable[[], float | None],
    *,
    rounds: int,
    ours: RetryPolicy | None = None,
    clients: int = CLIENTS,
) -> Pair:
    """Put both loads on ``model``, cause the fault, wait until it is over and a second more; ``rounds`` times."""
    pair = Pair([], [], [])
    for _ in range(rounds):
        with (
            load(lambda: Client.for_project(project, retries=NO_RETRIES), model, clients=clients) as plain,
            load(lambda: Client.for_project(project, retries=ours, deadline_s=120), model, clients=clients) as retried,
        ):
            time.sleep(1)
            capacity_s = fault()
            time.sleep(1)
        pair.plain.append(plain)
        pair.ours.append(retried)
        if capacity_s is not None:
            pair.capacity_s.append(capacity_s)
    return pair


def kill_worker(client: Client, model: str) -> float:
    """Kill one worker; return how long it took until all were READY."""
    pid = worker_pids(client, model)[0]
    kill(pid)
    return until_full_capacity(client, model, pid)


def hang(client: Client) -> float:
    """Let the handler of `frail` hang, with a client that does not insist; return how long its model was away."""
    began, pid = time.monotonic(), worker_pids(client, "frail")[0]
    with suppress(ClientError):
        client.predict("frail", command(sleep=600))
    until_full_capacity(client, "frail", pid)
    return time.monotonic() - began


def kill_server(project: Project) -> float:
    """Kill the frontend; return how long it took until its supervisor had made all ready again."""
    began, before = time.monotonic(), run_state.read(project)
    kill(before.pid)
    wait_ready(project, since=before)
    return time.monotonic() - began


def wait_ready(project: Project, since: RunState | None = None) -> None:
    """Wait until a server is ready, another than ``since``."""
    late = time.monotonic() + CAPACITY_TIMEOUT_S
    while time.monotonic() < late:
        with suppress(MarsmithError):
            state = run_state.read(project)
            if state.ready and (since is None or state.pid != since.pid):
                return
        time.sleep(0.05)
    raise TimeoutError("the server is not ready")


@contextmanager
def serving(project: Project) -> Iterator[None]:
    """Run `marsmith serve --foreground` as a service manager would."""
    environment = {**os.environ, "MARSMITH_PROJECT": str(project.root)}
    with (project.root / "serve.log").open("wb") as log:
        line = [sys.executable, "-m", "marsmith", "serve", "--foreground"]
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_ready(project)
        yield
    finally:
        process.terminate()
        process.wait(60)


def rows(project: Project, rounds: int) -> Iterator[Row]:
    """Cause one fault after another."""
    with Client.for_project(project, retries=NO_RETRIES) as client:
        for model in ("one", "two"):
            pair = measure(project, model, lambda model=model: kill_worker(client, model), rounds=rounds)  # type: ignore[misc]
            yield pair.row(f"worker killed, model with {model} worker{'s' if model == 'two' else ''}")
        yield measure(project, "two", lambda: hang(client), rounds=rounds).row("handler hangs, seen by another model")
        yield measure(project, "frail", lambda: None, rounds=rounds, clients=6).row("job queue full")
    pair = measure(project, "two", lambda: kill_server(project), rounds=rounds, ours=PATIENT)
    yield pair.row("Java killed, unreachable_s=120")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = faulty_project(Path(folder), ("one", "two", "frail"))
        with serving(project):
            found = list(rows(project, args.rounds))
    if args.json:
        print(json.dumps({"machine": machine_record(), "rows": [asdict(row) for row in found]}, indent=2))
        return
    print("| fault | sent once: failed | with retries: failed | slowest with retries | full capacity after |")
    print("|---|---|---|---|---|")
    for row in found:
        away = "" if row.capacity_s is None else f"{row.capacity_s:.1f} s"
        errors = f" ({row.plain_errors})" if row.plain_errors else ""
        print(
            f"| {row.fault} | {row.plain_failed} of {row.plain_sent}{errors} | {row.ours_failed} of {row.ours_sent} | "
            f"{row.ours_longest_s:.1f} s | {away} |"
        )


if __name__ == "__main__":
    main()
