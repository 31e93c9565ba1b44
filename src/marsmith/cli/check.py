"""Find the faults of a handler before it runs in a server.

The source of a handler is checked, then it is imported in a fresh process. An archive's handler also answers requests,
alone and in a batch: the archive's own examples, or those of --input. Exits 1 if there is an error.

    marsmith check handlers/image_classifier_handler.py
    marsmith check model_store/efficientnet_lite0-1.0.mar
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from marsmith.cli.admission import admit_here
from marsmith.cli.output import add_json_flag, print_json, printable
from marsmith.config.lint.findings import Finding
from marsmith.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("handler", metavar="HANDLER.py|ARCHIVE", help="HANDLER.py:FUNCTION names a function")
    parser.add_argument("--input", action="append", default=[], metavar="FILE", help="send this file to an archive")
    parser.add_argument("--batch-size", type=int, metavar="N", help="batch to try (default: the model config's)")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Check, print the findings, and return 1 if there is an error."""
    found = _check(args)
    failed = any(item.severity == "error" for item in found)
    if args.json:
        findings = [{**asdict(item), "file": str(item.file)} for item in found]
        print_json({"ok": not failed, "findings": findings})
    else:
        _print(found)
    return int(failed)


def _check(args: argparse.Namespace) -> list[Finding]:
    path, colon, function = args.handler.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, function = args.handler, ""
    if path.endswith(".py"):
        from marsmith.runtime.check import check_handler

        if args.input or args.batch_size:
            raise UsageError("--input and --batch-size need an archive", tip="marsmith check ARCHIVE --input FILE")
        return check_handler(Path(path), function=function or None)
    from marsmith.inputs import read_input
    from marsmith.runtime.archive_check import TrialRequest, check_archive

    if args.batch_size is not None and args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {args.batch_size}")
    inputs = [read_input(name, Path.cwd()) for name in args.input]
    requests = [TrialRequest(given.name, given.body, given.content_type) for given in inputs]
    admit_here(Path(path))
    return check_archive(Path(path), requests=requests, batch_size=args.batch_size)


def _print(found: list[Finding]) -> None:
    for item in found:
        print(printable(f"{item.file}:{item.line}: {item.severity}: {item.message} [{item.rule}]"))
        for line in item.detail.rstrip().splitlines():
            print(printable(f"    | {line}"))
        print(printable(f"    fix: {item.fix}"))
    counts = Counter(item.severity for item in found)
    words = [f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}" for kind in ("error", "warning", "note")]
    print(", ".join(word for word in words if not word.startswith("0 ")) or "nothing found")
