"""Answer requests with an archive's handler, without a server.

    marsmith run model_store/efficientnet_lite0-1.0.mar cat.jpg
    marsmith run m.mar a.jpg b.jpg c.jpg --batch-size 2 --profile
    marsmith run m.mar request.json --content-type application/json --header X-Deadline-Ms:50

The handler runs in TorchServe's own Python worker, so replies, status codes and errors are those of a server. Replies
go to stdout, everything else to stderr. The exit code is 1 if a reply has a status of 400 or more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.cli.admission import admit_here
from marsmith.cli.output import add_json_flag, note, print_json
from marsmith.cli.replies import Body, check_output, keep, show
from marsmith.errors import ProjectError, UsageError

if TYPE_CHECKING:
    from marsmith.runtime.profile import Profile
    from marsmith.runtime.runner import Request, Runner, RunnerReply


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith run``."""
    parser.add_argument("archive", metavar="ARCHIVE", type=Path, help="a .mar, a .tar.gz, or a folder with its members")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="a file, - for stdin, or package:NAME/PATH")
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="keep the replies byte for byte: a file, a folder, or - for stdout"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, help="instead of the model config's")
    parser.add_argument("--content-type", metavar="T", help="content type of the inputs; guessed from each by default")
    parser.add_argument(
        "--header", metavar="K:V", action="append", default=[], help="a request header; may be repeated"
    )
    parser.add_argument("--gpu", metavar="ID", type=int, help="run on this GPU; by default on the CPU")
    parser.add_argument("--profile", action="store_true", help="print the time by stage on stderr")
    parser.add_argument("--log", action="store_true", help="print what the worker prints on stderr")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Load the archive, send the inputs in batches, print the replies."""
    from marsmith.runtime.profile import Profile
    from marsmith.runtime.runner import Runner

    if args.batch_size is not None and args.batch_size < 1:
        raise UsageError(f"--batch-size {args.batch_size}: a batch has at least 1 request")
    check_output(args.output, len(args.inputs), as_json=args.json)
    requests = _requests(args)
    profile = Profile()
    replies: list[RunnerReply] = []
    options = {"batch_size": args.batch_size, "gpu_id": args.gpu, "metrics_config": _metrics_config()}
    admit_here(args.archive)
    with Runner(args.archive, on_log=note if args.log else None, **options) as runner:
        for start in range(0, len(requests), runner.batch_size):
            replies += runner.run(requests[start : start + runner.batch_size])
            profile.add(runner.last_batch_ms, runner.last_metrics)
            _explain(runner)
    if args.profile:
        _print_profile(profile)
    is_whole = _give(args, list(zip(args.inputs, replies, strict=True)))
    return int(not is_whole or any(reply.status >= 400 for reply in replies))


def _give(args: argparse.Namespace, named: Sequence[tuple[str, RunnerReply]]) -> bool:
    """Print the replies, or write them to files; return whether all of them could be written."""
    if args.json:
        print_json([_as_json(name, reply) for name, reply in named])
        return True
    if args.output:
        keep(args.output, [(name, _body(reply)) for name, reply in named])
        return True
    return _print_replies(named)


def _body(reply: RunnerReply) -> Body:
    return Body(reply.body, reply.content_type)


def _requests(args: argparse.Namespace) -> list[Request]:
    from marsmith.inputs import read_input
    from marsmith.runtime.runner import Request

    headers = dict(_header(text) for text in args.header)
    inputs = [read_input(reference, Path.cwd()) for reference in args.inputs]
    return [Request(given.body, args.content_type or given.content_type, headers) for given in inputs]


def _header(text: str) -> tuple[str, str]:
    from marsmith.client.http import sendable

    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"--header {text!r} is not of the form NAME:VALUE")
    return name.strip(), sendable(name.strip(), value)


def _explain(runner: Runner) -> None:
    """Print on stderr what went wrong in the last batch, if anything."""
    if runner.last_traceback:
        note(runner.last_traceback.rstrip())
    if runner.last_failure:
        note(f"the worker died; a server would start a new one: {runner.last_failure}")


def _print_replies(named: Sequence[tuple[str, RunnerReply]]) -> bool:
    """Print the replies one after the other; return whether all could be shown."""
    alone, all_shown = len(named) == 1, True
    for name, reply in named:
        kind = f" {reply.content_type}" if reply.content_type else ""
        note(f"{name}: {reply.status}{kind}, {len(reply.body)} bytes")
        all_shown = show(_body(reply), alone=alone, laid_out=False) and all_shown
    return all_shown or alone


def _print_profile(profile: Profile) -> None:
    note(f"{'stage':<36} {'count':>6} {'mean ms':>10} {'total ms':>10}")
    for row in profile.rows():
        note(f"{row.stage:<36} {row.count:>6} {row.mean_ms:>10.3f} {row.total_ms:>10.3f}")


def _metrics_config() -> Path | None:
    """Return the project's metrics file, because a worker only measures declared metrics; None outside of a project."""
    from marsmith.project import find_project

    try:
        path = find_project().root / "config" / "metrics.yaml"
    except ProjectError:
        return None
    return path if path.is_file() else None


def _as_json(name: str, reply: RunnerReply) -> dict[str, Any]:
    """Return a reply as JSON: its body as a value, as text, or in base64."""
    shown = {"input": name, "status": reply.status, "content_type": reply.content_type, "headers": dict(reply.headers)}
    return {**shown, **_body(reply).record("body")}
