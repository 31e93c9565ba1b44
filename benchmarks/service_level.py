"""Does the default model hold its service level, for how long, and how far could it go?

Run: python benchmarks/service_level.py [--rps 50] [--p99-ms 50] [--minutes 10] [--archive FILE] [--json FILE]

On one server, run as the archive says, JPEG over HTTP:

- the level: Poisson arrivals at --rps for --minutes, with the memory of the server and its workers noted meanwhile;
- latency against load: Poisson arrivals at rising rates, and the largest that holds the limit in most of three runs;
- throughput against batch: closed loops of 1, 2, 4, 8, 16 and 32 clients, with the batches that the server formed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil

import forms
from contenders import marsmith_server
from machine import machine_line, machine_record
from marsmith.loadtest import Load, Measurement, run_load
from marsmith.loadtest.http import HttpTarget
from marsmith.loadtest.tune.rates import largest_rate, majority_of_three
from photos import photos

SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
CLIENTS = (1, 2, 4, 8, 16, 32)
# Memory may still grow a little while allocators settle; more than this over the run is a leak.
FLAT = 1.05


class MemoryWatch:
    """Notes the memory of the processes that a server consists of: the unique set size, in bytes."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        start = time.monotonic()
        children = psutil.Process().children(recursive=True)
        while not self._end.wait(self._every_s):
            self.seen.append((time.monotonic() - start, sum(_memory(child) for child in children)))

    @property
    def growth(self) -> float:
        """Median of the last quarter divided by that of the second; the first belongs to warming up."""
        values = [memory for _, memory in self.seen]
        quarter = max(1, len(values) // 4)
        if len(values) < 4:
            return float("nan")
        return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter])


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def level(target: HttpTarget, rps: float, seconds: float) -> dict[str, Any]:
    """Hold a rate, and watch the memory."""
    with MemoryWatch(max(1.0, seconds / 60)) as memory:
        measured = run_load(target, Load(rps=rps, seconds=seconds, warm_up_s=5.0))
    megabytes = [(round(at), round(size / 2**20)) for at, size in memory.seen]
    growth = round(memory.growth, 4)
    return {"rps": rps, **measured.record(), "memoryMiB": megabytes, "memoryGrowth": growth, "flat": growth <= FLAT}


def against_load(target: HttpTarget, most: float, seconds: float) -> list[dict[str, Any]]:
    """Measure latency at rates up to a little more than the server can do."""
    points = []
    for share in SHARES:
        measured = run_load(target, Load(rps=share * most, seconds=seconds, warm_up_s=1.0))
        points.append({"rps": round(share * most, 1), **_short(measured)})
    return points


def against_clients(target: HttpTarget, seconds: float) -> list[dict[str, Any]]:
    """Measure throughput with more and more clients."""
    loads = {clients: Load(clients=clients, seconds=seconds, warm_up_s=1.0) for clients in CLIENTS}
    return [{"clients": clients, **_short(run_load(target, load))} for clients, load in loads.items()]


def _short(measured: Measurement) -> dict[str, Any]:
    record = measured.record()
    return {key: record[key] for key in ("requestsPerSecond", "latencyMs", "errors", "driver")}


def driver_alone(seconds: float) -> float:
    """Return how many requests per second the driver makes against a server that does nothing: its own limit."""

    async def serve(stop: asyncio.Event, port: asyncio.Future[int]) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.set_result(server.sockets[0].getsockname()[1])
        await stop.wait()
        server.close()

    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop, port = asyncio.Event(), loop.create_future()
    port.add_done_callback(lambda _: ready.set())
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(stop, port)), daemon=True)
    thread.start()
    ready.wait(10)
    target = HttpTarget(f"http://127.0.0.1:{port.result()}/", [photos(1)[0]], ["image/jpeg"])
    measured = run_load(target, Load(clients=8, seconds=seconds, warm_up_s=0.5))
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)
    return measured.requests_per_second


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rps", type=float, default=50.0)
    parser.add_argument("--p99-ms", type=float, default=50.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each shorter load")
    parser.add_argument("--archive", type=Path, default=forms.REPOSITORY / "model_store" / "efficientnet_lite0-1.0.mar")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine_record(), "p99LimitMs": args.p99_ms}
    print(machine_line(result["machine"]))
    result["driverAlone"] = driver_alone(2.0)
    with marsmith_server(forms.REAL, args.archive, photos(8))() as target:
        run_load(target, Load(clients=8, seconds=3.0))
        result["clients"] = against_clients(target, args.seconds)
        most = max(point["requestsPerSecond"] for point in result["clients"])

        def at(rate: float) -> Measurement | None:
            measured = run_load(target, Load(rps=rate, seconds=args.seconds, warm_up_s=1.0))
            return measured if measured.holds(args.p99_ms) else None

        result["largestRate"], _ = largest_rate(lambda rate: majority_of_three(lambda: at(rate)), 0.6 * most, steps=6)
        result["load"] = against_load(target, most, args.seconds)
        print(f"holding {args.rps:g} requests per second for {args.minutes:g} minutes", file=sys.stderr)
        result["level"] = level(target, args.rps, args.minutes * 60)
    _show(result, args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _show(result: dict[str, Any], args: argparse.Namespace) -> None:
    print(f"the driver alone: {result['driverAlone']:.0f} requests per second")
    for point in result["clients"]:
        print(f"{point['clients']:>3} clients: {point['requestsPerSecond']:7.1f}/s, p99 {point['latencyMs']['p99']} ms")
    for point in result["load"]:
        print(f"{point['rps']:>6} requests/s: p50 {point['latencyMs']['p50']} ms, p99 {point['latencyMs']['p99']} ms")
    print(f"largest rate with p99 <= {args.p99_ms:g} ms: {result['largestRate']:.0f} requests per second")
    held = result["level"]
    verdict = "held" if held["latencyMs"]["p99"] <= args.p99_ms and not held["errors"] else "NOT held"
    memory = f"memory x {held['memoryGrowth']} from the second quarter to the last"
    seen = f"p99 {held['latencyMs']['p99']} ms, {held['errors'] or 'no failures'}"
    print(f"{args.rps:g}/s for {args.minutes:g} min: {seen}: {verdict}; {memory}")


if __name__ == "__main__":
    main()
