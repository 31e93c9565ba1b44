"""Find the workers, threads and batching that hold a latency limit.

    marsmith tune efficientnet_lite0 --p99-ms 50 --rps 50 --write
    marsmith tune a.mar b.mar --p99-ms 50 --minutes 10 --plot trials.svg    # compare two forms of a model

First, the duration of batches is measured without a server. Then a simulation predicts every set-up. The best of them
are tried on a separate TorchServe, and the winner is verified with random arrivals. The result is a `serving:` block,
which --write puts into the spec. A line says whether the limit is held. If it is not, further lines suggest changes,
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.cli.output import add_json_flag, note, print_json, print_table
from marsmith.errors import UsageError
from marsmith.project import Project, find_project

if TYPE_CHECKING:
    from marsmith.inputs import Input
    from marsmith.loadtest.tune.search import Trial
    from marsmith.loadtest.tune.tune import TuneOptions, Tuning


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith tune``."""
    parser.add_argument("targets", metavar="MODEL|ARCHIVE", nargs="+", help="a model with a built archive, or archives")
    parser.add_argument(
        "--p99-ms", type=float, metavar="MS", help="limit of the 99th percentile; the spec's by default"
    )
    parser.add_argument("--rps", type=float, metavar="RATE", help="requests per second to hold; else the spec's")
    parser.add_argument("--minutes", type=float, default=5.0, help="approximate time limit (%(default)g)")
    parser.add_argument("--input", action="append", default=[], metavar="PATH", help="requests to measure with")
    parser.add_argument("--cores", type=int, help="number of cores to use; all by default")
    parser.add_argument("--trials", type=int, metavar="N", help="try at most N set-ups on the server")
    parser.add_argument("--write", action="store_true", help="write the result into the model's spec")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the trials and their Pareto front (.svg, .png)")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Tune, print the result, and write it if requested."""
    from marsmith.loadtest.tune.tune import tune

    project = find_project()
    options = _options(args, project)
    with _steps() as on_step:
        tuning = tune(project, options, on_step)
    if args.json:
        print_json(_record(tuning))
    else:
        _print(tuning)
    if args.plot:
        _plot(tuning, args.plot)
    if args.write:
        _write(project, _model(args.targets), tuning)
    return 0 if tuning.is_met else 1


def _options(args: argparse.Namespace, project: Project) -> TuneOptions:
    from marsmith.config.model_spec import load_spec
    from marsmith.loadtest.bench import read_inputs
    from marsmith.loadtest.tune.tune import TuneOptions
    from marsmith.machine import usable_cores

    model = _model(args.targets)
    spec = load_spec(project, model) if model else None
    if args.write and spec is None:
        raise UsageError("--write needs a model with a spec, not archives", tip="marsmith tune MODEL --write")
    level = spec.service_level if spec else None
    p99_ms = args.p99_ms or (level.p99_ms if level else None)
    if p99_ms is None:
        raise UsageError("no latency limit: neither --p99-ms nor service_level in the spec", tip="add --p99-ms 50")
    paths = [_built(project, spec.name, spec.version)] if spec else [Path(target) for target in args.targets]
    inputs = read_inputs(args.input, Path.cwd()) or _examples(paths[0])
    return TuneOptions(
        archives=tuple(paths),
        inputs=tuple(inputs),
        p99_ms=p99_ms,
        rps=args.rps or (level.requests_per_second if level and not args.p99_ms else None),
        minutes=args.minutes,
        cores=args.cores or usable_cores(),
        most_trials=args.trials,
    )


def _model(targets: list[str]) -> str | None:
    """Return the model of the arguments; None if they are archives."""
    if len(targets) == 1 and not Path(targets[0]).exists() and not targets[0].endswith((".mar", ".tar.gz")):
        return targets[0]
    return None


def _built(project: Project, name: str, version: str) -> Path:
    from marsmith.config.server_config import model_store
    from marsmith.names import archive_file_name

    path = model_store(project) / archive_file_name(name, version)
    if not path.is_file():
        raise UsageError(f"{path} has not been built", tip=f"marsmith archive {name}")
    return path


