"""Breakdown of the latency of a request into stages.

The client measures the whole latency. TorchServe measures the time from a request's arrival to its reply, and its time
in the queue. Our handlers measure the stages of each batch. The rest is split in two: network and HTTP, and the
frontend with its pipe to the worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from marsmith.client.blocking_client import Client
from marsmith.client.metrics import Traffic, read_counters, traffic
from marsmith.errors import ServerError
from marsmith.loadtest.measurement import Measurement
from marsmith.run_state import RunState

BAR = 30
# Workers buffer their metric lines for half of this time (marsmith_handler/gathered_lines.py).
_SETTLE_S = 0.4
# A version that fills its batches to this share does not wait for further requests.
FULL = 0.9


@dataclass(frozen=True)
class Breakdown:
    """Mean times of a request, in milliseconds. The time of a batch counts in full for each request in it.

    Attributes:
        total_ms: from when the request was due until its reply was complete.
        network_ms: driver, network and HTTP.
        queue_ms: wait for a worker and for the batch to fill.
        batch_wait_ms: upper bound of the wait for the batch to fill; part of ``queue_ms``.
        decode_ms, infer_ms, encode_ms: stages of the handler.
        frontend_ms: frontend and its pipe to the worker.
        batch_items: mean number of requests in a batch.
        workers: number of workers of the version.
    """

    total_ms: float
    network_ms: float
    queue_ms: float
    batch_wait_ms: float
    decode_ms: float
    infer_ms: float
    encode_ms: float
    frontend_ms: float
    batch_items: float
    workers: int

    @property
    def bottleneck(self) -> tuple[str, str]:
        """The stage that limits throughput, and the settings that speed it up.

        A long queue means that the workers are busy. The longest stage of the worker is returned then.
        """
        worker = {"decode": self.decode_ms, "infer": self.infer_ms, "encode": self.encode_ms}
        outside = {"network": self.network_ms, "frontend": self.frontend_ms}
        longest = max(worker, key=lambda stage: worker[stage])
        if self.batch_wait_ms > max(*worker.values(), *outside.values()):
            return "batch wait", _MOVES["batch wait"]
        busiest = max(outside, key=lambda stage: outside[stage])
        if outside[busiest] > max(worker[longest], self.queue_ms):
            return busiest, _MOVES[busiest]
        return longest, _MOVES[longest]

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        stages = {name: round(value, 3) for name, value in self._stages().items()}
        stage, setting = self.bottleneck
        named = {"bottleneck": stage, "setting": setting, "batchItems": round(self.batch_items, 2)}
        return {"meanMs": round(self.total_ms, 3), "stagesMs": stages, "batchWaitAtMostMs": self.batch_wait_ms, **named}

    def lines(self) -> list[str]:
        """Return it as lines of text, with bars."""
        total = max(self.total_ms, 1e-9)
        lines = [
            f"{name:<9} {value:>8.2f} ms {value / total:>5.0%}  {'#' * round(BAR * max(value, 0) / total)}".rstrip()
            for name, value in self._stages().items()
        ]
        lines.append(f"{'whole':<9} {self.total_ms:>8.2f} ms        {self.batch_items:.1f} requests in a batch")
        if self.batch_wait_ms:
            lines.append(f"of the queue at most {self.batch_wait_ms:.2f} ms is waiting for a batch to fill")
        stage, setting = self.bottleneck
        return [*lines, f"bottleneck: {stage}; {setting}"]

    def _stages(self) -> dict[str, float]:
        return {
            "network": self.network_ms,
            "frontend": self.frontend_ms,
            "queue": self.queue_ms,
            "decode": self.decode_ms,
            "infer": self.infer_ms,
            "encode": self.encode_ms,
        }


_MOVES = {
    "network": "send smaller inputs, keep connections open, or use gRPC",
    "frontend": "TorchServe's own work: send fewer, larger requests (several inputs in one), fewer declared metrics",
    "batch wait": "a smaller serving.maxBatchDelay, or serving.batchSize: 1",
    "decode": "handler.settings.dct_scaling: true for large JPEG photos, or more decode_threads",
    "infer": "a faster form (marsmith export --precision auto --engine auto); marsmith tune for workers and threads",
    "encode": "a smaller reply: handler.settings.top_k",
}


def split(total_ms: float, seen: Traffic, *, batch_size: int, max_batch_delay_ms: float, workers: int) -> Breakdown:
    """Split the mean latency that a client measured by the server's counters.

    Raises:
        ServerError: the server counted no request.
    """
    if seen.latency_ms is None or seen.queue_ms is None:
        raise ServerError(
            "the server has counted no request to this version",
            tip="the breakdown needs metrics_mode=prometheus in config.properties",
        )
    stages = [value or 0.0 for value in (seen.decode_ms, seen.infer_ms, seen.encode_ms)]
    items = seen.batch_items or 1.0
    filled = batch_size <= 1 or items >= FULL * batch_size
    return Breakdown(
        total_ms=total_ms,
        network_ms=max(total_ms - seen.latency_ms, 0.0),
        queue_ms=seen.queue_ms,
        batch_wait_ms=0.0 if filled else min(seen.queue_ms, float(max_batch_delay_ms)),
        decode_ms=stages[0],
        infer_ms=stages[1],
        encode_ms=stages[2],
        frontend_ms=max(seen.latency_ms - seen.queue_ms - sum(stages), 0.0),
        batch_items=items,
        workers=workers,
    )


@contextmanager
def watch_stages(state: RunState, model: str, version: str | None) -> Iterator[Callable[[Measurement], Breakdown]]:
    """Read the server's counters; return a function that splits what a client has measured since then.

    Raises:
        ServerError: the metrics API does not answer in the format of Prometheus.
        NotFoundError: the model or version is not registered.
    """
    with Client(state.inference, state.management, key_file=_key_file(state), ca_file=state.ca_file) as client:
        described = client.describe(model, version)
        found = next((each for each in described if each.default), described[0])
    time.sleep(_SETTLE_S)
    before = read_counters(state)
    if before is None:
        where = f"the metrics API at {state.metrics}"
        raise ServerError(f"{where} does not answer", tip="set metrics_mode=prometheus in config.properties")

    def breakdown(measured: Measurement) -> Breakdown:
        time.sleep(_SETTLE_S)
        now = read_counters(state)
        if now is None:
            raise ServerError(f"the metrics API at {state.metrics} does not answer any more")
        seen = traffic((model, found.model_version), is_default=version is None, now=now, before=before)
        return split(
            measured.mean_ms,
            seen,
            batch_size=found.batch_size,
            max_batch_delay_ms=found.max_batch_delay_ms,
            workers=len(found.workers),
        )

    yield breakdown


def _key_file(state: RunState) -> Any:
    return state.key_file if state.tokens else None
