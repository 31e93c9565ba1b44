"""Put load on a model and measure latency, throughput and errors.

    marsmith bench efficientnet_lite0                                  # closed loops of 1, 8 and 32 clients
    marsmith bench efficientnet_lite0 --rps 50 --seconds 60 --p99-ms 50
    marsmith bench efficientnet_lite0:2.0 --clients 8 --input photos/ --grpc --json

With --rps requests arrive at random (Poisson), whether or not earlier ones are answered. Latency counts from when a
request was due, so that a server that stalls cannot hide it. The driver reports if it was the limit, and not the
server. With --p99-ms or --rps a line for each limit says whether it was held. The exit code is 1 if one was not held,
or if a request failed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.cli.output import add_json_flag, check_deadline, note, print_json, print_table
from marsmith.errors import UsageError
from marsmith.names import split_model_reference

if TYPE_CHECKING:
    from marsmith.inputs import Input
    from marsmith.loadtest.bench import Load, Target
    from marsmith.loadtest.breakdown import Breakdown
    from marsmith.loadtest.measurement import Measurement
    from marsmith.loadtest.verdict import Verdict
    from marsmith.project import Project
    from marsmith.run_state import RunState

DEFAULT_CLIENTS = (1, 8, 32)
BAR = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith bench``."""
    parser.add_argument("model", metavar="MODEL[:VERSION]", help="without a version, the default version answers")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--clients", type=_counts, metavar="N[,N...]", help="closed loops with these numbers of clients (1,8,32)"
    )
    how.add_argument("--rps", type=float, metavar="RATE", help="an open loop with this number of requests per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each loop (%(default)g)")
    parser.add_argument(
        "--warm-up", type=float, default=2.0, metavar="SECONDS", help="warm-up before the measurement (%(default)g)"
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="PATH", help="a file, a folder of files, or package:NAME/PATH"
    )
    parser.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson", help="of the open loop")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals (%(default)d)")
    parser.add_argument("--grpc", action="store_true", help="over gRPC instead of REST")
    parser.add_argument(
        "--deadline", type=float, default=30.0, metavar="SECONDS", help="time limit of each reply (%(default)g)"
    )
    parser.add_argument(
        "--p99-ms", type=float, metavar="MS", help="fail unless 99%% of the answers take at most this long"
    )
    parser.add_argument("--same-answer", action="store_true", help="count an answer as wrong if its best label changes")
    parser.add_argument("--breakdown", action="store_true", help="split a request's time into its stages")
    parser.add_argument("--url", metavar="URL", help="another server's resource, as http://host:8080/predictions/m")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--token", metavar="TOKEN", help="with --url: its inference token")
    secret.add_argument("--key-file", metavar="FILE", type=Path, help="with --url: that server's key_file.json")
    add_json_flag(parser)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,8,32") from None
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("a closed loop has at least one client")
    return counts


def run(args: argparse.Namespace) -> int:
    """Run the loops and print the measurements."""
    from marsmith.loadtest.bench import SameAnswer, run_load

    check_deadline(args.deadline)
    target, state = _target(args)
    results: list[tuple[Load, Measurement, Breakdown | None]] = []
    for load in _loads(args):
        with _progress(f"{load}, {load.seconds:g} s"), _stages(args, state) as stages:
            measured = run_load(target, load, check=SameAnswer() if args.same_answer else None)
        results.append((load, measured, stages(measured) if stages else None))
    if args.json:
        print_json([_record(args, *result) for result in results])
    else:
        _print(args, results)
    return 0 if all(_verdict(args, load, measured).held for load, measured, _ in results) else 1


def _loads(args: argparse.Namespace) -> list[Load]:
    from marsmith.loadtest.bench import Load

    timing = {"seconds": args.seconds, "warm_up_s": args.warm_up, "arrivals": args.arrivals, "seed": args.seed}
    if args.rps is not None:
        return [Load(rps=args.rps, **timing)]
    return [Load(clients=clients, **timing) for clients in args.clients or DEFAULT_CLIENTS]


def _target(args: argparse.Namespace) -> tuple[Target, RunState | None]:
    from marsmith.loadtest.bench import grpc_target, http_target, read_inputs

    model, version = split_model_reference(args.model)
    if args.url:
        return _foreign(args, read_inputs(args.input, Path.cwd())), None
    from marsmith import run_state
    from marsmith.project import find_project

    project = find_project()
    state = run_state.read(project)
    inputs = read_inputs(args.input, Path.cwd()) or _examples(project, model)
    make = grpc_target if args.grpc else http_target
    return make(state, model, version, inputs, deadline_s=args.deadline), state


