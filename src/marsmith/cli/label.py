"""Join labels that came later with what each version has predicted: the accuracy of each version.

    marsmith label efficientnet_lite0 labels.csv
    marsmith label efficientnet_lite0 labels.jsonl --json
    marsmith label efficientnet_lite0                       # what was counted until now

A reply carries its id in the header x-request-id. FILE has the id and the label of each request: CSV with the header
`request_id,label`, or lines of JSON with these keys. A label belongs to what the log has under this id, of each version
that has answered; of a request with several items, to the first. It counts once, however often it is read. What is kept
are counts and hashes, in .marsmith/labels/. The interval of the accuracy holds at any time. If the setting
`prediction_log` of the archive's handler names another file, --log names it too.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.cli.output import add_json_flag, note, print_json, print_table
from marsmith.errors import UsageError
from marsmith.names import check_model_name
from marsmith.project import find_project

if TYPE_CHECKING:
    from marsmith.statistics import RateInterval

COLUMNS = ("VERSION", "LABELLED", "RIGHT", "ACCURACY", "AT LEAST", "AT MOST")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help="the labels")
    parser.add_argument("--log", type=Path, metavar="LOG", help="the log, if the handler's settings name another file")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Count labels, and print the accuracy of each version."""
    from marsmith.predictions.labels import LabelledPredictions

    project, model, joined, damaged = find_project(), check_model_name(args.model), None, 0
    if args.file is None:
        labelled = LabelledPredictions.read(project, model)
    else:
        labelled, joined, damaged = _join(args)
    accuracies = labelled.accuracies()
    if args.json:
        content = {version: _record(accuracy) for version, accuracy in accuracies.items()}
        print_json({"model": model, "labels": joined and {**vars(joined), "damaged": damaged}, "versions": content})
        return 0
    if joined:
        note(f"{joined.counted} predictions labelled, {joined.known} were labelled before")
        if joined.unknown:
            note(
                f"{joined.unknown} labels have no predicted class in the log: not sampled, forgotten, or no classifier"
            )
    print_table(COLUMNS, [_row(version, accuracy) for version, accuracy in accuracies.items()])
    return 0


def _join(args: argparse.Namespace) -> Any:
    from itertools import chain

    from marsmith.monitoring.drift.follow import logs_of
    from marsmith.predictions import LogFollower
    from marsmith.predictions.labels import add_labels, read_labels

    project, file = find_project(), read_labels(args.file)
    logs = [args.log] if args.log else logs_of(project, args.model)
    if not logs or not all(path.exists() for path in logs):
        raise UsageError(
            f"no prediction log of {args.model}",
            tip="set prediction_log.sample in the handler's settings, or name the log with --log",
        )
    if file.damaged:
        note(
            f"{len(file.damaged)} lines have no request id or no label, and are left out: the first is"
            f" {args.file}:{file.damaged[0]}"
        )
    predictions = chain.from_iterable(LogFollower(path).each() for path in logs)
    return (*add_labels(project, args.model, predictions, file.labels), len(file.damaged))


def _record(accuracy: RateInterval) -> dict[str, Any]:
    return {**vars(accuracy), "rate": None if math.isnan(accuracy.rate) else accuracy.rate}


def _row(version: str, accuracy: RateInterval) -> tuple[str, ...]:
    shares = (accuracy.rate, accuracy.lower, accuracy.upper)
    return (version, str(accuracy.observations), str(accuracy.happened), *(f"{share:.2%}" for share in shares))
