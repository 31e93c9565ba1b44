"""Unregister a version, once it has answered all that was sent to it.

    marsmith unregister resnet18:1.0
    marsmith unregister resnet18:1.0 --now          # cut what it has in hand

Its archive stays in the model store. The default version is refused, unless it is the only one: choose another with
`marsmith set-default` first. Name the version where there are several.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from marsmith.cli.output import note

if TYPE_CHECKING:
    from marsmith.client import VersionStatus
    from marsmith.drain import DrainProgress


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith unregister``."""
    parser.add_argument("model", metavar="MODEL[:VERSION]", help="a registered version; its model, if it has only one")
    parser.add_argument("--now", action="store_true", help="do not wait: what waits or runs gets an error")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=120.0, help="how long to wait for its work to end (120)"
    )


def run(args: argparse.Namespace) -> None:
    """Drain, unregister, and print what answers now."""
    from marsmith import server_state
    from marsmith.client import Client
    from marsmith.drain import drain
    from marsmith.names import split_model_reference
    from marsmith.settings import find_project

    model, version = split_model_reference(args.model)
    project = find_project()
    with Client.for_project(project) as client:
        chosen = version_to_unregister(client.describe(model), version)
        name = f"{chosen.model_name}:{chosen.model_version}"
        if not args.now:
            note(f"draining {name}")
            drain(client, model, chosen.model_version, timeout_s=args.timeout, on_progress=_Reporter())
        client.unregister(model, chosen.model_version)
    server_state.record(project)
    print(f"{name} is unregistered; {chosen.archive_url} stays in the model store")


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
