"""Show the content of an archive of marsmith or another tool: .mar, .tar.gz or a folder.

    marsmith inspect model_store/efficientnet_lite0-1.0.mar
    marsmith inspect old.mar --json

The content is not verified. `marsmith verify` does that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from marsmith.cli.output import add_json_flag, print_json, printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith inspect``."""
    parser.add_argument("archive", metavar="ARCHIVE", type=Path, help="a .mar, a .tar.gz or a folder")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the content of the archive."""
    from marsmith.archive import Archive
    from marsmith.archive.describe import describe

    description = describe(Archive.open(args.archive))
    description["export_here"] = _here(description["export"])
    if args.json:
        print_json(description)
        return
    for line in render(description):
        print(printable(line).rstrip())


def render(description: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines that ``marsmith inspect`` prints."""
    yield f"{description['name']} {description['version']}"
    yield from _fields(_overview(description))
    yield from _section("members", _members(description["members"]))
    yield from _section("export", _block({**(description["export"] or {}), **(description.get("export_here") or {})}))
    for title in ("model_config", "environment"):
        yield from _section(title.replace("_", " "), _block(description[title]))
    yield from _section("examples", _examples(description["examples"]))
    if description["reference"]:
        yield from _section("reference", _block(description["reference"]))
    yield from _section("signature", _signature(description["signature"], description["digest"]))


def _here(export: Mapping[str, Any] | None) -> dict[str, str]:
    """Describe the machine of an export's figures, and how its form runs on this machine if that differs."""
    from marsmith.config.form import Form
    from marsmith.errors import UsageError
    from marsmith.export.machine import Machine, limits_here, machine_text

    speed = (export or {}).get("speed")
    record = speed.get("machine") if isinstance(speed, Mapping) else None
    found = {"speed measured on": machine_text(record)} if isinstance(record, Mapping) else {}
    try:
        form = Form.parse(str((export or {})["form"]))
    except (KeyError, UsageError, ValueError):
        return found
    machine = Machine.here()
    limit = limits_here(form, str((export or {}).get("device", "cpu")), machine)
    if isinstance(record, Mapping) and not machine.is_that_of(record):
        found["this machine"] = machine_text(machine.record())
    return found | ({"form here": limit} if limit else {})


def _overview(description: Mapping[str, Any]) -> dict[str, str]:
    ours = description["format_version"]
    archiver = description["archiver_version"]
    maker = f"marsmith, format {ours}" if ours is not None else "another tool"
    fields = {
        "archive": f"{description['path']} ({description['kind']}, {description['size']:,} bytes)",
        "digest": description["digest"],
        "made by": f"{maker} ({archiver})" if archiver else maker,
        "created on": description["created_on"],
        "runtime": description["runtime"],
        "handler": description["handler"],
        "serialized file": description["serialized_file"],
        "model file": description["model_file"],
    }
    return {name: value for name, value in fields.items() if value}


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield ""
    yield f"{title}:"
    yield from lines


def _fields(fields: Mapping[str, Any]) -> Iterator[str]:
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        yield f"  {name:<{width}}  {_shown(value)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _block(value: Mapping[str, Any] | None) -> Iterator[str]:
    if not value:
        yield "  none"
        return
    yield from _fields(value)


def _members(members: list[dict[str, Any]]) -> Iterator[str]:
    width = max((len(f"{member['size']:,}") for member in members), default=0)
    for member in members:
        packed = f" (deflated to {member['compressed_size']:,})" if member["method"] == "deflated" else ""
        yield f"  {member['size']:>{width},}  {member['name']}{packed}"


def _examples(examples: list[dict[str, Any]] | dict[str, Any] | None) -> Iterator[str]:
    if not isinstance(examples, list):
        yield from _block(examples)
        return
    for example in examples:
        top = f"{example['top']:.100}"
        yield f"  {example['input']} ({example['content_type']}) -> {example['status']}: {top}"


def _signature(signature: Mapping[str, Any] | None, digest: str) -> Iterator[str]:
    if signature is None or "problem" in signature:
        yield from _block(signature)
        return
    same = "this archive" if signature["signed_digest"] == digest else f"another archive, {signature['signed_digest']}"
    yield from _fields({"file": signature["file"], "of": same, "key": signature["key"] or "not named"})
    yield "  not verified: marsmith verify ARCHIVE --key PUBLIC.pem"
