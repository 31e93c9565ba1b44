"""Convert an archive of the stock tool into the fastest form that still gives the same answers.

    marsmith optimize old/classifier.mar
    marsmith optimize old/classifier.mar --examples photos --output model_store/efficientnet_lite0-2.0.mar --version 2.0

OLD contains a TorchScript image classifier. TorchServe's own handler image_classifier is replaced by ours; another
handler is kept. Both archives get the same photos at the end and must agree. OLD is not changed. Without --output the
new archive is written beside it, as NAME-VERSION-optimized.mar.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note, print_fields, print_json
from marsmith.config.form import AUTO, ENGINES, PRECISIONS

if TYPE_CHECKING:
    from marsmith.build.optimize.rebuild import Optimized


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith optimize``."""
    parser.add_argument("archive", type=Path, metavar="OLD", help="a .mar, a .tar.gz or a folder")
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="DIR",
        help="images to calibrate, compare and validate with; default: OLD's own examples, else scikit-image's photos",
    )
    parser.add_argument("--output", type=Path, metavar="NEW.mar", help="default: NAME-VERSION.mar beside OLD")
    parser.add_argument("--version", help="version of the new archive; default: that of OLD followed by -optimized")
    parser.add_argument("--precision", choices=(*PRECISIONS, AUTO), default=AUTO)
    parser.add_argument("--engine", choices=(*ENGINES, AUTO), default=AUTO)
    parser.add_argument("--force", action="store_true", help="replace an existing archive, but never OLD")
    parser.add_argument("--report", metavar="FILE.html", type=Path, help="write the measurements as a page with plots")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Make the archive; print the measurements, and the comparison of the replies."""
    from marsmith.build.optimize.rebuild import optimize
    from marsmith.build.optimize.task import OptimizeOptions
    from marsmith.cli.export_table import export_progress
    from marsmith.project import find_project

    options = OptimizeOptions(args.precision, args.engine, args.version, args.output, args.examples, args.force)
    with export_progress() as progress:
        done = optimize(find_project(), args.archive, options, progress=progress)
    for text in done.notes:
        note(text)
    if args.report:
        _write_page(args.report, done)
    if args.json:
        lock = done.lock.model_dump(exclude_none=True) if done.lock else None
        print_json({"file": str(done.path), "sha256": done.sha256, **done.report, "measured": lock})
        return
    _print(done)


def _write_page(target: Path, done: Optimized) -> None:
    from marsmith.errors import ExportError
    from marsmith.export.page import render_page

    if done.lock is None:
        raise ExportError("nothing was measured, so there is no report", tip="leave precision and engine auto")
    target.write_text(render_page(done.lock, dict(done.report)), encoding="utf-8")
    note(f"wrote {target}")


def _print(done: Optimized) -> None:
    from marsmith.cli.export_table import print_lock

    if done.lock is not None:
        print_lock(done.lock, "measured now")
    found = done.agreement
    print_fields(
        {
            "file": done.path,
            "sha256": done.sha256,
            "form": done.form,
            "replies": f"{found.same_top1} of {found.requests} photos with the same top label as before, "
            f"largest difference {found.largest_difference:.2g}",
            "measured with": done.report["measuredWith"],
        }
    )
