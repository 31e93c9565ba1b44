"""Bring a new version into service with no request lost, or restore the state before and report the reason.

    marsmith archive efficientnet_lite0 --version 2.0
    marsmith deploy efficientnet_lite0-2.0.mar --plan     # print the steps, do nothing
    marsmith deploy efficientnet_lite0-2.0.mar
    marsmith deploy efficientnet_lite0-2.0.mar --canary --sticky header:x-user-id
    marsmith deploy efficientnet_lite0-2.0.mar --shadow --sample 10% --for 30m --then canary

The archive is verified and registered beside the current version, and its examples are sent to it. Only then does it
become the default version. Errors and latency are watched for a while. If there is a problem, the old version becomes
the default again and the new one is unregistered. An interrupted deploy is finished or undone first.

With --canary the version gets its requests share by share. A request that fails on it is repeated on the old version.
The supervisor drives the rollout, goes back on evidence, and makes the version the default after the last share;
`marsmith rollout` shows it. With --compare the old version gets copies of a part of the canary's requests, and replies
that differ are evidence too. The block `rollout:` of the model's spec can say the same without options.

With --shadow the version gets copies of a sample of the requests. Its replies are compared with those of the old
version and thrown away. At the end a report is written, and the version is unregistered; with --then canary the canary
begins instead, if the lower end of the agreement's interval is at least --min-agreement.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from marsmith.cli.deploy_strategy import add_strategy_arguments, positive, strategy_of
from marsmith.cli.output import add_json_flag, note, print_json, print_table

if TYPE_CHECKING:
    from marsmith.deploy.versions import Event, Options, Outcome, Planned


# Options for a change of the default version; without one they have no effect.
_OF_A_SWITCH = ("watch_s", "max_error_rate", "max_latency_ratio", "max_4xx_rise", "keep")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith deploy``."""
    parser.add_argument("archive", metavar="ARCHIVE", help="path of an archive, or its name in the model store")
    parser.add_argument("--workers", metavar="N", type=positive, help="workers (default: as in its model config)")
    parser.add_argument("--watch-s", metavar="SECONDS", type=float, help="how long to watch the new version (10)")
    parser.add_argument(
        "--max-error-rate",
        metavar="SHARE",
        type=float,
        help="maximum share of requests that may fail beyond the share before, 0 to 1 (0.01)",
    )
    parser.add_argument(
        "--max-latency-ratio",
        metavar="TIMES",
        type=float,
        help="maximum latency, in multiples of the old version's (2)",
    )
    parser.add_argument(
        "--max-4xx-rise",
        metavar="SHARE",
        type=float,
        help="maximum rise of the share of replies of 400 to 499, 0 to 1 (0.1)",
    )
    add_strategy_arguments(parser)
    add_rollout_arguments(parser)


def add_rollout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``deploy`` and ``rollback`` share."""
    parser.add_argument("--keep", metavar="N", type=_count, help="earlier versions that stay registered (2)")
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="wait for another deploy to end (%(default)g)",
    )
    parser.add_argument("--plan", action="store_true", help="print the steps and do nothing")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Deploy, or print the plan."""
    from marsmith.deploy.versions import deploy, plan_deploy
    from marsmith.project import find_project

    project, options, strategy = find_project(), _options(args), strategy_of(args)
    if args.plan:
        planned = plan_deploy(project, args.archive, options, strategy=strategy)
        say_idle(args, switches=planned.before != planned.version)
        print_plan(planned, as_json=args.json)
        return
    outcome = deploy(project, args.archive, options, strategy=strategy, on_event=tell, wait_s=args.wait)
    say_idle(args, switches=outcome.before != outcome.version)
    print_outcome(outcome, as_json=args.json)


def tell(event: Event) -> None:
    """Print on stderr the step that begins, and the duration of a finished one."""
    if event.state == "begin":
        note(f"{event.step.action}: {event.step.detail}")
        return
    note(f"  {event.seconds:.1f} s{f': {event.note}' if event.note else ''}")


def say_idle(args: argparse.Namespace, *, switches: bool) -> None:
    """Print on stderr the options without effect if the version was the default already."""
    given = [f"--{name.replace('_', '-')}" for name in _OF_A_SWITCH if getattr(args, name, None) is not None]
    if given and not switches:
        note(f"{', '.join(given)}: no effect, because the version was the default already")


def print_plan(planned: Planned, *, as_json: bool) -> None:
    """Print the steps on stdout."""
    if as_json:
        interrupted = planned.interrupted and {**asdict(planned.interrupted[0]), "remedy": planned.interrupted[1]}
        print_json({**asdict(planned), "interrupted": interrupted})
        return
    if planned.interrupted:
        change, remedy = planned.interrupted
        so = {"leave": "do not change"}.get(remedy, remedy)
        print(f"first {so} the {change.kind} of {change.target.version} that stopped at '{change.step}'")
    if not planned.steps:
        print(f"{planned.model} is answered by version {planned.version} already")
        return
    rows = [(i, step.action, step.version, step.detail) for i, step in enumerate(planned.steps, 1)]
    print_table(("STEP", "ACTION", "VERSION", "WHAT"), rows)


def print_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """Print on stdout which version answers now."""
    if as_json:
        steps = [
            {"action": e.step.action, "version": e.step.version, "seconds": round(e.seconds, 3), "note": e.note}
            for e in outcome.events
        ]
        fields = {name: getattr(outcome, name) for name in ("model", "version", "before", "result")}
        print_json({**fields, "steps": steps})
        return
    if outcome.result in {"canary", "shadow"}:
        gets = (
            "a share of the requests, {} the rest" if outcome.result == "canary" else "copies of requests, {} answers"
        )
        print(f"{outcome.model}: {outcome.version} gets {gets.format(outcome.before)}")
        note(f"the supervisor goes on; marsmith rollout {outcome.model} --watch shows it")
        return
    already = {"unchanged": " already", "scaled": " already, with more workers now"}.get(outcome.result, "")
    print(f"{outcome.model} is answered by version {outcome.version}{already}")


def _options(args: argparse.Namespace) -> Options:
    from marsmith.deploy.rollout.observation import RolloutLimits
    from marsmith.deploy.versions import Options

    given = {name: getattr(args, name) for name in _OF_A_SWITCH if getattr(args, name) is not None}
    limits = RolloutLimits(
        **{name: value for name, value in given.items() if name in RolloutLimits.__dataclass_fields__}
    )
    rest = {name: value for name, value in given.items() if name in Options.__dataclass_fields__}
    return Options(**rest, limits=limits, workers=args.workers)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("0 or more")
    return number
