"""Answer many inputs with an archive, without a server: resumable, each input exactly once.

    marsmith batch efficientnet_lite0 photos --to answers
    marsmith batch model_store/efficientnet_lite0-1.0.mar 'photos/**/*.jpg' --to s3://bucket/answers
    marsmith batch efficientnet_lite0:2.0 list.csv --column path --to answers --max-errors 0.5%
    marsmith batch efficientnet_lite0 shards/train-00.tar --column jpg --to answers --quarantine bad
    marsmith batch efficientnet_lite0 'photos/{date}' --to 'answers/{date}' --as-of 2026-11-27
    marsmith batch diff answers-1.0 answers-2.0 --html page.html

SOURCE is a file, a folder, a quoted pattern, a table (.csv or .parquet) with a column of paths or bytes, a .tar, or a
URL (s3://, gs://). The answers are Parquet files, in the order of the sorted keys of the inputs, and _SUCCESS when all
are there. The same command goes on with what is missing; if nothing is, it does nothing. If inputs have come or changed
since, it refuses, and --resume goes on with the inputs of the plan.

An input without a right answer gets a row with the status and the error of the handler. Exit codes: 0 all inputs have
right answers, 3 some have none, 1 failed, or more than --max-errors allows; parts that are written stay valid.

`diff` compares the answers of two finished batches to the same keys: agreement, flips by class, largest differences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.admission import admit_here
from marsmith.cli.comparing import add_tolerance_flags
from marsmith.cli.output import add_json_flag, note, say
from marsmith.errors import UsageError

if TYPE_CHECKING:
    from marsmith.scoring.job import BatchOptions, BatchResult

DIFF = "diff"
# Done, with some inputs that got no right answer.
DONE_WITH_ERRORS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith batch``."""
    from marsmith.scoring.options import SHARD_ROWS

    text = "an archive, or one of the model store; or the order to compare two batches"
    parser.add_argument("archive", metavar="ARCHIVE|MODEL[:VERSION]|diff", help=text)
    parser.add_argument("sources", metavar="SOURCE", nargs="*", help="inputs, see above; after diff two batches")
    parser.add_argument("--to", metavar="DIR|URL", help="where the answers go: a folder, or s3://, gs://")
    parser.add_argument("--shard-rows", metavar="N", type=int, default=SHARD_ROWS, help="rows of a part (%(default)s)")
    parser.add_argument("--batch-size", metavar="N", type=int, help="instead of the model config's")
    parser.add_argument("--workers", metavar="N", type=int, help="processes; by default one a core")
    parser.add_argument("--on", metavar="ray[:ADDRESS]", help="answer on the nodes of a Ray cluster")
    parser.add_argument("--gpu", metavar="ID", type=int, help="run on this GPU; by default on the CPU")
    parser.add_argument("--column", metavar="NAME", help="column of a table, or suffix of the members of a .tar")
    parser.add_argument("--key", metavar="NAME", help="column of a table that names its rows")
    parser.add_argument("--content-type", metavar="T", help="content type of the inputs; guessed from each by default")
    parser.add_argument(
        "--max-errors", metavar="N|P%", default="100%", help="stop if more inputs get no right answer (%(default)s)"
    )
    parser.add_argument(
        "--delta", metavar="DIR|URL", help="when all is done, append the rows to this Delta table, once"
    )
    parser.add_argument("--iceberg", metavar="CATALOG.NS.TABLE", help="the same for an Iceberg table")
    parser.add_argument("--quarantine", metavar="DIR|URL", help="copy the inputs without a right answer there")
    parser.add_argument(
        "--as-of",
        metavar="DATE",
        help="take only inputs changed before the end of that day (UTC), or yesterday; fills {date} in SOURCE and --to",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the plan, without listing the sources again")
    parser.add_argument("--plan-only", action="store_true", help="write the plan, and answer nothing")
    parser.add_argument(
        "--slice", metavar="I/N", default="0/1", help="answer every Nth part from I on; /N in a Kubernetes Indexed Job"
    )
    add_tolerance_flags(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the batch, show its progress on stderr, and return the exit code."""
    from marsmith.cli.batch_diff import run_diff
    from marsmith.cli.batch_progress import shown
    from marsmith.scoring import run_batch

    if args.archive == DIFF:
        return run_diff(args)
    options = _options(args)
    archive = admit_here(_archive(args.archive))
    with shown(as_json=args.json) as on_event:
        result = run_batch(archive, options, on_event)
    if args.json:
        print(json.dumps({"event": "end", **_record(result)}), flush=True)
    elif options.plan_only:
        say(f"{result.plan.inputs:,} inputs in {result.plan.shards:,} parts; plan {result.plan.digest[:12]}")
    else:
        say(_summary(result))
    return DONE_WITH_ERRORS if result.bad else 0


def _options(args: argparse.Namespace) -> BatchOptions:
    from marsmith.scoring.options import AsOf, BatchOptions, ErrorLimit, Slice, ray_address

    if not args.to:
        raise UsageError("where do the answers go?", tip="--to DIR, or --to s3://BUCKET/PREFIX")
    if not args.sources and not args.resume:
        raise UsageError("no SOURCE", tip=f"marsmith batch {args.archive} FOLDER --to {args.to}")
    if args.html:
        raise UsageError("--html shows a comparison", tip="marsmith batch diff OLD NEW --html FILE")
    for name in ("shard_rows", "batch_size", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    return BatchOptions(
        sources=tuple(args.sources),
        to=args.to,
        shard_rows=args.shard_rows,
        batch_size=args.batch_size,
        workers=args.workers,
        content_type=args.content_type,
        column=args.column,
        key=args.key,
        as_of=AsOf.parse(args.as_of) if args.as_of is not None else None,
        max_errors=ErrorLimit.parse(args.max_errors),
        quarantine=args.quarantine,
        part=Slice.parse(args.slice),
        gpu_id=args.gpu,
        resume=args.resume,
        plan_only=args.plan_only,
        delta=args.delta,
        iceberg=args.iceberg,
        ray=None if args.on is None else ray_address(args.on),
    )


def _archive(reference: str) -> Path:
    """Return the path of an archive: as it is given, else that of a version in the project's model store."""
    from marsmith.config.model_spec import load_spec
    from marsmith.config.server_config import model_store
    from marsmith.names import archive_file_name, split_model_reference
    from marsmith.project import find_project

    if Path(reference).exists() or "/" in reference or reference.endswith((".mar", ".tar.gz")):
        return Path(reference)
    name, version = split_model_reference(reference)
    project = find_project()
    path = model_store(project) / archive_file_name(name, version or load_spec(project, name).version)
    if not path.exists():
        raise UsageError(f"no archive {path}", tip=f"marsmith archive {name}")
    return path


def _record(result: BatchResult) -> dict[str, object]:
    return {
        "plan": result.plan.digest,
        "model": result.plan.settings.model,
        "archive": result.plan.settings.archive,
        "inputs": result.inputs,
        "bad": result.bad,
        "written": result.written,
        "complete": result.is_complete,
        "seconds": round(result.seconds, 3),
    }


def _summary(result: BatchResult) -> str:
    found = f"{result.inputs:,} inputs, {result.bad:,} without a right answer"
    if result.written:
        found += f"; {result.written:,} answered now, in {result.seconds:,.1f} s"
    else:
        found += "; all parts were there"
    if not result.is_complete:
        note("parts of other slices are missing, so there is no _SUCCESS yet")
    return found
