"""Show the predictions that a model's handlers have logged, or compare those of two versions.

    marsmith log efficientnet_lite0                        # the last 20
    marsmith log efficientnet_lite0 -n 100 --version 2.0 --json
    marsmith log efficientnet_lite0 --compare 1.0 2.0
    marsmith log efficientnet_lite0 --compare 1.0 2.0 --html page.html --json
    marsmith log forget efficientnet_lite0 --request-id 5e0ffd2c-9c0f-4bde-8b3a-3c1f0f4e2a77
    marsmith log forget efficientnet_lite0 --before 2026-11-01

The log has the requests with the header `x-marsmith-log: 1`. If the setting `prediction_log` of the archive's handler
names another file, --file names it too. KEY is the same for the same request at all versions.

--compare joins the replies of two versions to the same requests. Two replies of a classifier agree if the most probable
class is the same and its probability differs by no more than --probability. Other replies agree if each number differs
by no more than --absolute, or than --relative times the larger one. If the handler of the second version's archive in
the model store has a function compare(old, new), that one decides. The interval of the agreement holds at any time.

`forget` removes lines, and damaged lines with them, while workers go on writing.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.cli.admission import admit_here
from marsmith.cli.comparing import add_tolerance_flags, print_report, tolerance_of, write_page
from marsmith.cli.output import add_json_flag, note, print_json, print_table, say
from marsmith.errors import UsageError
from marsmith.names import check_model_name, check_named_version
from marsmith.project import find_project

if TYPE_CHECKING:
    from marsmith.predictions import LogFollower, Prediction

COLUMNS = ("TIME", "KEY", "VERSION", "STATUS", "HANDLER_MS", "SHADOW", "REPLY")
_LONGEST_REPLY = 60


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("what", metavar="MODEL|forget", help="name of the model, or the order to remove lines")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the model, after forget")
    parser.add_argument("--file", type=Path, metavar="LOG", help="the log, if the handler's settings name another file")
    parser.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--version", metavar="VERSION", help="only those of one version")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare the replies of two versions")
    add_tolerance_flags(parser)
    parser.add_argument(
        "--request-id", metavar="KEY", help="forget the lines with this KEY, or with this id of TorchServe"
    )
    parser.add_argument("--before", metavar="TIME", help="forget the lines from before a date, or a date and time")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print predictions, or a comparison."""
    from marsmith.predictions import LogFollower
    from marsmith.predictions.files import log_file

    is_order = args.what == "forget" and args.model is not None
    model = check_model_name(args.model if is_order else args.what)
    if args.model is not None and not is_order:
        raise UsageError(f"{args.what!r} is not an order", tip="marsmith log forget MODEL")
    if not is_order and (args.request_id or args.before):
        raise UsageError("--request-id and --before say what to forget", tip="marsmith log forget MODEL")
    args.model = model
    if args.html and not args.compare:
        raise UsageError("--html shows a comparison", tip="add --compare OLD NEW")
    if args.lines < 1:
        raise UsageError(f"-n must be at least 1, not {args.lines}")
    path = args.file or log_file(find_project(), args.model)
    if not path.exists():
        raise UsageError(
            f"no prediction log {path}",
            tip="send requests with the header x-marsmith-log: 1, or name the file of the setting prediction_log with"
            " --file",
        )
    log = LogFollower(path)
    if is_order:
        _forget(args, path)
    elif args.compare:
        for version in args.compare:
            check_named_version(version)
        _compare(args, log)
    else:
        _show(args, log)
    return 0


def _show(args: argparse.Namespace, log: LogFollower) -> None:
    wanted = (each for each in log.each() if each.model == args.model and args.version in (None, each.version))
    found = list(deque(wanted, maxlen=args.lines))
    if args.json:
        print_json([_record(each) for each in found])
    else:
        print_table(COLUMNS, [_row(each) for each in found])
    if log.damaged:
        note(f"{log.damaged} damaged lines are left out")


def _compare(args: argparse.Namespace, log: LogFollower) -> None:
    from marsmith.config.server_config import model_store
    from marsmith.predictions import Comparison
    from marsmith.predictions.files import own_comparison
    from marsmith.predictions.page import render_page

    old, new = args.compare
    if old == new:
        raise UsageError(f"{old} cannot be compared with itself", tip="name two versions")
    tolerance = tolerance_of(args)
    seen = set()
    with own_comparison(model_store(find_project()), args.model, new, admit_here) as compare:
        comparison = Comparison(old, new, compare=compare, tolerance=tolerance)
        for prediction in log.each():
            if prediction.model == args.model:
                seen.add(prediction.version)
                comparison.add([prediction])
    if missing := next((version for version in (old, new) if version not in seen), None):
        versions = ", ".join(sorted(seen)) or "no version of the model"
        raise UsageError(f"{log.path} has no reply of {args.model} {missing}", tip=f"it has {versions}")
    comparison.damaged = log.damaged
    report = comparison.report()
    if args.html:
        write_page(render_page(report, args.model), args.html)
    if args.json:
        print_json(report.record())
    else:
        print_report(report)


def _forget(args: argparse.Namespace, path: Path) -> None:
    from marsmith.predictions.forget import forget

    if bool(args.request_id) == bool(args.before):
        raise UsageError(
            "forget needs either --request-id or --before", tip="marsmith log forget MODEL --request-id ID"
        )
    if args.before:
        before_s = _seconds(args.before)
        count = forget(path, lambda each: each.model == args.model and each.time < before_s)
    else:
        count = forget(path, lambda each: each.model == args.model and args.request_id in (each.key, each.request_id))
    if args.json:
        print_json({"removed": count})
    else:
        say(f"{count} lines removed from {path}")


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(f"{text!r} is not a date or time", tip="as in 2026-11-01, or 2026-11-01T12:30") from None


def _record(prediction: Prediction) -> dict[str, Any]:
    return {**vars(prediction), "handler_ms": None if math.isnan(prediction.handler_ms) else prediction.handler_ms}


def _row(prediction: Prediction) -> tuple[str, ...]:
    reply = "" if prediction.reply is None else str(prediction.reply)
    return (
        datetime.fromtimestamp(prediction.time).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        prediction.key,
        prediction.version,
        str(prediction.status),
        "" if math.isnan(prediction.handler_ms) else f"{prediction.handler_ms:.1f}",
        "yes" if prediction.shadow else "",
        reply if len(reply) <= _LONGEST_REPLY else reply[: _LONGEST_REPLY - 3] + "...",
    )
