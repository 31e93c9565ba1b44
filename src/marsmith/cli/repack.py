"""Convert an archive of the stock tool into one of marsmith's.

    marsmith repack old/classifier.mar --output model_store/efficientnet_lite0-1.0.mar
    marsmith repack model_store/efficientnet_lite0-1.0.mar --renew-handlers --version 1.0.1

The contents of all files are kept. They are stored, with their digests, in a deterministic archive. Without --output it
is written beside the old one, as NAME-VERSION.mar. Prints its digest and path, like sha256sum.

With --renew-handlers the project's handler of the same name, and all that it imports, take the place of the archive's.
Weights, settings and examples stay; `marsmith verify` checks that the examples are answered as before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from marsmith.cli.output import byte_progress, note


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith repack``."""
    parser.add_argument("archive", type=Path, metavar="OLD", help="a .mar, a .tar.gz or a folder")
    parser.add_argument("--output", type=Path, metavar="NEW.mar", help="default: NAME-VERSION.mar beside OLD")
    parser.add_argument("--version", metavar="VERSION", help="new model version, instead of the old one's")
    parser.add_argument("--environment", type=Path, metavar="FILE", help="becomes MAR-INF/environment.txt")
    parser.add_argument(
        "--renew-handlers", action="store_true", help="take the handler from the project's handlers/, not from OLD"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing archive, OLD itself included")


def run(args: argparse.Namespace) -> None:
    """Write the archive; print its digest and path."""
    from marsmith.build.repack import repack
    from marsmith.project import find_project

    with byte_progress(args.archive.name) as on_progress:
        done = repack(
            args.archive,
            output=args.output,
            version=args.version,
            force=args.force,
            environment=args.environment,
            handlers=find_project().root / "handlers" if args.renew_handlers else None,
            on_progress=on_progress,
        )
    if done.needs_signature:
        note(f"{args.archive.name} was signed; {done.path.name} has other bytes, and no signature: sign it again")
    print(f"{done.sha256}  {done.path}")
