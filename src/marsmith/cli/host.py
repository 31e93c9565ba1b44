"""Serve archives without TorchServe and without Java: one front process, and worker processes.

    marsmith host model_store/efficientnet_lite0-1.0.mar
    marsmith host a-1.0.mar b-2.0.mar --port 9000 --grpc-port 9001
    marsmith host --store model_store --watch
    marsmith host m.mar --no-tokens --workers 1 --batch 4

Paths, replies and errors are those of TorchServe's inference API, of KServe v1 and v2, and of the Open Inference
Protocol over gRPC. It stays attached; SIGTERM and Ctrl-C end it after what was taken is answered. SIGHUP serves the
archives as they are now, without a lost request; with --watch that happens by itself. It needs no project: tokens and
state are in --state, by default in the user's runtime folder. A page to try each model is at /, its description for
tools at /openapi.json.

A request is answered at once by an idle worker. Batches form only while all workers are busy, up to --batch.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.admission import admit_here
from marsmith.cli.output import note, printable, say
from marsmith.errors import UsageError

if TYPE_CHECKING:
    from marsmith.host.catalogue import Catalogue
    from marsmith.host.server import HostOptions
    from marsmith.host.state import HostState

_MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("archives", metavar="ARCHIVE", nargs="*", type=Path, help="a .mar, a .tar.gz, or a folder")
    parser.add_argument("--store", metavar="DIR", type=Path, help="serve every archive in this folder")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port of the REST API (%(default)d)")
    parser.add_argument("--grpc-port", type=int, metavar="PORT", help="serve gRPC there, too")
    parser.add_argument("--workers", type=int, metavar="N", help="workers of each version; minWorkers by default")
    parser.add_argument("--batch", type=int, metavar="N", help="largest batch; batchSize by default")
    parser.add_argument("--queue", type=int, metavar="N", help="most waiting requests; jobQueueSize by default, or 100")
    parser.add_argument(
        "--worker-memory",
        type=int,
        metavar="MIB",
        help="replace a worker that grows above this",
    )
    parser.add_argument("--state", metavar="DIR", type=Path, help="folder for the key file, the state and logs")
    parser.add_argument("--no-tokens", action="store_true", help="take requests without a token")
    parser.add_argument("--certificate-file", metavar="FILE", type=Path, help="serve HTTPS: certificate in PEM")
    parser.add_argument("--private-key-file", metavar="FILE", type=Path, help="serve HTTPS: its private key")
    parser.add_argument("--watch", action="store_true", help="serve archives anew when they change")
    parser.add_argument(
        "--max-request-size", type=int, default=16 * _MIB, metavar="BYTES", help="largest body (%(default)d)"
    )
    parser.add_argument(
        "--request-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time of a whole request (%(default)g)",
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time for its end (%(default)g)",
    )


def run(args: argparse.Namespace) -> None:
    """Serve until a signal."""
    from marsmith.host import server

    options = _options(args)

    class Reports(server.Reports):
        def tell(self, text: str) -> None:
            note(printable(text))

        def admit(self, path: Path) -> None:
            admit_here(path)

        def ready(self, state: HostState, catalogue: Catalogue) -> None:
            _print(options, state, catalogue)

    server.run(options, Reports())
    note("stopped")


def _options(args: argparse.Namespace) -> HostOptions:
    from marsmith.host.application import Limits
    from marsmith.host.catalogue import Source
    from marsmith.host.server import HostOptions
    from marsmith.host.state import default_folder
    from marsmith.host.version import Wishes

    _check(args)
    return HostOptions(
        source=Source(tuple(dict.fromkeys(args.archives)), args.store),
        folder=args.state or default_folder(args.port),
        address=args.address,
        port=args.port,
        grpc_port=args.grpc_port,
        wishes=Wishes(args.workers, args.batch, args.queue, args.worker_memory and args.worker_memory * _MIB),
        tokens=not args.no_tokens,
        certificate=args.certificate_file,
        private_key=args.private_key_file,
        watch=args.watch,
        limits=Limits(args.max_request_size, args.drain),
        request_s=args.request_timeout,
    )


def _check(args: argparse.Namespace) -> None:
    if not args.archives and args.store is None:
        raise UsageError("nothing to serve", tip="marsmith host ARCHIVE..., or marsmith host --store DIR")
    if (args.certificate_file is None) != (args.private_key_file is None):
        raise UsageError("--certificate-file and --private-key-file go together", tip="marsmith certificate makes both")
    for file in (args.certificate_file, args.private_key_file):
        if file is not None and not file.is_file():
            raise UsageError(f"no file {file}")
    for name in ("max_request_size", "request_timeout", "drain"):
        if not 0 < getattr(args, name) < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} must be a number above 0")
    for name, least, port in (("port", 0, args.port), ("grpc-port", 1, args.grpc_port)):
        if port is not None and not least <= port <= 65535:
            raise UsageError(f"--{name} {port} is not from {least} to 65535")


def _print(options: HostOptions, state: HostState, catalogue: Catalogue) -> None:
    for pool in catalogue.pools():
        version = pool.version
        workers = f"{version.workers} worker{'s' if version.workers > 1 else ''}"
        say(f"{version.id}: {workers}, batches of up to {version.batch_size}")
        if version.unproved:
            note(printable(f"{version.id}: not proved at load: the archive has no {' and no '.join(version.unproved)}"))
    say(f"serving at {state.url}" + (f", gRPC at {state.grpc}" if state.grpc else ""))
    if state.key_file:
        say(f"tokens in {state.key_file}")
    say(f"marsmith stop --state {options.folder} ends it")