def _examples(archive: Path) -> list[Input]:
    from marsmith.archive.store import first_example, open_stored
    from marsmith.inputs import Input

    stored = first_example(open_stored(archive))
    if stored is None:
        raise UsageError(f"{archive} holds no example request", tip="add --input FILE or --input FOLDER")
    return [Input(stored.expected.input, None, stored.body, stored.expected.content_type)]


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Show the current step on stderr."""
    if not sys.stderr.isatty():
        yield note
        return
    from rich.console import Console

    with Console(stderr=True).status("tuning") as line:
        yield lambda text: line.update(text)


def _print(tuning: Tuning) -> None:
    limit = tuning.options.p99_ms
    rows = [_row(trial, limit) for trial in sorted(tuning.trials, key=lambda trial: -trial.score(limit))]
    print_table(("workers", "threads", "batch", "delay ms", "seconds", "answers/s", "p99 ms", "score", ""), rows)
    print()
    print(f"chosen: {tuning.chosen.setup}")
    if tuning.held:
        print(f"holds p99 <= {limit:g} ms up to {tuning.held_rps:.0f} requests/s (p99 {tuning.held.p99_ms:.1f} ms)")
    rate = f"at {tuning.options.rps:g} requests/s: " if tuning.at_rps else ""
    print("\n".join(f"{rate}{line}" for line in tuning.verdict.lines()))
    if not tuning.is_met:
        print("what would hold it:")
        print("\n".join(f"  - {line}" for line in tuning.advice))
    print("\nfor the spec:\n")
    print("\n".join(_block_lines(tuning)))


def _row(trial: Trial, limit: float) -> tuple[Any, ...]:
    setup = trial.setup
    numbers = (f"{trial.requests_per_second:.1f}", f"{trial.p99_ms:.1f}", f"{trial.score(limit):.1f}")
    at = setup.placement
    failure = trial.reason or (f"{trial.failed} failed" if trial.failed else "")
    return (at.workers, at.threads, setup.batch_size, setup.max_batch_delay_ms, f"{trial.seconds:g}", *numbers, failure)


def _block_lines(tuning: Tuning) -> list[str]:
    serving = [f"  {key}: {value}" for key, value in tuning.serving().items()]
    settings = [f"    {key}: {value}" for key, value in tuning.handler_settings().items()]
    return ["handler:", "  settings:", *settings, "serving:", *serving]


def _record(tuning: Tuning) -> dict[str, Any]:
    limit = tuning.options.p99_ms
    return {
        "archives": [str(path) for path in tuning.options.archives],
        "p99Ms": limit,
        "rps": tuning.options.rps,
        "met": tuning.is_met,
        "verdict": tuning.verdict.record(),
        "heldRps": round(tuning.held_rps, 2),
        "held": tuning.held.record() if tuning.held else None,
        "atRps": tuning.at_rps.record() if tuning.at_rps else None,
        "archive": tuning.chosen.setup.placement.archive,
        "serving": tuning.serving(),
        "handlerSettings": tuning.handler_settings(),
        "advice": list(tuning.advice),
        "trials": [
            {
                "setup": str(trial.setup),
                "seconds": trial.seconds,
                "requestsPerSecond": round(trial.requests_per_second, 2),
                "p99Ms": round(trial.p99_ms, 2) if trial.p99_ms > 0 else None,
                "failed": trial.failed,
                "reason": trial.reason,
                "score": round(trial.score(limit), 2),
            }
            for trial in tuning.trials
        ],
        "predicted": [{"setup": str(each.setup), "rps": round(each.rate, 1)} for each in tuning.predictions[:20]],
        "seconds": round(tuning.seconds, 1),
    }


def _plot(tuning: Tuning, path: Path) -> None:
    from marsmith.loadtest.tune.plot import plot_trials

    plot_trials(tuning.trials, tuning.options.p99_ms, path)
    note(f"drew {path}")


def _write(project: Project, model: str | None, tuning: Tuning) -> None:
    """Write the result into the spec; comments and other keys are kept."""
    from marsmith.config.edit import apply
    from marsmith.config.model_spec import load_spec
    from marsmith.loadtest.tune.tune import spec_edits

    if model is None:
        return
    apply(project.spec(model), spec_edits(load_spec(project, model), tuning))
    note(f"wrote {project.spec(model)}; next: marsmith archive {model}")
