"""Register an archive with the running server, and wait until its workers are ready.

    marsmith archive efficientnet_lite0 --version 2.0
    marsmith register efficientnet_lite0-2.0.mar
    marsmith register model_store/efficientnet_lite0-2.0.mar --set-default

The archive must be in the project's model store. If its version is bound to a digest, it must have that digest. The
current version continues to answer; --set-default switches at the end. A version that the server left out gets its
place again: a former default version becomes the default.
"""

from __future__ import annotations

import argparse

from marsmith.cli.admission import admit_here
from marsmith.cli.output import note, say
from marsmith.cli.remembering import remember


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith register``."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a file of the model store: its path, or its name there")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="workers to start; minWorkers of a model config takes precedence"
    )
    parser.add_argument("--set-default", action="store_true", help="make it the default version")


def run(args: argparse.Namespace) -> None:
    """Register, and print the ready version."""
    from marsmith.names import ModelVersion
    from marsmith.project import find_project
    from marsmith.server import state as server_state
    from marsmith.server.opened import open_server
    from marsmith.server.registration import archive_in_store, register_stored
    from marsmith.state.version_bytes import check_bytes

    project = find_project()
    with open_server(project) as server:
        archive = archive_in_store(server.store, args.archive)
        opened = admit_here(archive)
        content = server_state.content_of(opened)
        version = ModelVersion(opened.manifest.model_name, opened.manifest.model_version)
        check_bytes(project, version, archive, content.sha256)
        note(f"registering {archive.name}")
        status = register_stored(server, archive, workers=args.workers)
        if args.set_default:
            server.client.set_default(status.model_name, status.model_version)
        default = args.set_default or status.default
    remember(project, {version: content})
    say(
        f"{status.model_name}:{status.model_version} is ready: {status.ready_workers}/{len(status.workers)} workers,"
        f" batch size {status.batch_size}{', default version' if default else ''}"
    )
