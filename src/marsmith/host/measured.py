"""What the host measures, in the text format of Prometheus, with the names that TorchServe gives."""

from __future__ import annotations

import re
import socket
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

# The bounds of TorchServe's histograms.
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
# A handler could name a metric after each request.
_MOST_SERIES = 10_000
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Labels = tuple[tuple[str, str], ...]


class Measured:
    """Counters, gauges and histograms, by name and labels."""

    def __init__(self) -> None:
        self._host = socket.gethostname()
        self._numbers: dict[tuple[str, str, _Labels], float] = {}
        self._histograms: dict[tuple[str, _Labels], list[float]] = {}

    def count(self, name: str, labels: _Labels, value: float = 1.0) -> None:
        """Add to a counter."""
        key = ("counter", name, labels)
        self._numbers[key] = self._numbers.get(key, 0.0) + value

    def set(self, name: str, labels: _Labels, value: float) -> None:
        """Set a gauge."""
        self._numbers["gauge", name, labels] = value

    def observe(self, name: str, labels: _Labels, value: float) -> None:
        """Count a value in a histogram."""
        counts = self._histograms.setdefault((name, labels), [0.0] * (len(_BOUNDS) + 2))
        counts[bisect_left(_BOUNDS, value)] += 1
        counts[-1] += value

    def take(self, measurements: Iterable[Sequence[object]]) -> None:
        """Take the measurements of a worker: kind, name, value, names and values of the labels.

        What cannot be a metric is dropped.
        """
        for kind, name, value, names, values in measurements:
            number = float(value) if isinstance(value, int | float) else float("nan")
            if not _NAME.fullmatch(str(name)) or len(self._numbers) + len(self._histograms) > _MOST_SERIES:
                continue
            texts = zip(_texts(names), _texts(values), strict=False)
            labels = (*((label, text) for label, text in texts if _NAME.fullmatch(label)), ("Hostname", self._host))
            {"counter": self.count, "gauge": self.set}.get(str(kind), self.observe)(str(name), labels, number)

    def request(self, model: str, version: str, latency_s: float, queue_s: float) -> None:
        """Count a request that a worker has answered."""
        labels = (("model_name", model), ("model_version", version), ("hostname", self._host))
        self.count("ts_inference_requests_total", labels)
        self.count("ts_inference_latency_microseconds", labels, latency_s * 1e6)
        self.count("ts_queue_latency_microseconds", labels, queue_s * 1e6)

    def status(self, code: int) -> None:
        """Count a reply by its class: 2XX, 4XX, 5XX."""
        labels = (("Level", "Host"), ("Hostname", self._host))
        self.count(f"Requests{code // 100}XX", labels)

    def render(self) -> str:
        """Return everything as text."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        typed: set[str] = set()
        for (kind, name, labels), value in sorted(self._numbers.items()):
            if name not in typed:
                typed.add(name)
                yield f"# TYPE {name} {kind}"
            yield f"{name}{_shown(labels)} {value!r}"
        for (name, labels), counts in sorted(self._histograms.items()):
            if name not in typed:
                typed.add(name)
                yield f"# TYPE {name} histogram"
            yield from _buckets(name, labels, counts)


def _buckets(name: str, labels: _Labels, counts: Sequence[float]) -> Iterator[str]:
    total = 0.0
    for bound, count in zip((*map(str, _BOUNDS), "+Inf"), counts, strict=False):
        total += count
        yield f"{name}_bucket{_shown((*labels, ('le', bound)))} {total!r}"
    yield f"{name}_count{_shown(labels)} {total!r}"
    yield f"{name}_sum{_shown(labels)} {counts[-1]!r}"


def _shown(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels) + "}" if labels else ""


def _texts(values: object) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list | tuple) else []
