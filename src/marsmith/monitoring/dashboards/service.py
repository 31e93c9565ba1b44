"""The board *service*: is it well, how much does it do, and what is in short supply?"""

from __future__ import annotations

from marsmith.metric_names import (
    BATCH,
    ERRORS,
    FRONT_REPLIES,
    FRONT_RESTARTS,
    FRONT_SECONDS,
    MAX_BATCH,
    MIN_WORKERS,
    QUEUE_CAPACITY,
    QUEUE_PENDING,
    QUEUE_SECONDS,
    READY,
    REQUESTS,
    SERVER_RESTARTS,
    STAGE_SECONDS,
    WORKER_RESTARTS,
    WORKERS,
)
from marsmith.monitoring import recording
from marsmith.monitoring.dashboards.boards import Board, Panel, Query, Row
from marsmith.monitoring.dashboards.promql import VERSION_LEGEND, of_model, quantile, quotient, rate

_READY = 'status="ready"'
_MODEL = '{model=~"$model"}'


def _burn(ratio: str, budget: str) -> str:
    return f"{ratio}{_MODEL} / on (model) {budget}{_MODEL}"


_NOW = Row(
    "Now",
    (
        Panel(
            "Ready",
            "Whether the server is ready for requests, as /ready of the supervisor says.",
            "bool",
            (Query(READY.name, "{{instance}}"),),
            kind="stat",
            texts=(("0", "not ready", "red"), ("1", "ready", "green")),
        ),
        Panel(
            "Requests",
            "Requests per second over REST and gRPC.",
            "reqps",
            (Query(rate(REQUESTS, by="model"), "{{model}}"),),
            kind="stat",
        ),
        Panel(
            "Failed, 5 min",
            "Part of the requests that failed because of the server (500 and above).",
            "percentunit",
            (Query(f"{recording.error_ratio('5m')}{_MODEL}", "{{model}}"),),
            kind="stat",
            limits=(0.001, 0.01),
        ),
        Panel(
            "p99",
            "99th percentile of the latency over REST, as the front sees it.",
            "s",
            (Query(quantile(0.99, FRONT_SECONDS), "{{model}}"),),
            kind="stat",
        ),
        Panel(
            "Error budget, 3 days",
            "How fast the error budget is used up, over 3 days: at 1 it lasts for its 30 days, above 1 it does not.",
            "short",
            (Query(_burn(recording.error_ratio("3d"), recording.ERROR_BUDGET), "{{model}}"),),
            kind="stat",
            limits=(1, 3),
            needs_level=True,
        ),
        Panel(
            "Workers ready",
            "Workers that are ready, of all registered versions.",
            "short",
            (Query(f"sum by (model) ({of_model(WORKERS, _READY)})", "{{model}}"),),
            kind="stat",
        ),
    ),
)

_REQUESTS = Row(
    "Requests, errors, duration",
    (
        Panel(
            "Requests by version",
            "Requests per second. Those that name no version count for the default version.",
            "reqps",
            (Query(rate(REQUESTS), VERSION_LEGEND),),
        ),
        Panel(
            "Errors by version",
            "Requests per second that a handler answered with an error, of the client (4xx) or of the server (5xx).",
            "reqps",
            (Query(rate(ERRORS, by="model, version, kind"), f"{VERSION_LEGEND} {{{{kind}}}}"),),
        ),
        Panel(
            "Replies by status",
            "Replies over REST by the class of their status, as the front sees it: refusals of TorchServe included.",
            "reqps",
            (Query(rate(FRONT_REPLIES, by="model, code_class"), "{{model}} {{code_class}}"),),
        ),
        Panel(
            "Latency",
            "Latency over REST, as the front sees it, and the limit of the service level.",
            "s",
            (
                *(Query(quantile(part, FRONT_SECONDS), f"{{{{model}}}} p{100 * part:g}") for part in (0.5, 0.95, 0.99)),
                Query(f"{recording.LATENCY_LIMIT}{_MODEL}", "{{model}} limit of p99"),
            ),
        ),
    ),
)

_WORK = Row(
    "Where the time goes",
    (
        Panel(
            "Stages, p95",
            "95th percentile of the time of a batch in the handler, by stage.",
            "s",
            (Query(quantile(0.95, STAGE_SECONDS, by="model, stage"), "{{model}} {{stage}}"),),
        ),
        Panel(
            "Wait for a worker",
            "Mean time of a request in TorchServe's queue.",
            "s",
            (Query(quotient(rate(QUEUE_SECONDS), rate(REQUESTS)), VERSION_LEGEND),),
        ),
        Panel(
            "Batch fill",
            "Mean size of a batch, as part of the largest (batchSize). At 100%, larger ones may give more throughput.",
            "percentunit",
            (
                Query(
                    f"{quotient(rate(BATCH, part='_sum'), rate(BATCH, part='_count'))}"
                    f" / on (model, version) max by (model, version) ({of_model(MAX_BATCH)})",
                    VERSION_LEGEND,
                ),
            ),
            top=1,
        ),
        Panel(
            "Queue",
            "Requests that wait, and how many can. A full queue refuses requests with 503.",
            "short",
            (
                Query(of_model(QUEUE_PENDING), f"{VERSION_LEGEND} waiting"),
                Query(of_model(QUEUE_CAPACITY), f"{VERSION_LEGEND} capacity"),
            ),
        ),
    ),
)

_SERVER = Row(
    "Workers and budgets",
    (
        Panel(
            "Workers",
            "Workers by status, and how many there should be.",
            "short",
            (
                Query(of_model(WORKERS), f"{VERSION_LEGEND} {{{{status}}}}"),
                Query(of_model(MIN_WORKERS), f"{VERSION_LEGEND} wanted"),
            ),
        ),
        Panel(
            "Restarts, last hour",
            "Restarts of workers, of TorchServe and of the front.",
            "short",
            (
                Query(f"increase({of_model(WORKER_RESTARTS)}[1h])", f"workers of {VERSION_LEGEND}"),
                Query(f"increase({SERVER_RESTARTS.name}[1h])", "TorchServe"),
                Query(f"increase({FRONT_RESTARTS.name}[1h])", "front"),
            ),
        ),
        Panel(
            "Error budget",
            "How fast the error budget is used up. Alerts: 14.4 over 1 h, 6 over 6 h, 3 over 1 d, 1 over 3 d.",
            "short",
            tuple(
                Query(_burn(recording.error_ratio(window), recording.ERROR_BUDGET), f"{{{{model}}}} {window}")
                for window in recording.LONG_WINDOWS
            ),
            needs_level=True,
        ),
        Panel(
            "Budget of slow requests",
            "How fast the 1% of the requests that may be slower than the limit is used up. Alerts: as for errors.",
            "short",
            tuple(
                Query(_burn(recording.slow_ratio(window), recording.SLOW_REQUESTS_BUDGET), f"{{{{model}}}} {window}")
                for window in recording.LONG_WINDOWS
            ),
            needs_level=True,
        ),
    ),
)

SERVICE = Board(
    "service",
    "marsmith: service",
    "Is the service well, how much does it do, and what is in short supply?",
    (_NOW, _REQUESTS, _WORK, _SERVER),
)
