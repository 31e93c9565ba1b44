"""What one run of ``marsmith optimize`` is given, and what the making of its module gives. Imports no torch."""

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
    """What is asked for.

    Attributes:
        precision: ``auto`` or one of ``formats.form.PRECISIONS``.
        engine: ``auto`` or one of ``formats.form.ENGINES``.
        version: of the new archive; None: the old one's with ``-optimized`` behind it.
        output: the file to make; None: ``<name>-<version>.mar`` beside the old archive.
        examples: folder of images to measure and to prove with; None: see ``optimize_photos``.
        force: replace an existing file.
        must_be_faster: of a stock archive: refuse a form that is slower here than float32 TorchScript in torch.
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
    """The module in its new form, and all that belongs to it in the archive.

    Attributes:
        form: what was chosen.
        members: serialized file, companions and the handler's files where it is ours.
        handler: for the manifest.
        serialized_file: for the manifest.
        settings: the block that our handler reads; empty where the handler is the archive's own.
        report: content of export.json, but for the old archive and its replies.
        lock: what was measured; None where nothing was.
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
    """One run of ``optimize``, when the old archive has been read.

    Attributes:
        project: whose handlers are swapped in.
        old: the old archive.
        config: the new model config.
        photos: to measure and prove with.
        wish: what is asked for.
        version: of the new archive.
        scratch: an empty folder.
        effort: how long to time.
        progress: is told how far it is.
    """

    project: Project
    old: OldArchive
    config: NewConfig
    photos: Photos
    wish: OptimizeOptions
    version: str
    scratch: Path
    effort: Effort
    progress: Progress

    @property
    def name(self) -> str:
        """The model's name."""
        return self.old.manifest.model_name
