"""Edit a handler and see its reply again, without reloading the weights.

    marsmith watch efficientnet_lite0
    marsmith watch efficientnet_lite0 cat.jpg

Sends the input, or the spec's examples, to the handler of the model's spec, and again whenever the handler's file or
one of its local imports is saved. Weights, labels and model config come from the model's archive, which is built if it
does not exist. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.admission import admit_here
from marsmith.cli.output import note

if TYPE_CHECKING:
    from marsmith.config.model_spec import ModelSpec
    from marsmith.project import Project
    from marsmith.runtime.watch import WatchOutcome


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith watch``."""
    parser.add_argument("model", metavar="MODEL", help="a model with a spec in config/models")
    parser.add_argument(
        "input", metavar="INPUT", nargs="?", help="a file or package:NAME/PATH; else the spec's examples"
    )
    parser.add_argument("--content-type", metavar="T", help="content type of the input; guessed by default")
    parser.add_argument("--once", action="store_true", help="answer once and end, as a test of the handler")


def run(args: argparse.Namespace) -> int:
    """Answer, wait for an edit, and repeat."""
    from marsmith.config.model_spec import load_spec
    from marsmith.errors import UsageError
    from marsmith.inputs import read_input
    from marsmith.project import find_project
    from marsmith.runtime.runner import Request
    from marsmith.runtime.watch import watch

    project = find_project()
    spec = load_spec(project, args.model)
    named = [(args.input, Path.cwd())] if args.input else [(item.input, project.root) for item in spec.examples]
    if not named:
        raise UsageError(f"the spec of {args.model!r} has no examples", tip=f"marsmith watch {args.model} INPUT")
    inputs = [read_input(reference, root) for reference, root in named]
    requests = [Request(given.body, args.content_type or given.content_type) for given in inputs]
    archive = _archive(project, spec)
    admit_here(archive)
    with closing(watch(archive, project.root / spec.handler.entry_point, requests)) as outcomes:
        for outcome in outcomes:
            _show(outcome, [given.name for given in inputs])
            if args.once:
                return int(outcome.error is not None or any(reply.status >= 400 for reply in outcome.replies))
    return 0


def _archive(project: Project, spec: ModelSpec) -> Path:
    """Return the model's archive; it is built if it does not exist."""
    from marsmith.build.from_spec import build_from_spec
    from marsmith.config.server_config import model_store
    from marsmith.names import archive_file_name

    path = model_store(project) / archive_file_name(spec.name, spec.version)
    return path if path.exists() else build_from_spec(project, spec, on_step=note).path


def _show(outcome: WatchOutcome, names: list[str]) -> None:
    note(f"--- {', '.join(path.name for path in outcome.changed)}: {outcome.seconds:.2f} s")
    for name, reply in zip(names, outcome.replies, strict=False):
        note(f"{name}: {reply.status}")
        print(reply.body.decode("utf-8", "backslashreplace"), flush=True)
    if outcome.traceback:
        note(outcome.traceback.rstrip())
    if outcome.error:
        note(outcome.error.message)
