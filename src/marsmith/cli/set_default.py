"""Set the default version of a model, which answers requests without a version.

    marsmith set-default efficientnet_lite0 2.0

Both versions stay registered, and each can still be called by its name, such as efficientnet_lite0:1.0. If a rollout of
the model goes on, it is aborted.
"""

from __future__ import annotations

import argparse

from marsmith.cli.output import note, say
from marsmith.cli.remembering import remember


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith set-default``."""
    parser.add_argument("model", metavar="MODEL", help="a registered model")
    parser.add_argument("version", metavar="VERSION", help="a registered version of it")


def run(args: argparse.Namespace) -> None:
    """Switch, and print the version that answers now."""
    from marsmith.client.blocking_client import Client
    from marsmith.deploy.traffic.control import make_way
    from marsmith.project import find_project
    from marsmith.server.left_out_versions import refuse_left_out

    project = find_project()
    with Client.for_project(project) as client:
        refuse_left_out(project, client.describe(args.model, args.version)[0])
        make_way(project, args.model, args.version, note)
        client.set_default(args.model, args.version)
        now = next(status for status in client.describe(args.model) if status.default)
    remember(project)
    say(f"{now.model_name} is answered by version {now.model_version}")
