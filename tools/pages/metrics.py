"""The page of the metrics, from their declarations."""

from __future__ import annotations

from collections.abc import Mapping

from marsmith.metric_names import METRICS, Metric, Needs

HEAD = """# Metrics and probes

Written by `make pages` from `src/marsmith/metric_names.py`, which alert rules and dashboards go by, too.

The supervisor of a server has a listener of its own, `listener` in `config/marsmith.yaml`: 127.0.0.1:8083, another
`HOST:PORT`, or `none`. It needs no token. It is part of the supervisor: a server of `marsmith serve --restart no` in
the background has none.

| path | answer |
|---|---|
| `/metrics` | the metrics of this page, for Prometheus |
| `/ready` | 200 if the server should get requests; else 503 with the reason, `{"reason": "..."}` |
| `/ping` | 200 if each model's default version has a ready worker, also with a full queue; else 503 with the reason |
| `/live` | 200 as long as the supervisor runs |

Ready means: TorchServe answers, each model's default version has a ready worker and room in its job queue, no archive
of a model is left out, and nobody stops the server. A version that is not the default one does not count, so that a new
version never takes the server out of service. While the server starts in the foreground, `/ready` answers 503 and
`/live` 200. `marsmith stop --delay 10` lets `/ready` answer 503 for 10 s, before the first request is refused.

The listener takes GET and HEAD, one request a connection, at most 64 connections, 8 KiB and 5 s for each. It never
waits for TorchServe longer than 2 s: after that the values from before are given, and `marsmith_up` says 0 as soon as
the supervisor knows. The supervisor looks every 2 s, or more rarely on machines with GPUs.

## What Prometheus scrapes

| target | default address | content |
|---|---|---|
| the supervisor | `127.0.0.1:8083/metrics` (`listener`) | this page |
| TorchServe | `127.0.0.1:8082/metrics` (`metrics_address`) | TorchServe's own metrics of the machine and of requests |
| the front | a free port, or `front_metrics_port` | Envoy's own metrics |

The supervisor gives what TorchServe and Envoy count per model with the names of this page, so one target is enough for
most purposes. Its counters do not fall if TorchServe or Envoy is restarted. They count since the supervisor began.

Where the times of requests come from depends on the front. With the front,
`marsmith_front_request_duration_seconds` is the time that clients see over REST, by model, the wait in the queue
included. Without it nobody measures that; `marsmith_stage_duration_seconds` is the time in the handler, by version,
over REST and gRPC. Envoy does not know the model of a request over gRPC, so requests over gRPC are not in the `front`
metrics. Envoy's buckets are at most 5 s old.

## Cost

Nothing is read while nobody asks. With the default model under load, the supervisor took 34 ms of processor time a
second if it was asked for `/metrics` every second, and 21 ms without the listener: 13 ms for each time, which is 0.04%
of two cores at Prometheus' usual 15 s. Its memory was 57 MB and 53 MB.

<!-- not run: it takes ten minutes, and needs a machine that does nothing else -->
```bash
python benchmarks/exporter.py --rounds 7 --seconds 15
```

These are medians of 7 pairs on 2 cores of an AMD EPYC, Python 3.11.7. Others used the machine meanwhile, so the
difference in answers per second was lost in the noise, and no figure of it is given.
"""
_SECTIONS: Mapping[Needs, tuple[str, str]] = {
    "server": ("Always", "A server with a supervisor has these."),
    "handlers": (
        "From TorchServe and the handlers",
        "They need `metrics_mode=prometheus`. The handlers of other tools count only requests and their waits.",
    ),
    "front": ("With the front", "They come from Envoy."),
    "rollout": ("With a rollout", "Of the last rollout of each model, also after its end."),
    "shadow": ("With a shadow", "Of the last rollout of each model, if it began with a shadow."),
    "drift": ("With drift detection", "Of the last window of each version."),
    "labels": ("With labels", "Of each version that labels have come for."),
}


def page() -> str:
    """Return the page: a table for each thing that must run."""
    parts = [HEAD]
    for needs, (title, text) in _SECTIONS.items():
        rows = [_row(metric) for metric in METRICS if metric.needs == needs]
        table = ["| metric | type | unit | labels | meaning |", "|---|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {title}", "", text, "", *table, ""]))
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
    return f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |"
