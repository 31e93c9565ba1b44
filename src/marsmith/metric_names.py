"""The metrics that a marsmith server gives to Prometheus: one declaration for each, which everything else goes by.

The exporter gives no others, alert rules and dashboards ask for no others, and the page ``metrics.md`` lists them.
Names follow https://prometheus.io/docs/practices/naming/: base units, and ``_total`` for counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]
# What must run before a metric has values. handlers: marsmith's, with metrics_mode=prometheus.
Needs = Literal["server", "handlers", "front", "rollout", "shadow", "drift", "labels"]

MODEL = ("model",)
VERSION = ("model", "version")


@dataclass(frozen=True)
class Metric:
    """Declaration of a metric.

    Attributes:
        name: its name, as in a query; a histogram has it with ``_bucket``, ``_sum`` and ``_count``.
        kind: its type in Prometheus.
        unit: unit of the values; ``ratio`` is between 0 and 1.
        labels: names of its labels.
        help: what it says, as one sentence.
        needs: what must run, so that it has values.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    needs: Needs = "server"


UP = Metric("marsmith_up", "gauge", "boolean", (), "Whether TorchServe answered when the supervisor asked it last.")
READY = Metric("marsmith_ready", "gauge", "boolean", (), "Whether /ready of this listener answers 200.")
LAST_LOOK = Metric(
    "marsmith_last_look_timestamp_seconds",
    "gauge",
    "seconds since the epoch",
    (),
    "When TorchServe answered the supervisor last; the values of versions are from then.",
)
BUILD_INFO = Metric("marsmith_build_info", "gauge", "info", ("release",), "Release of marsmith; the value is 1.")
SERVER_RESTARTS = Metric(
    "marsmith_server_restarts_total", "counter", "restarts", (), "Restarts of TorchServe by this supervisor."
)
DEFAULT_VERSION = Metric(
    "marsmith_default_version_info",
    "gauge",
    "info",
    VERSION,
    "The version that answers requests that name none; the value is 1.",
)
WORKERS = Metric(
    "marsmith_workers", "gauge", "workers", (*VERSION, "status"), "Workers by status, which is ready or unready."
)
MIN_WORKERS = Metric("marsmith_min_workers", "gauge", "workers", VERSION, "Workers that the version should have.")
WORKER_RESTARTS = Metric(
    "marsmith_worker_restarts_total",
    "counter",
    "restarts",
    VERSION,
    "Restarts of workers that died, since this supervisor began.",
)
QUEUE_PENDING = Metric(
    "marsmith_queue_pending", "gauge", "requests", VERSION, "Requests that wait for a worker in TorchServe's job queue."
)
QUEUE_CAPACITY = Metric(
    "marsmith_queue_capacity", "gauge", "requests", VERSION, "Requests that TorchServe's job queue can hold."
)
MAX_BATCH = Metric(
    "marsmith_batch_size_limit", "gauge", "requests", VERSION, "Largest number of requests in a batch (batchSize)."
)
REQUESTS = Metric(
    "marsmith_requests_total",
    "counter",
    "requests",
    VERSION,
    "Requests for the version, REST and gRPC; those that name no version count for the default version.",
    "handlers",
)
QUEUE_SECONDS = Metric(
    "marsmith_queue_seconds_total",
    "counter",
    "seconds",
    VERSION,
    "Time that requests have waited for a worker; divided by the requests it is the mean wait.",
    "handlers",
)
ERRORS = Metric(
    "marsmith_request_errors_total",
    "counter",
    "requests",
    (*VERSION, "kind"),
    "Requests that the handler answered with an error; kind is client (status 400 to 499) or server (500 and above).",
    "handlers",
)
STAGE_SECONDS = Metric(
    "marsmith_stage_duration_seconds",
    "histogram",
    "seconds",
    (*VERSION, "stage"),
    "Time of a batch in the handler by stage: decode, infer or encode; the wait in the queue is not part of it.",
    "handlers",
)
BATCH = Metric(
    "marsmith_batch_size",
    "histogram",
    "requests",
    VERSION,
    "Requests in a batch, without those that could not be decoded.",
    "handlers",
)

FRONT_UP = Metric("marsmith_front_up", "gauge", "boolean", (), "Whether the front answered when it was asked.", "front")
FRONT_RESTARTS = Metric(
    "marsmith_front_restarts_total", "counter", "restarts", (), "Restarts of the front by this supervisor.", "front"
)
FRONT_REPLIES = Metric(
    "marsmith_front_replies_total",
    "counter",
    "requests",
    (*MODEL, "code_class"),
    "Replies to clients over REST by the class of their status (2xx, 4xx, 5xx), refusals of TorchServe included.",
    "front",
)
FRONT_SECONDS = Metric(
    "marsmith_front_request_duration_seconds",
    "histogram",
    "seconds",
    MODEL,
    "Time of a request over REST as the front sees it, from its arrival to its reply, the wait in the queue included.",
    "front",
)

