"""Unregister a version, after it has answered all its requests.

    marsmith unregister efficientnet_lite0:1.0
    marsmith unregister efficientnet_lite0:1.0 --now          # cut what it has in hand
    marsmith unregister efficientnet_lite0:1.0 --forget       # also let no rollback go back to it

Its archive stays in the model store. The default version is refused, unless it is the only one: set another with
`marsmith set-default` first. Give the version if there are several. If no server runs, the next start leaves the
version out. Afterwards an archive with other bytes may have its name; with --forget also if it had been deployed.
If a rollout of the model goes on, it is aborted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from marsmith.cli.output import note, say
from marsmith.cli.remembering import remember

if TYPE_CHECKING:
    from marsmith.client.blocking_client import VersionStatus
    from marsmith.client.drain import DrainProgress
    from marsmith.project import Project


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith unregister``."""
    parser.add_argument("model", metavar="MODEL[:VERSION]", help="a registered version; its model, if it has only one")
    parser.add_argument("--now", action="store_true", help="do not wait: requests in the queue or in progress fail")
    parser.add_argument("--forget", action="store_true", help="also remove it from the history of deploys")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=120.0, help="maximum wait for its requests to end (120)"
    )


def run(args: argparse.Namespace) -> None:
    """Drain, unregister, and print the result."""
    from marsmith.errors import NotFoundError, UsageError
    from marsmith.names import split_model_reference
    from marsmith.project import find_project
    from marsmith.server.lifecycle import runs_or_returns
    from marsmith.state.journal import JournalFile

    model, version = split_model_reference(args.model)
    if args.forget and version is None:
        raise UsageError("--forget needs a version", tip=f"marsmith unregister {model}:VERSION --forget")
    project = find_project()
    file = JournalFile.of(project, model)
    known = bool(args.forget and version in {release.version for release in file.read().releases})
    try:
        done = (
            _unregister(project, model, version, args)
            if runs_or_returns(project)
            else _leave_out(project, model, version)
        )
    except NotFoundError:
        if not known:
            raise
        done = f"{args.model} is not registered"
    if known and version:
        file.forget(version)
        done += "; no rollback chooses it any more"
    say(done)


def _unregister(project: Project, model: str, version: str | None, args: argparse.Namespace) -> str:
    from marsmith.client.blocking_client import Client
    from marsmith.client.drain import drain
    from marsmith.deploy.traffic.control import make_way
    from marsmith.errors import NotFoundError
    from marsmith.server import state as server_state
    from marsmith.server.left_out_versions import is_left_out

    with Client.for_project(project) as client:
        try:
            chosen = version_to_unregister(client.describe(model), version)
        except NotFoundError:
            if version is None or not is_left_out(project, (model, version)):
                raise
            server_state.leave_out(project, (model, version))
            return f"{model}:{version} is unregistered: it was left out of the running server"
        name = f"{chosen.model_name}:{chosen.model_version}"
        make_way(project, model, chosen.model_version, note)
        if not args.now:
            note(f"draining {name}")
            drain(client, model, chosen.model_version, timeout_s=args.timeout, on_progress=_Reporter())
        client.unregister(model, chosen.model_version)
    if is_left_out(project, (model, chosen.model_version)):
        # Otherwise the next start would wait until its archive is valid again.
        server_state.leave_out(project, (model, chosen.model_version))
    remember(project)
    return f"{name} is unregistered; {chosen.archive_url} stays in the model store"


def _leave_out(project: Project, model: str, version: str | None) -> str:
    """Make the next start leave a version out."""
    from marsmith.errors import NotFoundError, UsageError
    from marsmith.server import state as server_state
    from marsmith.state import served_file

    served = served_file.read(project).models.get(model)
    names = sorted(served.versions) if served else []
    if version is None and len(names) > 1:
        raise UsageError(f"which version of {model}? {', '.join(names)}", tip=f"marsmith unregister {model}:{names[0]}")
    chosen = version or next(iter(names), "")
    if served is None or chosen not in names:
        known = f"the server before served of {model}: {', '.join(names)}" if names else "marsmith serve"
        raise NotFoundError(f"no server runs, and none is remembered that served {model}:{chosen}", tip=known)
    after = server_state.leave_out(project, (model, chosen))
    left = after.models.get(model)
    moved = f", and {model}:{left.default} answers" if left and left.default != served.default else ""
    return f"{model}:{chosen} is unregistered: no server runs, and the next one leaves it out{moved}"


def version_to_unregister(statuses: Sequence[VersionStatus], version: str | None) -> VersionStatus:
    """Choose the version to unregister.

    Raises:
        UsageError: no version is given and there are several, or it is the default version and not the only one.
        NotFoundError: the version is not registered.
    """
    from marsmith.errors import NotFoundError, UsageError

    model, names = statuses[0].model_name, [status.model_version for status in statuses]
    if version is None and len(statuses) > 1:
        raise UsageError(f"which version of {model}? {', '.join(names)}", tip=f"marsmith unregister {model}:{names[0]}")
    chosen = next((status for status in statuses if version in {None, status.model_version}), None)
    if chosen is None:
        tip = f"registered versions of {model}: {', '.join(names)}"
        raise NotFoundError(f"model {model} has no version {version}", tip=tip)
    if chosen.default and len(statuses) > 1:
        other = next(name for name in names if name != chosen.model_version)
        raise UsageError(
            f"{model}:{chosen.model_version} is the default version",
            tip=f"set another default version first: marsmith set-default {model} {other}",
        )
    return chosen


class _Reporter:
    """Prints the progress of a drain when it changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, progress: DrainProgress) -> None:
        text = f"{progress.pending} requests wait, {progress.busy} of {progress.workers} workers may be busy"
        if text != self._last:
            note(text)
        self._last = text
