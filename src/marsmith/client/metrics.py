"""The text format in which Prometheus reads metrics: one sample a line, ``name{label="value",...} number``.

https://prometheus.io/docs/instrumenting/exposition_formats/

What a running server has counted, and what that means for each version between two looks.

TorchServe counts a request that names no version under ``default``. Here it counts for the version that is the default
at the time of the look.
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
    """One number of one metric; a histogram has several, as ``x_count``, ``x_sum`` and ``x_bucket``."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_exposition(text: str, source: str = "the metrics API") -> list[CounterSample]:
    """Parse the samples of an exposition; comments are left out, and so are the times of samples.

    Raises:
        FormatError: lines that are no samples.
    """
    # Imported late: it takes a while, and few verbs look at metrics.
    from prometheus_client.parser import text_string_to_metric_families

    samples, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        # Without the comments and line by line, names stay as they are printed, and every bad line is named.
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


_UNNAMED = "default"
_DEADLINE_S = 5.0
_REQUESTS = "ts_inference_requests_total"
_LATENCY = "ts_inference_latency_microseconds"
_QUEUE = "ts_queue_latency_microseconds"
_STAGES = ("decode", "infer", "encode")
_ITEMS = "marsmith_batch_items"


@dataclass(frozen=True)
class Counters:
    """What a server had counted at one time.

    Attributes:
        at: when, in seconds of a clock that only runs forward.
        values: by metric, model and version as TorchServe names it.
    """

    at: float
    values: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    def of(self, metric: str, version: tuple[str, str]) -> float:
        """Return a count; 0 where nothing has been counted."""
        return self.values.get((metric, *version), 0.0)


@dataclass(frozen=True)
class Traffic:
    """The requests to one version between two looks, or since the start. Times are means, in milliseconds.

    Attributes:
        requests_total: since the start.
        requests_per_second: None where there was one look only.
        latency_ms: from the arrival of a request to its reply; None without requests, as all of these.
        queue_ms: how long a request waited for a worker.
        decode_ms, infer_ms, encode_ms: of a batch, as our handlers measure it; None for others.
        batch_items: requests in a batch; None for handlers that are not ours.
    """

    requests_total: int = 0
    requests_per_second: float | None = None
    latency_ms: float | None = None
    queue_ms: float | None = None
    decode_ms: float | None = None
    infer_ms: float | None = None
    encode_ms: float | None = None
    batch_items: float | None = None


def read_counters(state: RunState) -> Counters | None:
    """Ask the metrics API; None where it does not answer, or not in the form of Prometheus (``metrics_mode``)."""
    transport = Transport(state.ca_file)
    try:
        request = HttpRequest("GET", state.metrics, ("metrics",))
        reply = transport.send(request, token=None, deadline_s=_DEADLINE_S)
        return counters(parse_exposition(reply.body.decode("utf-8", "replace")), time.monotonic())
    except (ClientError, FormatError):
        return None
    finally:
        transport.close()


def counters(samples: Iterable[CounterSample], at: float) -> Counters:
    """Sort samples by metric, model and version; those of no model are left out."""
    values: dict[tuple[str, str, str], float] = {}
    for sample in samples:
        name = sample.labels.get("model_name", sample.labels.get("ModelName"))
        version = sample.labels.get("model_version", sample.labels.get("ModelVersion"))
        if name is not None and version is not None:
            key = (sample.name, name, version)
            values[key] = values.get(key, 0.0) + sample.value
    return Counters(at, values)


def traffic(version: tuple[str, str], *, is_default: bool, now: Counters, before: Counters | None = None) -> Traffic:
    """Return what happened to a version since ``before``; since the start where there was no look before.

    Args:
        version: which.
        is_default: whether requests that named no version went to it.
        now: the counts now.
        before: the counts of an earlier look, of the same server.
    """
    names = [version, (version[0], _UNNAMED)] if is_default else [version]

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
    """Tell whether ``now`` continues ``before``: a server that was started again counts from zero."""
    return all(now.values.get(key, 0.0) >= value for key, value in before.values.items() if key[0] == _REQUESTS)


def _mean(total: float, count: float) -> float | None:
    return total / count if count > 0 else None