ROLLOUT_SHARE = Metric(
    "marsmith_rollout_share",
    "gauge",
    "ratio",
    VERSION,
    "Part of the requests that the version on trial gets.",
    "rollout",
)
ROLLOUT_PHASE = Metric(
    "marsmith_rollout_phase_info",
    "gauge",
    "info",
    (*VERSION, "phase"),
    "Phase of the last rollout, such as rising, paused, inconclusive or promoted; the value is 1.",
    "rollout",
)
ROLLOUT_BEGAN = Metric(
    "marsmith_rollout_step_timestamp_seconds",
    "gauge",
    "seconds since the epoch",
    VERSION,
    "When the present share of the rollout began or was resumed.",
    "rollout",
)
ROLLOUT_EVIDENCE = Metric(
    "marsmith_rollout_evidence",
    "gauge",
    "e-value",
    (*VERSION, "event"),
    "Evidence that the version is worse, by kind of event; it goes back when its limit is reached.",
    "rollout",
)
ROLLOUT_LIMIT = Metric(
    "marsmith_rollout_evidence_limit",
    "gauge",
    "e-value",
    (*VERSION, "event"),
    "Evidence at which the version goes back.",
    "rollout",
)
ROLLOUT_ANSWERS = Metric(
    "marsmith_rollout_answers_total",
    "counter",
    "requests",
    (*VERSION, "role", "result"),
    "Requests of the rollout by role (canary or stable) and result (ok, failed or refused); a request that failed on "
    "the canary counts as its failure although the stable version answered it.",
    "rollout",
)
ROLLOUT_SLOW = Metric(
    "marsmith_rollout_slow_total",
    "counter",
    "requests",
    (*VERSION, "role"),
    "Requests of the rollout above the latency limit, by role (canary or stable).",
    "rollout",
)
SHADOW_AGREEMENT = Metric(
    "marsmith_shadow_agreement",
    "gauge",
    "ratio",
    (*VERSION, "bound"),
    "Part of the copies that the version answers as the default version does: bound is lower, estimate or upper.",
    "shadow",
)
SHADOW_COPIES = Metric(
    "marsmith_shadow_copies_total",
    "counter",
    "requests",
    (*VERSION, "result"),
    "Copies of requests for the shadow, by result (sent or dropped).",
    "shadow",
)

DRIFT_LABELS = (*VERSION, "statistic", "against")
DRIFT_DISTANCE = Metric(
    "marsmith_drift_distance",
    "gauge",
    "ratio",
    DRIFT_LABELS,
    "Total variation distance of the last window's statistic from what it is compared with: against is reference "
    "(the archive's) or baseline (earlier live traffic).",
    "drift",
)
DRIFT_P_VALUE = Metric(
    "marsmith_drift_p_value",
    "gauge",
    "probability",
    DRIFT_LABELS,
    "Probability of a distance as large as that of the last window without any drift.",
    "drift",
)
DRIFT_DETECTED = Metric(
    "marsmith_drift_detected",
    "gauge",
    "boolean",
    DRIFT_LABELS,
    "Whether the last window has drifted: the distance is both significant and large.",
    "drift",
)
DRIFT_OBSERVATIONS = Metric(
    "marsmith_drift_window_observations",
    "gauge",
    "observations",
    VERSION,
    "Observations in the last window, after thinning.",
    "drift",
)
DRIFT_WINDOW_END = Metric(
    "marsmith_drift_window_end_timestamp_seconds",
    "gauge",
    "seconds since the epoch",
    VERSION,
    "When the last window ended.",
    "drift",
)
LABEL_ACCURACY = Metric(
    "marsmith_label_accuracy",
    "gauge",
    "ratio",
    (*VERSION, "bound"),
    "Part of the labelled predictions that were right: bound is lower, estimate or upper.",
    "labels",
)
LABELS = Metric(
    "marsmith_labelled_predictions_total",
    "counter",
    "predictions",
    VERSION,
    "Predictions for which a label has come.",
    "labels",
)

METRICS: tuple[Metric, ...] = (
    UP,
    READY,
    LAST_LOOK,
    BUILD_INFO,
    SERVER_RESTARTS,
    DEFAULT_VERSION,
    WORKERS,
    MIN_WORKERS,
    WORKER_RESTARTS,
    QUEUE_PENDING,
    QUEUE_CAPACITY,
    MAX_BATCH,
    REQUESTS,
    QUEUE_SECONDS,
    ERRORS,
    STAGE_SECONDS,
    BATCH,
    FRONT_UP,
    FRONT_RESTARTS,
    FRONT_REPLIES,
    FRONT_SECONDS,
    ROLLOUT_SHARE,
    ROLLOUT_PHASE,
    ROLLOUT_BEGAN,
    ROLLOUT_EVIDENCE,
    ROLLOUT_LIMIT,
    ROLLOUT_ANSWERS,
    ROLLOUT_SLOW,
    SHADOW_AGREEMENT,
    SHADOW_COPIES,
    DRIFT_DISTANCE,
    DRIFT_P_VALUE,
    DRIFT_DETECTED,
    DRIFT_OBSERVATIONS,
    DRIFT_WINDOW_END,
    LABEL_ACCURACY,
    LABELS,
)