def _foreign(args: argparse.Namespace, inputs: Sequence[Input]) -> Target:
    from marsmith.client.key_file import read_key_file
    from marsmith.loadtest.http import HttpTarget

    if args.grpc or args.breakdown:
        raise UsageError("--url names a REST resource: it goes with neither --grpc nor --breakdown")
    if not inputs:
        raise UsageError("--url needs inputs", tip="add --input FILE or --input FOLDER")
    token = args.token or (read_key_file(args.key_file).inference.value if args.key_file else None)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    bodies, kinds = [item.body for item in inputs], [item.content_type for item in inputs]
    return HttpTarget(args.url, bodies, kinds, headers, args.deadline)


def _examples(project: Project, model: str) -> list[Input]:
    from marsmith.config.model_spec import load_spec
    from marsmith.inputs import read_input

    inputs = [read_input(example.input, project.root) for example in load_spec(project, model).examples]
    if not inputs:
        raise UsageError(f"the spec of {model} has no examples", tip="add --input FILE or --input FOLDER")
    return inputs


@contextmanager
def _stages(args: argparse.Namespace, state: RunState | None) -> Iterator[Any]:
    if not args.breakdown or state is None:
        yield None
        return
    from marsmith.loadtest.breakdown import watch_stages

    model, version = split_model_reference(args.model)
    with watch_stages(state, model, version) as stages:
        yield stages


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """Print the current step on stderr."""
    import sys

    if not sys.stderr.isatty():
        note(text)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _verdict(args: argparse.Namespace, load: Load, measured: Measurement) -> Verdict:
    from marsmith.loadtest.verdict import judge

    return judge(measured, p99_ms=args.p99_ms, rps=load.rps, seconds=load.seconds)


def _record(args: argparse.Namespace, load: Load, measured: Measurement, stages: Breakdown | None) -> dict[str, Any]:
    described = {"clients": load.clients, "rps": load.rps, "arrivals": load.arrivals if load.rps else None}
    record = {"model": args.model, "load": described, **measured.record()}
    record |= {"verdict": _verdict(args, load, measured).record()}
    return record | ({"breakdown": stages.record()} if stages else {})


def _print(args: argparse.Namespace, results: Sequence[tuple[Load, Measurement, Breakdown | None]]) -> None:
    columns = ("load", "answers/s", "mean ms", "p50", "p90", "p99", "p99.9", "max", "failed")
    rows = []
    for load, measured, _ in results:
        shown = (measured.mean_ms, *(measured.quantiles_ms[q] for q in (0.5, 0.9, 0.99, 0.999)), measured.max_ms)
        numbers = [f"{value:.1f}" for value in (measured.requests_per_second, *shown)]
        rows.append((load, *numbers, measured.failed))
    print_table(columns, rows)
    for load, measured, stages in results:
        _print_details(load, measured, stages, alone=len(results) == 1)
    print()
    _print_verdicts([(load, _verdict(args, load, measured)) for load, measured, _ in results])


def _print_verdicts(verdicts: Sequence[tuple[Load, Verdict]]) -> None:
    """Print the verdicts, only once if they are the same for all loads."""
    lines = [(str(load), verdict.lines()) for load, verdict in verdicts]
    if all(texts == lines[0][1] for _, texts in lines):
        lines = [("", lines[0][1])]
    for load, texts in lines:
        print("\n".join(f"{load}: {line}" if load else line for line in texts))


def _print_details(load: Load, measured: Measurement, stages: Breakdown | None, *, alone: bool) -> None:
    for verdict, number in measured.errors.items():
        print(f"{load}: {number} of {measured.requests} requests failed: {verdict}")
    if not measured.driver_kept_up:
        print(
            f"{load}: the driver was the limit, not the server: it used {measured.driver_cpu:.0%} of a core "
            f"and sent up to {measured.lag_p99_ms:.1f} ms late (99th percentile)"
        )
    if alone and measured.histogram:
        print()
        print("\n".join(histogram_lines(measured.histogram)))
    if stages:
        print(f"\n{load}")
        print("\n".join(stages.lines()))


def histogram_lines(buckets: Sequence[tuple[float, int]]) -> list[str]:
    """Return buckets (upper bound in ms, count) as lines of text, with bars."""
    most = max(number for _, number in buckets)
    return [
        f"up to {bound:>8.1f} ms {number:>7}  {'#' * max(round(BAR * number / most), int(number > 0))}".rstrip()
        for bound, number in buckets
    ]
