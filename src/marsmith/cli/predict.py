"""Send inputs to a model and print its answers.

    marsmith predict efficientnet_lite0 package:skimage/data/chelsea.png
    marsmith predict efficientnet_lite0 --commands       # the spec's first example, and how to send it with curl
    marsmith predict efficientnet_lite0:2.0 *.jpg --grpc
    cat photo.jpg | marsmith predict efficientnet_lite0 -
    marsmith predict segmenter in.jpg -o out.png         # or > out.png; -o FOLDER for several inputs

Several inputs are sent concurrently, so that TorchServe can batch them. A refused input does not delay the others; the
exit code is 1 then.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.cli.output import add_json_flag, check_deadline, note, print_json
from marsmith.cli.replies import Body, check_output, keep, show
from marsmith.errors import (
    AuthorizationError,
    ClientError,
    ConnectionFailedError,
    NotFoundError,
    NoWorkerError,
    RequestRejectedError,
    UsageError,
)
from marsmith.inputs import Input, read_input
from marsmith.names import split_model_reference

if TYPE_CHECKING:
    from marsmith.client.blocking_client import Client, HttpReply

AT_ONCE = 32


@dataclass(frozen=True)
class PredictOutcome:
    """Result of one input: a reply or an error."""

    input: Input
    reply: HttpReply | None
    error: ClientError | None

    @property
    def body(self) -> Body | None:
        """Body of the reply."""
        return Body(self.reply.body, self.reply.content_type) if self.reply else None


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith predict``."""
    parser.add_argument("model", metavar="MODEL[:VERSION]", help="without a version, the default version answers")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="*", help="a file, - for stdin, or package:NAME/PATH; the spec's first example"
    )
    parser.add_argument("--commands", action="store_true", help="print the commands that send the first input, too")
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="keep the replies byte for byte: a file, a folder, or - for stdout"
    )
    parser.add_argument("--grpc", action="store_true", help="over gRPC instead of REST")
    parser.add_argument("--deadline", metavar="SECONDS", type=float, default=30.0, help="time limit of an answer (30)")
    parser.add_argument(
        "--url",
        metavar="URL",
        help="another server's inference API, such as http://host:8080, or host:7070 with --grpc",
    )
    parser.add_argument("--key-file", metavar="FILE", type=Path, help="with --url: that server's key_file.json")
    parser.add_argument("--ca-file", metavar="FILE", type=Path, help="with --url: certificates to trust there, in PEM")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Send the inputs, print one block for each, in order, and return the exit code."""
    model, version = split_model_reference(args.model)
    _check(args)
    with _client(args) as client:
        inputs = [read_input(reference, Path.cwd()) for reference in args.inputs] or [_first_example(model)]
        check_output(args.output, len(inputs), as_json=args.json)

        def ask(item: Input) -> HttpReply:
            if args.grpc:
                return client.predict_grpc(model, item.body, version=version)
            return client.predict(model, item.body, version=version, content_type=item.content_type)

        outcomes = _ask_all(inputs, ask)
    is_whole = _give(args, outcomes)
    if args.commands:
        _print_commands(model, version, inputs[0])
    return 0 if is_whole and not any(outcome.error for outcome in outcomes) else 1


def _give(args: argparse.Namespace, outcomes: Sequence[PredictOutcome]) -> bool:
    """Print the outcomes, or write them to files; return whether all of them could be written."""
    if args.json:
        print_json([_as_json(outcome) for outcome in outcomes])
    elif args.output:
        keep(args.output, [(outcome.input.name, outcome.body) for outcome in outcomes])
        for outcome in outcomes:
            if outcome.error:
                note(f"{outcome.input.name}: {outcome.error}")
    else:
        return _print_blocks(outcomes)
    return True


def _first_example(model: str) -> Input:
    from marsmith.config.model_spec import load_spec
    from marsmith.project import find_project

    project = find_project()
    spec = load_spec(project, model)
    if not spec.examples:
        raise UsageError(f"no INPUT, and the spec of {model} has no examples", tip=f"marsmith predict {model} FILE")
    return read_input(spec.examples[0].input, project.root)


def _print_commands(model: str, version: str | None, given: Input) -> None:
    from marsmith import run_state
    from marsmith.client.curl import Caller, curl_command, grpc_command
    from marsmith.project import find_project

    project = find_project()
    caller = Caller.here(project)
    commands = [
        curl_command(caller, run_state.read(project), model, version, given),
        grpc_command(caller, model, version, given),
    ]
    print("\nThe same from any shell, over REST and over gRPC:")
    for command in filter(None, commands):
        print(f"\n{command}")


def _check(args: argparse.Namespace) -> None:
    if args.ca_file and not args.url:
        raise UsageError("--ca-file needs --url: the project's own server is trusted by the certificate in its config")
    if args.key_file and not args.url:
        raise UsageError("--key-file needs --url: without it, the project's own server is called with its own tokens")
    check_deadline(args.deadline)
    if args.commands and (args.url or args.json):
        raise UsageError("--commands is about the project's own server, in text: leave out --url and --json")
    if args.inputs.count("-") > 1:
        raise UsageError("- can stand for stdin only once")


def _client(args: argparse.Namespace) -> Client:
    from marsmith.client.blocking_client import Client
    from marsmith.project import find_project

    if args.url is None:
        return Client.for_project(find_project(), deadline_s=args.deadline)
    # The project's tokens are only sent to its own server.
    scheme, _, host = args.url.rpartition("://")
    secure = scheme in {"https", "grpcs"} or (not scheme and args.ca_file is not None)
    url = f"{'https' if secure else scheme or 'http'}://{host}"
    grpc = host.rstrip("/")
    return Client(url, None, key_file=args.key_file, grpc=grpc, deadline_s=args.deadline, ca_file=args.ca_file)


def _ask_all(inputs: Sequence[Input], ask: Callable[[Input], HttpReply]) -> list[PredictOutcome]:
    def outcome(item: Input) -> PredictOutcome:
        try:
            return PredictOutcome(item, ask(item), None)
        except ClientError as error:
            return PredictOutcome(item, None, error)

    with ThreadPoolExecutor(min(AT_ONCE, len(inputs))) as pool:
        outcomes = list(pool.map(outcome, inputs))
    error = _common_error(outcomes)
    if error:
        raise error
    return outcomes


def _common_error(outcomes: Sequence[PredictOutcome]) -> ClientError | None:
    """Return the error that all inputs have in common; it is printed once, with its tip."""
    first = outcomes[0].error
    if len(outcomes) == 1:
        return first
    about_all = isinstance(first, (AuthorizationError, ConnectionFailedError, NotFoundError, NoWorkerError))
    return first if about_all and all(type(outcome.error) is type(first) for outcome in outcomes) else None


def _as_json(outcome: PredictOutcome) -> dict[str, Any]:
    if outcome.reply is None or outcome.body is None:
        status = outcome.error.status if isinstance(outcome.error, RequestRejectedError) else None
        return {"input": outcome.input.name, "status": status, "error": str(outcome.error)}
    described = {"input": outcome.input.name, "status": outcome.reply.status}
    return {**described, "content_type": outcome.reply.content_type, **outcome.body.record()}


def _print_blocks(outcomes: Sequence[PredictOutcome]) -> bool:
    """Print one block for each outcome, in order; return whether every block is complete."""
    if len(outcomes) == 1:
        _show_one(outcomes[0], alone=True)
        return True
    all_shown = True
    for number, outcome in enumerate(outcomes):
        print(f"{'' if number == 0 else chr(10)}{outcome.input.name}")
        all_shown = _show_one(outcome, alone=False) and all_shown
    return all_shown


def _show_one(outcome: PredictOutcome, *, alone: bool) -> bool:
    if outcome.body is None:
        note(f"{outcome.input.name}: {outcome.error}")
        if not alone:
            print("no answer")
        return True
    if show(outcome.body, alone=alone):
        return True
    if not alone:
        print(f"{outcome.body}, not shown")
    return False
