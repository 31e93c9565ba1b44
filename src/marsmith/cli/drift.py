"""Show how far the requests of a version differ from its archive's reference and from a baseline of live traffic.

    marsmith drift efficientnet_lite0                             # the version that was logged last
    marsmith drift efficientnet_lite0:1.0 --html drift.html --json
    marsmith drift efficientnet_lite0 --baseline 2026-11-01..2026-11-08 --save

It reads the prediction log, without labels: the class, confidence, entropy and margin of replies, brightness, contrast,
blur and size of pictures, and what each other handler logs. Observations are thinned to one of each body and one of
each second, and cut into windows of --window observations and --window-time. A window is reported if a difference is
significant, at most one false alarm a year over all statistics, and larger than a distance of 0.1.

Skew is the difference of the first window from the reference of the archive, which a build makes if the spec has
`reference:`. It is told once. Drift is the difference of each later window from the baseline: the first week of live
traffic of the version, or --baseline FROM..TO. The two are never mixed.

While `marsmith serve` runs, its supervisor does the same, and keeps baseline and verdicts in .marsmith/drift/; this
verb goes on from there. With --baseline, --window, --window-time, --block or --file it reads the whole log anew, and
--save keeps the result, with its windows, for the supervisor.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note, print_fields, print_json, print_table, say
from marsmith.errors import UsageError
from marsmith.names import split_model_reference
from marsmith.project import Project, find_project

if TYPE_CHECKING:
    from marsmith.monitoring.drift.follow import ModelDrift
    from marsmith.monitoring.drift.monitor import DriftMonitor, Period
    from marsmith.statistics import DriftRule, RateInterval

_LEAST_WINDOW = 50


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL[:VERSION]", help="the model, and which of its versions")
    parser.add_argument("--baseline", metavar="FROM..TO", help="two dates, or dates and times")
    parser.add_argument("--window", type=int, metavar="N", help="least thinned observations of a window (1000)")
    parser.add_argument("--window-time", metavar="TIME", help="least time of a window, as in 30s, 10m or 1h (1h)")
    parser.add_argument("--block", metavar="TIME", help="of this time one observation counts (1s)")
    parser.add_argument("--file", type=Path, metavar="LOG", help="the log, if the handler's settings name another file")
    parser.add_argument("--save", action="store_true", help="keep this baseline for the supervisor")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the verdicts on one version."""
    project = find_project()
    model, version = split_model_reference(args.model)
    drift = _read(args, project, model)
    monitor = _chosen(drift, model, version)
    if args.save:
        _save(project, model, drift, monitor)
    if args.html:
        _write_page(args, project, monitor)
    if args.json:
        print_json({**monitor.state.record(), "waiting": monitor.waiting, "labels": _labels(project, monitor)})
    else:
        _print(project, monitor)
    if drift.undescribed and not monitor.state.seen:
        note("the log has lines without figures: an older handler wrote them; build the archive again")
    if drift.damaged:
        note(f"{drift.damaged} damaged lines are left out")
    return 0


def _read(args: argparse.Namespace, project: Project, model: str) -> ModelDrift:
    from marsmith.monitoring.drift.follow import ModelDrift, logs_of
    from marsmith.monitoring.drift.state import DriftFile

    logs = [args.file] if args.file else logs_of(project, model)
    states = () if _is_anew(args) else DriftFile.of(project, model).read()
    if not states and not (logs and all(path.exists() for path in logs)):
        raise UsageError(
            f"no prediction log of {model}",
            tip="set prediction_log.sample in the handler's settings, or name the log with --file",
        )
    rule = _rule(args)
    drift = ModelDrift(
        project, model, logs, states=states, rule=rule, period=_period(args.baseline), block_s=_block_s(args)
    )
    drift.read()
    drift.finish()
    return drift


def _is_anew(args: argparse.Namespace) -> bool:
    return any(value is not None for value in (args.baseline, args.window, args.window_time, args.block, args.file))


def _rule(args: argparse.Namespace) -> DriftRule | None:
    """Return the rule that was asked for; None if nothing was said of it."""
    from marsmith.config.rollout_spec import parse_duration
    from marsmith.statistics import DriftRule

    if args.window is None and args.window_time is None:
        return None
    usual = DriftRule()
    window = usual.window if args.window is None else args.window
    if window < _LEAST_WINDOW:
        raise UsageError(f"--window must be at least {_LEAST_WINDOW}, not {window}", tip="smaller ones show nothing")
    return DriftRule(window, parse_duration(args.window_time) if args.window_time else usual.window_s)


def _block_s(args: argparse.Namespace) -> float:
    from marsmith.config.rollout_spec import parse_duration
    from marsmith.statistics.thinning import BLOCK_S

    return parse_duration(args.block) if args.block else BLOCK_S


def _period(text: str | None) -> Period | None:
    if text is None:
        return None
    begin, dots, end = text.partition("..")
    try:
        period = datetime.fromisoformat(begin).timestamp(), datetime.fromisoformat(end).timestamp()
    except ValueError:
        period = (0.0, 0.0)
    if not dots or period[0] >= period[1]:
        raise UsageError(
            f"{text!r} is not a period", tip="as in 2026-11-01..2026-11-08, or with times: 2026-11-01T12:30"
        )
    return period


def _chosen(drift: ModelDrift, model: str, version: str | None) -> DriftMonitor:
    """Return the monitor of a version; by default of the one that was logged last."""
    if not drift.monitors or (version is not None and version not in drift.monitors):
        known = ", ".join(drift.monitors) or "no version"
        raise UsageError(f"the log has no request of {model}{f':{version}' if version else ''}", tip=f"it has {known}")
    return drift.monitors[version] if version else list(drift.monitors.values())[-1]


def _save(project: Project, model: str, drift: ModelDrift, monitor: DriftMonitor) -> None:
    from marsmith.monitoring.drift.state import DriftFile

    if monitor.state.baseline is None:
        raise UsageError("there is no baseline to save", tip=f"marsmith drift {model} says what it lacks")
    file = DriftFile.of(project, model)
    file.write({**{state.version: state for state in file.read()}, **drift.states})
    note(f"{file.path} has the baseline; the supervisor goes on from it")


def _write_page(args: argparse.Namespace, project: Project, monitor: DriftMonitor) -> None:
    from marsmith.monitoring.drift.page import render_page

    try:
        args.html.write_text(render_page(monitor.state, _facts(project, monitor)), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {args.html}: {error.strerror}") from None
    note(f"{args.html} has the plots")


def _print(project: Project, monitor: DriftMonitor) -> None:
    from marsmith.monitoring.drift.report import COLUMNS, rows

    print_fields(_facts(project, monitor))
    if found := rows(monitor.state):
        say("")
        print_table(COLUMNS, found)


def _facts(project: Project, monitor: DriftMonitor) -> dict[str, str]:
    from marsmith.monitoring.drift.report import facts

    return facts(monitor, _accuracies(project, monitor))


def _accuracies(project: Project, monitor: DriftMonitor) -> dict[str, RateInterval]:
    from marsmith.predictions.labels import LabelledPredictions

    return LabelledPredictions.read(project, monitor.state.model).accuracies()


def _labels(project: Project, monitor: DriftMonitor) -> dict[str, object] | None:
    accuracy = _accuracies(project, monitor).get(monitor.state.version)
    return None if accuracy is None else {**vars(accuracy), "rate": accuracy.rate}
