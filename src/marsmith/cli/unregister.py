"""Unregister a version, once it has answered all that was sent to it.

    marsmith unregister efficientnet_lite0:1.0
    marsmith unregister efficientnet_lite0:1.0 --now          # cut what it has in hand
    marsmith unregister efficientnet_lite0:1.0 --forget       # also let no rollback go back to it

Its archive stays in the model store. The default version is refused, unless it is the only one: choose another with
`marsmith set-default` first. Name the version where there are several. When no server runs, the next start leaves the
version out. After that an archive with other bytes may have its name; after --forget also where it had been deployed.
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
    parser.add_argument("--now", action="store_true", help="do not wait: what waits or runs gets an error")
    parser.add_argument("--forget", action="store_true", help="also forget that it was deployed")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=120.0, help="how long to wait for its work to end (120)"
    )


def run(args: argparse.Namespace) -> None:
    """Drain, unregister, and print what became of it."""
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
        done += "; no rollback goes back to it by itself any more"
    say(done)


def _unregister(project: Project, model: str, version: str | None, args: argparse.Namespace) -> str:
    from marsmith.client.blocking_client import Client
    from marsmith.client.drain import drain
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
        if not args.now:
            note(f"draining {name}")
            drain(client, model, chosen.model_version, timeout_s=args.timeout, on_progress=_Reporter())
        client.unregister(model, chosen.model_version)
    if is_left_out(project, (model, chosen.model_version)):
        # Otherwise it would be waited for until its archive is sound again.
        server_state.leave_out(project, (model, chosen.model_version))
    remember(project)
    return f"{name} is unregistered; {chosen.archive_url} stays in the model store"


def _leave_out(project: Project, model: str, version: str | None) -> str:
    """Let the next start leave a version out."""
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
    """Choose the version that is meant.

    Raises:
        UsageError: none is named and there are several; or it is the default version, and not the only one.
        NotFoundError: it is not registered.
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
            f"{model}:{chosen.model_version} is the default version, which answers when none is named",
            tip=f"let another one answer first: marsmith set-default {model} {other}",
        )
    return chosen


class _Reporter:
    """Tells how far a version has been drained, when that has changed."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, progress: DrainProgress) -> None:
        text = f"{progress.pending} requests wait, {progress.busy} of {progress.workers} workers may be busy"
        if text != self._last:
            note(text)
        self._last = text
