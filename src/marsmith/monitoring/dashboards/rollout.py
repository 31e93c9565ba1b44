"""The board *rollout*: how does the version on trial do beside the other one?"""

from __future__ import annotations

from marsmith.metric_names import (
    DEFAULT_VERSION,
    REQUESTS,
    ROLLOUT_ANSWERS,
    ROLLOUT_BEGAN,
    ROLLOUT_EVIDENCE,
    ROLLOUT_LIMIT,
    ROLLOUT_PHASE,
    ROLLOUT_SHARE,
    ROLLOUT_SLOW,
    SHADOW_AGREEMENT,
    SHADOW_COPIES,
)
from marsmith.monitoring.dashboards.boards import Board, Panel, Query, Row
from marsmith.monitoring.dashboards.promql import VERSION_LEGEND, of_model, quotient, rate

_BY_EVENT = f"{VERSION_LEGEND} {{{{event}}}}"
_BY_ROLE = f"{VERSION_LEGEND} ({{{{role}}}})"


def _part_of_answers(numerator: str) -> str:
    return quotient(numerator, rate(ROLLOUT_ANSWERS, by="model, version, role"))


_NOW = Row(
    "Now",
    (
        Panel(
            "Default version",
            "The version that answers requests that name none.",
            "short",
            (Query(of_model(DEFAULT_VERSION), VERSION_LEGEND),),
            kind="stat",
            shows="name",
        ),
        Panel(
            "Phase",
            "Phase of the last rollout of a model.",
            "short",
            (Query(of_model(ROLLOUT_PHASE), f"{VERSION_LEGEND}: {{{{phase}}}}"),),
            kind="stat",
            shows="name",
        ),
        Panel(
            "Share",
            "Part of the requests that the version on trial gets.",
            "percentunit",
            (Query(of_model(ROLLOUT_SHARE), VERSION_LEGEND),),
            kind="stat",
        ),
        Panel(
            "Time at this share",
            "How long the version on trial has had its present share.",
            "s",
            (Query(f"time() - {of_model(ROLLOUT_BEGAN)}", VERSION_LEGEND),),
            kind="stat",
        ),
        Panel(
            "Evidence, as part of its limit",
            "Largest evidence that the version on trial is worse. At 100% it goes back.",
            "percentunit",
            (
                Query(
                    f"max by (model, version) ({of_model(ROLLOUT_EVIDENCE)} / {of_model(ROLLOUT_LIMIT)})",
                    VERSION_LEGEND,
                ),
            ),
            kind="stat",
            limits=(0.1, 1),
        ),
    ),
)

_CANARY = Row(
    "Canary",
    (
        Panel(
            "Share",
            "Part of the requests that the version on trial gets.",
            "percentunit",
            (Query(of_model(ROLLOUT_SHARE), VERSION_LEGEND),),
            top=1,
        ),
        Panel(
            "Evidence and limit",
            "Evidence that the version on trial is worse, by kind of event, and the limit at which it goes back.",
            "short",
            (
                Query(of_model(ROLLOUT_EVIDENCE), _BY_EVENT),
                Query(of_model(ROLLOUT_LIMIT), f"{_BY_EVENT}: limit"),
            ),
        ),
        Panel(
            "Requests by version",
            "Requests per second of all versions.",
            "reqps",
            (Query(rate(REQUESTS), VERSION_LEGEND),),
        ),
        Panel(
            "Answers of both",
            "Answers per second during the rollout, by role and result.",
            "reqps",
            (Query(rate(ROLLOUT_ANSWERS, by="model, version, role, result"), f"{_BY_ROLE} {{{{result}}}}"),),
        ),
        Panel(
            "Failed",
            "Part of the answers that failed. One that the other version gave in its place counts for the canary.",
            "percentunit",
            (Query(_part_of_answers(rate(ROLLOUT_ANSWERS, 'result="failed"', by="model, version, role")), _BY_ROLE),),
        ),
        Panel(
            "Slow",
            "Part of the answers above the latency limit.",
            "percentunit",
            (Query(_part_of_answers(rate(ROLLOUT_SLOW, by="model, version, role")), _BY_ROLE),),
        ),
    ),
)

_SHADOW = Row(
    "Shadow",
    (
        Panel(
            "Agreement",
            "Part of the copies that the shadow answers as the default version does, with an interval that holds at "
            "any time.",
            "percentunit",
            (Query(of_model(SHADOW_AGREEMENT), f"{VERSION_LEGEND} {{{{bound}}}}"),),
            top=1,
        ),
        Panel(
            "Copies",
            "Copies of requests per second, sent and dropped. They are dropped if the shadow is too slow for them.",
            "reqps",
            (Query(rate(SHADOW_COPIES, by="model, version, result"), f"{VERSION_LEGEND} {{{{result}}}}"),),
        ),
    ),
)

ROLLOUT = Board(
    "rollout",
    "marsmith: rollout",
    "How does the version on trial do beside the other one?",
    (_NOW, _CANARY, _SHADOW),
)
