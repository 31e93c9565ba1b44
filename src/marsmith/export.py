"""Weights to a serialized file: TorchScript that takes uint8 images and returns probabilities, and a report about it.

Needs torch, which is imported when something is really exported, not when an earlier export is still current.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from marsmith import build_stamp
from marsmith.errors import ExportError, MissingDependencyError
from marsmith.export_process import ExportRequest, export_apart
from marsmith.formats.model_spec import ModelSpec
from marsmith.imports import distributions, local_imports
from marsmith.inputs import read_input
from marsmith.settings import Project

SERIALIZED_FILE = "model.pt"
REPORT_FILE = "export.json"
LABELS_FILE = "index_to_name.json"
_STAMP_FILE = "stamp.json"


@dataclass(frozen=True)
class Export:
    """The product of an export: files in one folder.

    Attributes:
        serialized_file: TorchScript; takes uint8 (N, 3, H, W), returns float32 (N, classes).
        report: content of ``export.json``.
        labels: ``index_to_name.json``, in the stock format.
        reused: whether an earlier export was still current and nothing was done.
    """

    folder: Path
    report: dict[str, Any]
    reused: bool

    @property
    def serialized_file(self) -> Path:
        """Path of the TorchScript file."""
        return self.folder / SERIALIZED_FILE

    @property
    def report_file(self) -> Path:
        """Path of ``export.json``."""
        return self.folder / REPORT_FILE

    @property
    def labels_file(self) -> Path:
        """Path of ``index_to_name.json``."""
        return self.folder / LABELS_FILE


def export_model(
    project: Project, spec: ModelSpec, *, weights: str | None = None, on_step: Callable[[str], None] = lambda _: None
) -> Export:
    """Export the model of ``spec``, unless the last export is still what its inputs would give.

    Args:
        project: where the recipe lies and the export goes.
        spec: what to export.
        weights: overrides the spec's ``export.weights``.
        on_step: is told each step, in words.

    Raises:
        ExportError: the recipe, the weights or the gate say no; an earlier export is left as it was.
    """
    source = weights or spec.export.weights
    folder = project.exports / spec.name
    recipe_file = project.root / spec.export.recipe
    if not recipe_file.is_file():
        raise ExportError(f"no recipe at {recipe_file}", tip="the spec names it under export.recipe")
    sources = [recipe_file, *local_imports(recipe_file)]
    inputs = _inputs(spec, source, sources)
    if build_stamp.is_current(folder / _STAMP_FILE, inputs, project.root):
        return Export(folder, json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")), reused=True)
    if _version("torch") is None:
        raise MissingDependencyError("torch", extra="export")
    examples = [read_input(example.input, project.root).path for example in spec.examples]
    photos = [str(path) for path in examples if path]
    folder.mkdir(parents=True, exist_ok=True)
    request = ExportRequest(
        recipe=str(recipe_file),
        export=spec.export.model_dump(),
        weights=source,
        examples=photos,
        root=str(project.root),
        folder=str(folder),
    )
    product = export_apart(request, on_step)
    (folder / _STAMP_FILE).unlink(missing_ok=True)
    export = Export(folder, {"formatVersion": 1, "model": spec.name, **product.report}, reused=False)
    _replace(export.report_file, json.dumps(export.report, indent=2) + "\n")
    _replace(export.labels_file, json.dumps(product.labels, indent=1, ensure_ascii=False) + "\n")
    Path(product.staged).replace(export.serialized_file)
    used = [*sources, *map(Path, [*product.files, *photos])]
    products = [export.serialized_file, export.report_file, export.labels_file]
    build_stamp.write_stamp(folder / _STAMP_FILE, inputs, [*used, *products], project.root)
    return export


def _replace(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


def _inputs(spec: ModelSpec, source: str, sources: Sequence[Path]) -> dict[str, Any]:
    """What an export depends on besides files: the spec's export block and the versions of what runs."""
    packages = sorted({*distributions(sources), "torch", "torchvision"} - {"marsmith"})
    return {
        "export": spec.export.model_dump(),
        "examples": [example.input for example in spec.examples],
        "weights": source,
        "code": build_stamp.code_digest(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
