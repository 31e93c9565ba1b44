"""The board *model*: are requests and replies as they were, and are the replies right?"""

from __future__ import annotations

from marsmith.metric_names import (
    BATCH,
    DRIFT_DETECTED,
    DRIFT_DISTANCE,
    DRIFT_OBSERVATIONS,
    DRIFT_P_VALUE,
    DRIFT_WINDOW_END,
    ERRORS,
    LABEL_ACCURACY,
    LABELS,
    REQUESTS,
    STAGE_SECONDS,
)
from marsmith.monitoring.dashboards.boards import Board, Panel, Query, Row
from marsmith.monitoring.dashboards.promql import VERSION_LEGEND, of_model, quantile, quotient, rate

_BY_STATISTIC = f"{VERSION_LEGEND} {{{{statistic}}}}"
_BASELINE, _REFERENCE = 'against="baseline"', 'against="reference"'


_REQUESTS = Row(
    "Requests",
    (
        Panel(
            "Requests by version",
            "Requests per second over REST and gRPC.",
            "reqps",
            (Query(rate(REQUESTS), VERSION_LEGEND),),
        ),
        Panel(
            "Refused and failed",
            "Part of the requests with an error, of the client (4xx, such as a broken image) or of the server (5xx).",
            "percentunit",
            (
                Query(
                    f"{rate(ERRORS, by='model, version, kind')} / on (model, version) group_left ()"
                    f" ({rate(REQUESTS)} > 0)",
                    f"{VERSION_LEGEND} {{{{kind}}}}",
                ),
            ),
        ),
        Panel(
            "Batch size",
            "Mean number of requests in a batch.",
            "short",
            (Query(quotient(rate(BATCH, part="_sum"), rate(BATCH, part="_count")), VERSION_LEGEND),),
        ),
        Panel(
            "Inference",
            "Time of a batch in the network, without decoding and encoding.",
            "s",
            tuple(
                Query(
                    quantile(part, STAGE_SECONDS, 'stage="infer"', by="model, version"),
                    f"{VERSION_LEGEND} p{100 * part:g}",
                )
                for part in (0.5, 0.95, 0.99)
            ),
        ),
    ),
)

_DRIFT = Row(
    "Drift, against the baseline period",
    (
        Panel(
            "Drifted statistics",
            "Number of statistics of requests and replies whose last window has drifted: significantly, and far.",
            "short",
            (Query(f"sum by (model, version) ({of_model(DRIFT_DETECTED, _BASELINE)})", VERSION_LEGEND),),
            kind="stat",
            limits=(1, 1),
        ),
        Panel(
            "Distance",
            "Total variation distance of the last window from the baseline: 0 is alike, 1 has nothing in common.",
            "percentunit",
            (Query(of_model(DRIFT_DISTANCE, _BASELINE), _BY_STATISTIC),),
        ),
        Panel(
            "p-value",
            "Probability of such a distance without any drift.",
            "short",
            (Query(of_model(DRIFT_P_VALUE, _BASELINE), _BY_STATISTIC),),
            top=1,
        ),
        Panel(
            "Observations in the last window",
            "Requests that count, after bursts of alike ones were thinned.",
            "short",
            (Query(of_model(DRIFT_OBSERVATIONS), VERSION_LEGEND),),
        ),
    ),
)

_SKEW = Row(
    "Skew, against the validation data",
    (
        Panel(
            "Skewed statistics",
            "Number of statistics that are not like those of the validation data in the archive.",
            "short",
            (Query(f"sum by (model, version) ({of_model(DRIFT_DETECTED, _REFERENCE)})", VERSION_LEGEND),),
            kind="stat",
            limits=(1, 1),
        ),
        Panel(
            "Distance",
            "Total variation distance of the last window from the validation data.",
            "percentunit",
            (Query(of_model(DRIFT_DISTANCE, _REFERENCE), _BY_STATISTIC),),
        ),
        Panel(
            "Age of the last window",
            "Time since the last window of observations ended.",
            "s",
            (Query(f"time() - {of_model(DRIFT_WINDOW_END)}", VERSION_LEGEND),),
            kind="stat",
        ),
    ),
)

_LABELS = Row(
    "Labels",
    (
        Panel(
            "Accuracy",
            "Part of the labelled predictions that were right, with an interval that holds at any time.",
            "percentunit",
            (Query(of_model(LABEL_ACCURACY), f"{VERSION_LEGEND} {{{{bound}}}}"),),
            top=1,
        ),
        Panel(
            "Labelled predictions",
            "Predictions whose label has come.",
            "short",
            (Query(of_model(LABELS), VERSION_LEGEND),),
        ),
    ),
)

MODEL = Board(
    "model",
    "marsmith: model",
    "Are requests and replies as they were, and are the replies right?",
    (_REQUESTS, _DRIFT, _SKEW, _LABELS),
)
