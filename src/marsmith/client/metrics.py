"""The metrics API: Prometheus text format, counters, and the traffic of each version between two readings.

The format has one sample on each line, ``name{label="value",...} number``. See
https://prometheus.io/docs/instrumenting/exposition_formats/.

TorchServe counts a request that names no version under ``default``. Here it counts for the default version at the time
of the reading.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from marsmith.client.http import HttpRequest, Transport
from marsmith.errors import ClientError, FormatError
from marsmith.run_state import RunState

_UNESCAPED = {"\n": "\\n", "\\": "\\\\", '"': '\\"'}


@dataclass(frozen=True)
class CounterSample:
    """One sample of a metric; a histogram has several, as ``x_count``, ``x_sum`` and ``x_bucket``."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_exposition(text: str, source: str = "the metrics API") -> list[CounterSample]:
    """Parse the samples of an exposition. Comments and timestamps are ignored.

    Raises:
        FormatError: a line is not a sample.
    """
    # Imported late, because the import is slow and few commands need it.
    from prometheus_client.parser import text_string_to_metric_families

    samples, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        # Parsed line by line without comments, so that names stay as printed and every bad line is reported.
        if line.lstrip().startswith("#"):
            continue
        try:
            found = [sample for family in text_string_to_metric_families(line) for sample in family.samples]
        except (ValueError, IndexError):
            problems.append(f"line {number}: not a sample: {line.strip()!r}")
        else:
            samples += [CounterSample(sample.name, float(sample.value), sample.labels) for sample in found]
    if problems:
        raise FormatError(source, problems)
    return samples


def render_exposition(samples: Iterable[CounterSample]) -> str:
    """Render samples, one line each; parsing gives them back."""
    return "".join(f"{sample.name}{_labels(sample.labels)} {sample.value!r}\n" for sample in samples)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{"".join(_UNESCAPED.get(c, c) for c in value)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}"


# The version under which TorchServe counts requests that name none.
UNNAMED_VERSION = "default"
_DEADLINE_S = 5.0
_REQUESTS = "ts_inference_requests_total"
_LATENCY = "ts_inference_latency_microseconds"
_QUEUE = "ts_queue_latency_microseconds"
_STAGES = ("decode", "infer", "encode")
_ITEMS = "marsmith_batch_items"


@dataclass(frozen=True)
class Counters:
    """All counters of a server at one time.

    Attributes:
        at: time on a monotonic clock, in seconds.
        values: counts by metric, model and version as in TorchServe.
    """

    at: float
    values: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    def of(self, metric: str, version: tuple[str, str]) -> float:
        """Return a count; 0 if nothing was counted."""
        return self.values.get((metric, *version), 0.0)


@dataclass(frozen=True)
class Traffic:
    """The requests to one version between two readings, or since the start. Times are means, in milliseconds.

    Attributes:
        requests_total: number of requests since the start.
        requests_per_second: rate between the readings; None if there was only one.
        latency_ms: from the arrival of a request to its reply; None without requests, like all these times.
        queue_ms: wait of a request for a worker.
        decode_ms, infer_ms, encode_ms: stages of a batch, as our handlers measure them; None for other handlers.
        batch_items: number of requests in a batch; None for other handlers.
    """

    requests_total: int = 0
    requests_per_second: float | None = None
    latency_ms: float | None = None
    queue_ms: float | None = None
    decode_ms: float | None = None
    infer_ms: float | None = None
    encode_ms: float | None = None
    batch_items: float | None = None


def read_samples(state: RunState) -> list[CounterSample]:
    """Read the metrics API.

    Raises:
        ClientError: it does not answer.
        FormatError: it does not answer in the format of Prometheus.
    """
    transport = Transport(state.ca_file)
    try:
        request = HttpRequest("GET", state.metrics, ("metrics",))
        reply = transport.send(request, token=None, deadline_s=_DEADLINE_S)
        return parse_exposition(reply.body.decode("utf-8", "replace"))
    finally:
        transport.close()


def read_counters(state: RunState) -> Counters | None:
    """Read the metrics API. None if it does not answer in the format of Prometheus (``metrics_mode``)."""
    try:
        return counters(read_samples(state), time.monotonic())
    except (ClientError, FormatError):
        return None


def counters(samples: Iterable[CounterSample], at: float) -> Counters:
    """Group samples by metric, model and version; samples without a model are ignored."""
    values: dict[tuple[str, str, str], float] = {}
    for sample in samples:
        name = sample.labels.get("model_name", sample.labels.get("ModelName"))
        version = sample.labels.get("model_version", sample.labels.get("ModelVersion"))
        if name is not None and version is not None:
            key = (sample.name, name, version)
            values[key] = values.get(key, 0.0) + sample.value
    return Counters(at, values)


def traffic(version: tuple[str, str], *, is_default: bool, now: Counters, before: Counters | None = None) -> Traffic:
    """Return the traffic of a version since ``before``, or since the start of the server without ``before``.

    Args:
        version: model version.
        is_default: whether requests without a version went to it.
        now: the counters now.
        before: an earlier reading of the same server.
    """
    names = [version, (version[0], UNNAMED_VERSION)] if is_default else [version]

    def grown(metric: str, versions: Iterable[tuple[str, str]]) -> float:
        return sum(now.of(metric, each) - (before.of(metric, each) if before else 0.0) for each in versions)

    requests = grown(_REQUESTS, names)
    stages = {
        f"{stage}_ms": _mean(
            grown(f"marsmith_{stage}_seconds_sum", [version]) * 1e3, grown(f"marsmith_{stage}_seconds_count", [version])
        )
        for stage in _STAGES
    }
    return Traffic(
        requests_total=round(sum(now.of(_REQUESTS, each) for each in names)),
        requests_per_second=requests / (now.at - before.at) if before and now.at > before.at else None,
        latency_ms=_mean(grown(_LATENCY, names) / 1e3, requests),
        queue_ms=_mean(grown(_QUEUE, names) / 1e3, requests),
        batch_items=_mean(grown(f"{_ITEMS}_sum", [version]), grown(f"{_ITEMS}_count", [version])),
        **stages,
    )


def is_later(now: Counters, before: Counters) -> bool:
    """Return whether ``now`` continues ``before``: a server that was restarted counts from zero."""
    return all(now.values.get(key, 0.0) >= value for key, value in before.values.items() if key[0] == _REQUESTS)


def _mean(total: float, count: float) -> float | None:
    return total / count if count > 0 else None
