"""MLPerf's load generator as the judge: its server and offline scenarios, against a server over HTTP.

Run: python benchmarks/loadgen.py URL PHOTO [PHOTO ...] [--token TOKEN] [--p99-ms 50] [--seconds 20]

The system under test that it drives is a client: it sends each query's photo to the server and reports the answer.
Server: Poisson arrivals, valid while the 99th percentile is within the limit; the largest rate is searched for that
is valid in most of up to three runs.
Offline: all samples at once, sent over 32 connections; samples per second.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg

from marsmith.loadtest.bench import connections_to
from marsmith.loadtest.connection import Connection
from marsmith.loadtest.http import HttpTarget
from marsmith.loadtest.tune.rates import largest_rate, majority_of_three

CONNECTIONS = 32
SUMMARY = "mlperf_log_summary.txt"


@dataclass(frozen=True)
class Verdict:
    """What the load generator says.

    Attributes:
        valid: whether the run meets its scenario's rules.
        samples_per_second: offline throughput, or the rate that was scheduled.
        p99_ms: 99th percentile of the latency, in milliseconds; of the server scenario.
        failed: answers that were errors.
    """

    valid: bool
    samples_per_second: float
    p99_ms: float
    failed: int


class HttpSystem:
    """The system under test: it sends samples over connections that are kept open, on a thread of its own."""

    def __init__(self, target: HttpTarget) -> None:
        self._target = target
        self._waiting: deque[Any] = deque()
        self._free: list[Connection] = []
        self._opened = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed = 0
        self._empty = array.array("B", [0])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def issue(self, samples: Sequence[Any]) -> None:
        """Take queries from the load generator; called on its thread."""
        taken = [(sample.id, sample.index) for sample in samples]
        self._loop.call_soon_threadsafe(self._take, taken)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the connections and end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _open(self) -> None:
        opener = await self._opened.enter_async_context(connections_to(self._target))
        self._free = [await opener() for _ in range(CONNECTIONS)]

    async def _close(self) -> None:
        for lane in self._free:
            await lane.close()
        await self._opened.aclose()

    def _take(self, samples: Sequence[tuple[int, int]]) -> None:
        self._waiting.extend(samples)
        while self._waiting and self._free:
            task = self._loop.create_task(self._serve(self._free.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, lane: Connection) -> None:
        """Send what waits over one connection until nothing does."""
        while self._waiting:
            number, index = self._waiting.popleft()
            answer = await lane.call(index % len(self._target.bodies))
            self.failed += not answer.is_ok
            address, size = self._empty.buffer_info()
            lg.QuerySamplesComplete([lg.QuerySampleResponse(number, address, size)])
        self._free.append(lane)


def offline(target: HttpTarget, *, seconds: float, expected_qps: float) -> Verdict:
    """Run the offline scenario for about ``seconds``."""
    settings = _settings(lg.TestScenario.Offline, seconds)
    settings.offline_expected_qps = expected_qps
    summary, failed = _run(target, settings)
    return Verdict(_is_valid(summary), float(summary["Samples per second"]), float("nan"), failed)


def server(target: HttpTarget, *, qps: float, seconds: float, p99_ms: float) -> Verdict:
    """Run the server scenario at ``qps`` for about ``seconds``."""
    settings = _settings(lg.TestScenario.Server, seconds)
    settings.server_target_qps = qps
    settings.server_target_latency_ns = int(p99_ms * 1e6)
    settings.server_target_latency_percentile = 0.99
    summary, failed = _run(target, settings)
    p99 = float(summary["99.00 percentile latency (ns)"]) / 1e6
    # Its own verdict also asks for early stopping over more queries than a short run has: the limit is what counts.
    return Verdict(p99 <= p99_ms and not failed, qps, p99, failed)


def largest_server_rate(
    target: HttpTarget, *, start: float, seconds: float, p99_ms: float, steps: int = 6
) -> tuple[float, list[Verdict]]:
    """Search for the largest rate that is valid in most of up to three runs of the server scenario.

    Returns:
        The rate, and every run.
    """
    runs: list[Verdict] = []

    def valid(qps: float) -> Verdict | None:
        runs.append(server(target, qps=qps, seconds=seconds, p99_ms=p99_ms))
        return runs[-1] if runs[-1].valid else None

    rate, _ = largest_rate(lambda qps: majority_of_three(lambda: valid(qps)), start, steps=steps)
    return rate, runs


def _settings(scenario: Any, seconds: float) -> Any:
    settings = lg.TestSettings()
    settings.scenario = scenario
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1000)
    settings.min_query_count = 1
    return settings


def _run(target: HttpTarget, settings: Any) -> tuple[dict[str, str], int]:
    system = HttpSystem(target)
    count = len(target.bodies)
    with tempfile.TemporaryDirectory() as folder:
        log = lg.LogSettings()
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        log.enable_trace = False
        sut = lg.ConstructSUT(system.issue, system.flush)
        library = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
        try:
            lg.StartTestWithLogSettings(sut, library, settings, log)
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
            system.close()
        text = Path(folder, SUMMARY).read_text(encoding="utf-8")
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}, system.failed


def _is_valid(summary: dict[str, str]) -> bool:
    return summary.get("Result is") == "VALID"


def main() -> None:
    """Judge the server at a URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--token")
    parser.add_argument("--p99-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    bodies = [path.read_bytes() for path in args.photos]
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    target = HttpTarget(args.url, bodies, ["image/jpeg"] * len(bodies), headers)
    reached = offline(target, seconds=args.seconds, expected_qps=100)
    rate, runs = largest_server_rate(
        target, start=0.8 * reached.samples_per_second, seconds=args.seconds, p99_ms=args.p99_ms
    )
    result = {"offline": vars(reached), "serverRate": rate, "serverRuns": [vars(run) for run in runs]}
    print(json.dumps(result | {"serverOverOffline": rate / reached.samples_per_second}, indent=2))


if __name__ == "__main__":
    main()
