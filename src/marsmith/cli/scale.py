"""Set the number of workers of a version, and wait until they are ready.

    marsmith scale efficientnet_lite0 --workers 2
    marsmith scale efficientnet_lite0 --version 1.0 --workers 1 --max 4
    marsmith scale efficientnet_lite0:1.0 --workers 0         # registered still, and answers nothing

Without a version, the default version is scaled. Scaling down ends workers at once and cuts their requests; --drain
first waits until the version has no requests. If a rollout of the model goes on, it is
aborted.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from marsmith.cli.output import note, say
from marsmith.cli.remembering import remember

if TYPE_CHECKING:
    from marsmith.client.blocking_client import Client, VersionStatus

_SETTLE_S = 5.0
_POLL_S = 0.02


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith scale``."""
    parser.add_argument("model", metavar="MODEL[:VERSION]", help="a registered model")
    parser.add_argument("--workers", metavar="N", type=int, required=True, help="number of workers")
    parser.add_argument("--max", metavar="N", type=int, help="maximum number of workers (as many as --workers)")
    parser.add_argument("--version", metavar="V", help="the version, if not named with the model")
    parser.add_argument(
        "--drain", metavar="SECONDS", type=float, help="first wait at most this long for its requests to end"
    )


def run(args: argparse.Namespace) -> None:
    """Scale, and print the present workers."""
    from marsmith.client.blocking_client import Client
    from marsmith.client.drain import drain
    from marsmith.deploy.traffic.control import make_way
    from marsmith.errors import UsageError
    from marsmith.names import split_model_reference
    from marsmith.project import find_project
    from marsmith.server.left_out_versions import refuse_left_out

    model, version = split_model_reference(args.model)
    if version and args.version and version != args.version:
        raise UsageError(f"two versions are named: {version} and {args.version}")
    version = version or args.version
    project = find_project()
    with Client.for_project(project) as client:
        before = next(status for status in client.describe(model, version) if version or status.default)
        refuse_left_out(project, before)
        name = f"{model}:{before.model_version}"
        make_way(project, model, before.model_version, note)
        if args.drain is not None:
            note(f"draining {name}")
            drain(client, model, before.model_version, timeout_s=args.drain)
        note(f"scaling {name} from {len(before.workers)} to {args.workers} workers")
        client.scale(model, version=before.model_version, min_workers=args.workers, max_workers=args.max)
        now = _settled(client, model, before.model_version)
    remember(project)
    ready = f"{now.ready_workers}/{len(now.workers)} workers ready"
    say(f"{name} has {ready}, at least {now.min_workers}, at most {now.max_workers}")


def _settled(client: Client, model: str, version: str) -> VersionStatus:
    """Describe a version that was just scaled: TorchServe answers shortly before the last worker is READY."""
    late = time.monotonic() + _SETTLE_S
    while True:
        now = client.describe(model, version)[0]
        if now.ready_workers >= now.min_workers or time.monotonic() > late:
            return now
        time.sleep(_POLL_S)
