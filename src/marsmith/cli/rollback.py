"""Go back to the version that was the default before.

    marsmith rollback efficientnet_lite0 --plan
    marsmith rollback efficientnet_lite0
    marsmith rollback efficientnet_lite0 --to 1.2

The earlier version gets its workers back if it has none, answers the examples of its archive, and becomes the default.
If it is not registered any more, it is registered from the model store. The current version is drained and
unregistered; its archive stays in the model store.
"""

from __future__ import annotations

import argparse

from marsmith.cli.deploy import add_rollout_arguments, print_outcome, print_plan, say_idle, tell


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith rollback``."""
    parser.add_argument("model", metavar="MODEL", help="a registered model")
    parser.add_argument("--to", metavar="VERSION", help="a version (default: the one that was the default before)")
    add_rollout_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Roll back, or print the plan."""
    from marsmith.deploy.versions import KEEP, plan_rollback, rollback
    from marsmith.project import find_project

    project, keep = find_project(), KEEP if args.keep is None else args.keep
    if args.plan:
        planned = plan_rollback(project, args.model, to=args.to, keep=keep)
        say_idle(args, switches=planned.before != planned.version)
        print_plan(planned, as_json=args.json)
        return
    outcome = rollback(project, args.model, to=args.to, keep=keep, on_event=tell, wait_s=args.wait)
    say_idle(args, switches=outcome.before != outcome.version)
    print_outcome(outcome, as_json=args.json)
