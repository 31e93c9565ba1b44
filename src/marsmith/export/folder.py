"""The folder of an export: its product there, and how a new one replaces it. Imports no torch."""

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
    """The product of an export: files in one folder.

    Attributes:
        folder: where they lie.
        report: content of ``export.json``.
        measured: what was found here, if anything was timed, as a lock without a choice; see ``formats.export_lock``.
        reused: whether an earlier export was still current and nothing was done.
        lock: the lock that was followed or written; None where none counts.
        previous: the lock that this run has replaced.
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
        """Takes uint8 (N, 3, H, W), returns float32 (N, classes)."""
        return self.folder / str(self.report["serializedFile"])

    @property
    def companions(self) -> list[Path]:
        """Files that the engine reads besides the serialized file, or instead."""
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
        """Return what the handler must be told to run it."""
        return handler_block(self.form, self.report.get("engineFile"), engine_missing)


@dataclass(frozen=True)
class Product:
    """What one run has made, before it replaces the last export."""

    result: JobResult
    form: Form
    report: dict[str, Any]
    measured: dict[str, Any] | None
    lock: ExportLock | None


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside the products, gone at the end whatever happens."""
    work = folder / f".work.{os.getpid()}"
    with files.made_folder(folder), removed_at_end(work):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work


def publish(folder: Path, product: Product, model: str) -> Export:
    """Let what was made replace the last export."""
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
    """Return the files of an export, but for its stamp."""
    files = [export.serialized_file, *export.companions, export.report_file, export.labels_file]
    return [*files, export.folder / MEASURED_FILE]


def reuse(folder: Path, lock: ExportLock | None) -> Export:
    """Return the export that lies in a folder."""
    report = read_json((folder / REPORT_FILE).read_text(encoding="utf-8"))
    measured = read_json((folder / MEASURED_FILE).read_text(encoding="utf-8"))
    return Export(folder, report, reused=True, measured=measured, lock=lock)
