"""A comparison of two versions in words, for terminals and pages."""

from __future__ import annotations

import math
from collections.abc import Mapping

from marsmith.predictions.comparison import Report

FLIP_COLUMNS = ("OLD CLASS", "NEW CLASS", "COUNT")


def fields(report: Report, what: str = "request") -> Mapping[str, str]:
    """Return the figures by name, as text.

    Args:
        report: the comparison.
        what: ``request``, or ``input`` of a batch, whose time is not logged and whose key is not that of a body.
    """
    if what != "request":
        return _of_batches(report, what)
    old, new = report.old, report.new
    only_old, only_new, both = report.failed
    found = {
        "versions": f"{old}, and {new} compared with it",
        "answered by both": f"{report.pairs:,} requests with {report.inputs:,} different bodies",
        "agreement": _agreement(report),
        "largest difference": _largest(report),
        "failed": f"{only_old} only on {old}, {only_new} only on {new}, {both} on both",
        "handler, p50 and p99": "; ".join(
            f"{version} {_ms(latency.p50_ms)} and {_ms(latency.p99_ms)}"
            for version, latency in zip((old, new), report.latency, strict=True)
        ),
        "answered by one": f"{report.alone[0]} by {old}, {report.alone[1]} by {new}",
    }
    if report.damaged or report.dropped:
        found["lines lost"] = f"{report.damaged} damaged, {report.dropped} dropped by workers"
    if report.older_log:
        found["older log"] = (
            f"{', '.join(report.older_log)}: its handlers write no request id, so that requests are joined by their"
            " bodies; renew them: marsmith repack ARCHIVE --renew-handlers --version NEW"
        )
    return found


def _of_batches(report: Report, what: str) -> Mapping[str, str]:
    of_requests = fields(report)
    kept = ("versions", "agreement", "failed")
    return {
        **{name: of_requests[name] for name in kept},
        "answered by both": f"{report.pairs:,} {what}s",
        "largest difference": _largest(report, what),
        f"{what}s of one only": f"{report.alone[0]:,} of {report.old}, {report.alone[1]:,} of {report.new}",
    }


def flip_rows(report: Report, most: int = 20) -> list[tuple[str, str, int]]:
    """Return the most frequent flips."""
    return list(report.flips[:most])


def _agreement(report: Report) -> str:
    found = report.agreement
    if not found.observations:
        return "nothing compared yet"
    return (
        f"{found.rate:.2%} of {found.observations:,}; with a confidence of {1 - found.alpha:.0%} at any time"
        f" between {found.lower:.2%} and {found.upper:.2%}"
    )


def _largest(report: Report, what: str = "request") -> str:
    if math.isnan(report.largest):
        return "no numbers compared"
    return f"{report.largest:.6g}, {what} {report.largest_key}"


def _ms(value: float) -> str:
    return "not logged" if math.isnan(value) else f"{value:.1f} ms"
