"""Inputs of one run of ``marsmith optimize``, and the module that it makes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.archive import Member
from marsmith.archive.environment import Environment
from marsmith.build.optimize.photos import Photos
from marsmith.build.optimize.source import NewConfig, OldArchive
from marsmith.config.form import Form
from marsmith.export.lock import ExportLock
from marsmith.export.measure import Effort, Progress
from marsmith.project import Project


@dataclass(frozen=True)
class OptimizeOptions:
    """Options of ``marsmith optimize``.

    Attributes:
        precision: ``auto`` or one of ``formats.form.PRECISIONS``.
        engine: ``auto`` or one of ``formats.form.ENGINES``.
        version: version of the new archive; None: the old one's followed by ``-optimized``.
        output: file to create; None: ``<name>-<version>.mar`` beside the old archive.
        examples: folder of images to measure and validate with; None: see ``optimize_photos``.
        force: whether to replace an existing file.
        must_be_faster: for a stock archive: whether to refuse a form that is slower here than float32 TorchScript in
            torch.
    """

    precision: str = "auto"
    engine: str = "auto"
    version: str | None = None
    output: Path | None = None
    examples: Path | None = None
    force: bool = False
    must_be_faster: bool = True


@dataclass(frozen=True)
class NewModule:
    """The module in its new form, with its members in the archive.

    Attributes:
        form: the chosen form.
        members: serialized file, companions, and the files of our handler if it is used.
        handler: handler in the manifest.
        serialized_file: serialized file in the manifest.
        settings: block for our handler; empty for the archive's own handler.
        report: content of export.json, without the old archive and its replies.
        lock: the measurements; None if there were none.
        environment: packages that the handler needs.
    """

    form: Form
    members: tuple[Member, ...]
    handler: str
    serialized_file: str
    settings: Mapping[str, Any]
    report: Mapping[str, Any]
    lock: ExportLock | None
    environment: Environment


@dataclass(frozen=True)
class Task:
    """One run of ``optimize`` with an opened archive.

    Attributes:
        project: project with the handlers.
        old: the old archive.
        config: the new model config.
        photos: photos to measure and validate with.
        options: the options.
        version: version of the new archive.
        scratch: an empty folder.
        effort: duration of the timing.
        progress: callbacks for the progress.
    """

    project: Project
    old: OldArchive
    config: NewConfig
    photos: Photos
    options: OptimizeOptions
    version: str
    scratch: Path
    effort: Effort
    progress: Progress

    @property
    def name(self) -> str:
        """The model's name."""
        return self.old.manifest.model_name
