"""Build the model archive of a spec, in the model store.

    marsmith archive efficientnet_lite0
    marsmith archive efficientnet_lite0 --version 2.0

Exports first if that is needed, sends the spec's examples to the handler, and writes NAME-VERSION.mar into the model
store, with the replies inside. Does nothing if nothing has changed. The same inputs give the same bytes. A spec with
`auto` and without a lock is measured first, and gets a lock.
"""

from __future__ import annotations

import argparse

from marsmith.cli.export import add_frozen_flag, add_weights_flag, is_frozen
from marsmith.cli.output import add_json_flag, byte_progress, note, print_fields, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith archive``."""
    parser.add_argument("model", metavar="MODEL", help="a model with a spec in config/models")
    parser.add_argument("--version", metavar="V", help="instead of the spec's version")
    add_weights_flag(parser)
    add_frozen_flag(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Build, and print the path of the archive and its digest."""
    from marsmith.archive import Archive
    from marsmith.archive.admit import policy_problems
    from marsmith.build.from_spec import build_from_spec
    from marsmith.config import admission_policy
    from marsmith.config.model_spec import load_spec
    from marsmith.names import check_model_version
    from marsmith.project import find_project

    project = find_project()
    policy = admission_policy(project)
    spec = load_spec(project, args.model)
    if args.version is not None:
        spec = spec.model_copy(update={"version": check_model_version(args.version)})
    with byte_progress(f"{spec.name} {spec.version}") as on_progress:
        built = build_from_spec(
            project,
            spec,
            weights=args.weights,
            allow_pickle=args.unsafe_weights,
            strip_prefix=args.strip_prefix,
            frozen=is_frozen(args),
            on_step=note,
            on_progress=on_progress,
        )
    result = {
        "archive": str(built.path),
        "bytes": built.path.stat().st_size,
        "sha256": built.sha256,
        "state": "unchanged since the last build" if built.reused else "new",
    }
    print_json(result) if args.json else print_fields(result)
    for problem in policy_problems(Archive.open(built.path), policy):
        note(f"not served before that is fixed: {problem}")
