"""Folder of an export: its files, and their replacement by a new export. Imports no torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.child_processes import removed_at_end
from marsmith.config.form import Form, handler_block
from marsmith.export.lock import ExportLock
from marsmith.export.messages import JobResult
from marsmith.json_reader import read_json

REPORT_FILE = "export.json"
LABELS_FILE = "index_to_name.json"
MEASURED_FILE = "measured.json"
STAMP_FILE = "stamp.json"


@dataclass(frozen=True)
class Export:
    """The files of an export in one folder.

    Attributes:
        folder: folder of the files.
        report: content of ``export.json``.
        measured: measurements of this run, as a lock without a choice; see ``formats.export_lock``.
        reused: whether an earlier export was still current, so that nothing was done.
        lock: the lock that was followed or written; None if there is none.
        previous: the lock that this run replaced.
    """

    folder: Path
    report: dict[str, Any]
    reused: bool
    measured: dict[str, Any] | None = None
    lock: ExportLock | None = None
    previous: ExportLock | None = None

    @property
    def form(self) -> Form:
        """Format, precision and engine."""
        return Form.parse(self.report["form"])

    @property
    def serialized_file(self) -> Path:
        """Serialized file: takes uint8 (N, 3, H, W), returns float32 (N, classes)."""
        return self.folder / str(self.report["serializedFile"])

    @property
    def companions(self) -> list[Path]:
        """Files that the engine reads besides or instead of the serialized file."""
        return [self.folder / name for name in self.report["companions"]]

    @property
    def report_file(self) -> Path:
        """Path of ``export.json``."""
        return self.folder / REPORT_FILE

    @property
    def labels_file(self) -> Path:
        """Path of ``index_to_name.json``, in the stock format."""
        return self.folder / LABELS_FILE

    def handler_block(self, engine_missing: str) -> dict[str, Any]:
        """Return the settings with which the handler runs the export."""
        return handler_block(self.form, self.report.get("engineFile"), engine_missing)


@dataclass(frozen=True)
class Product:
    """Files of one run, before they replace the last export."""

    result: JobResult
    form: Form
    report: dict[str, Any]
    measured: dict[str, Any] | None
    lock: ExportLock | None


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside the products; it is removed at the end."""
    work = folder / f".work.{os.getpid()}"
    with files.made_folder(folder), removed_at_end(work):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work


def publish(folder: Path, product: Product, model: str) -> Export:
    """Replace the last export by a new one."""
    (folder / STAMP_FILE).unlink(missing_ok=True)
    made = [Path(product.result.serialized_file), *map(Path, product.result.companions)]
    for path in made:
        files.publish(path, folder / path.name)
    report = {"formatVersion": 1, "model": model, **product.report}
    export = Export(folder, report, reused=False, measured=product.measured)
    files.write_atomically(export.report_file, json.dumps(report, indent=2) + "\n")
    files.write_atomically(export.labels_file, json.dumps(product.result.labels, indent=1, ensure_ascii=False) + "\n")
    files.write_atomically(folder / MEASURED_FILE, json.dumps(product.measured, indent=2) + "\n")
    kept = {path.name for path in products(export)}
    for path in folder.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()
    return export


def products(export: Export) -> list[Path]:
    """Return the files of an export, without its stamp."""
    files = [export.serialized_file, *export.companions, export.report_file, export.labels_file]
    return [*files, export.folder / MEASURED_FILE]


def reuse(folder: Path, lock: ExportLock | None) -> Export:
    """Return the present export of a folder."""
    report = read_json((folder / REPORT_FILE).read_text(encoding="utf-8"))
    measured = read_json((folder / MEASURED_FILE).read_text(encoding="utf-8"))
    return Export(folder, report, reused=True, measured=measured, lock=lock)
