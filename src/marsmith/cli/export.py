"""Export a model's weights to a serialized file that takes uint8 images and returns probabilities.

    marsmith export efficientnet_lite0
    marsmith export efficientnet_lite0 --relock --report export.html
    marsmith export resnet18 --weights random --precision bfloat16
    marsmith export resnet18 --weights random --format auto --precision auto --engine auto

The export is written to .marsmith/exports/MODEL/. It is compared with the eager float32 module. It is refused if it
exceeds the limits of the spec's gate, or if it is slower than float32. `auto` tries all forms that this machine
supports and takes the fastest that passes. The choice is written to config/models/MODEL.lock, and later exports repeat
it. Does nothing if nothing has changed since the last export.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note, print_fields, print_json
from marsmith.config.form import AUTO, DEVICES, ENGINES, FORMATS, PRECISIONS

if TYPE_CHECKING:
    from marsmith.export.folder import Export


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``, shared by the verbs that export."""
    parser.add_argument(
        "--weights",
        metavar="SOURCE",
        help="instead of the spec's: a .pth or .safetensors file, recipe, hub, random (recorded in the archive), or "
        "none for a module without parameters",
    )
    parser.add_argument(
        "--strip-prefix",
        metavar="PREFIX",
        help="take only the names in the file that begin with this prefix, and remove it: model.",
    )
    parser.add_argument("--unsafe-weights", action="store_true", help="also load weights from a file that can run code")


def add_frozen_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--frozen``, shared by the verbs that export."""
    parser.add_argument(
        "--frozen", action="store_true", help="fail instead of measuring a model without a lock (always if CI is set)"
    )


def is_frozen(args: argparse.Namespace) -> bool:
    """Return whether measuring is forbidden."""
    return bool(args.frozen or os.environ.get("CI"))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith export``."""
    parser.add_argument("model", metavar="MODEL", help="a model with a spec in config/models")
    forms = parser.add_argument_group("the form, for this run, instead of the spec's")
    forms.add_argument("--precision", choices=(*PRECISIONS, AUTO))
    forms.add_argument("--format", choices=(*FORMATS, AUTO))
    forms.add_argument("--engine", choices=(*ENGINES, AUTO))
    forms.add_argument("--device", choices=DEVICES)
    add_weights_flag(parser)
    parser.add_argument("--relock", action="store_true", help="measure, write the lock again, and show what changed")
    add_frozen_flag(parser)
    parser.add_argument("--report", metavar="FILE.html", type=Path, help="write the measurements as a page with plots")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Export, and print the path of the file and its difference from the eager module."""
    from marsmith.cli.export_table import export_progress
    from marsmith.config.model_spec import load_spec
    from marsmith.export.model import export_model
    from marsmith.project import find_project

    project = find_project()
    keys = ("precision", "format", "engine", "device")
    with export_progress() as progress:
        export = export_model(
            project,
            load_spec(project, args.model),
            weights=args.weights,
            overrides={key: value for key in keys if (value := getattr(args, key))},
            relock=args.relock,
            # --relock asks for a measurement.
            frozen=is_frozen(args) and not args.relock,
            allow_pickle=args.unsafe_weights,
            strip_prefix=args.strip_prefix,
            progress=progress,
        )
    if args.report:
        _write_page(args.report, export)
    if args.json:
        lock = export.lock.model_dump(exclude_none=True) if export.lock else None
        found = {"measured": export.measured, "lock": lock, "previousLock": _previous(export), **_here(export)}
        print_json({"file": str(export.serialized_file), "reused": export.reused, **export.report, **found})
        return
    _print(export)


def _here(export: Export) -> dict[str, object]:
    """Print the machine of the figures, and the forms of the lock that this machine supports differently."""
    from marsmith.export.machine import Machine, limits_here

    lock, machine = export.lock, Machine.here()
    if lock is None:
        return {}
    is_here = machine.is_that_of(lock.machine)
    found = {one.form: limits_here(one.what, export.report["device"], machine) for one in lock.candidates}
    return {
        "measuredHere": is_here,
        "limitsHere": {} if is_here else {form: text for form, text in found.items() if text},
    }


def _source(export: Export) -> str:
    if export.measured is not None and not export.reused:
        return "measured now"
    return "from the lock, measured" if export.lock else "measured earlier"


def _previous(export: Export) -> object:
    return export.previous.model_dump(exclude_none=True) if export.previous else None


def _write_page(target: Path, export: Export) -> None:
    from marsmith.errors import ExportError
    from marsmith.export.lock import ExportLock
    from marsmith.export.page import render_page

    lock = export.lock or (ExportLock.model_validate(export.measured) if export.measured else None)
    if lock is None:
        raise ExportError("nothing was measured, so there is no report", tip="measure: marsmith export MODEL --relock")
    target.write_text(render_page(lock, export.report), encoding="utf-8")
    note(f"wrote {target}")


def _print(export: Export) -> None:
    from marsmith.cli.export_table import print_changes, print_lock
    from marsmith.export.lock import ExportLock

    lock = export.lock or (ExportLock.model_validate(export.measured) if export.measured else None)
    if lock is not None:
        print_lock(lock, _source(export), export.report["device"])
    if export.previous is not None and lock is not None:
        print_changes(export.previous, lock)
    files = [export.serialized_file, *export.companions]
    print_fields(
        {
            "file": export.serialized_file,
            "form": export.form,
            "size": f"{sum(path.stat().st_size for path in files):,} bytes"
            + (f" in {len(files)} files" if len(files) > 1 else ""),
            "weights": ", ".join(f"{key} {value}" for key, value in export.report["weights"].items()),
            "parity": _parity(export),
            "state": "unchanged since the last export" if export.reused else "new",
        }
    )


def _parity(export: Export) -> str:
    parity = export.report["parity"]
    error = parity.get("maxAbsError", parity.get("maxAbsErrorBelow", 0.0))
    word = "error" if "maxAbsError" in parity else "error below"
    # Tensors have no best class.
    agreement = f", top-1 agreement {parity['top1Agreement']:g}" if "top1Agreement" in parity else ""
    return f"{word} {error:g}{agreement} over {parity.get('samples', 0)} samples"
