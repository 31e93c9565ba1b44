"""A new project in an empty folder, created completely or not at all; existing files are not replaced."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marsmith.child_processes import removed_at_end
from marsmith.errors import UsageError
from marsmith.files import made_folder
from marsmith.project import Project, template_root
from marsmith.scaffold.given import checkpoint_model, torchscript_model
from marsmith.scaffold.huggingface import huggingface_model
from marsmith.scaffold.model import NewModel
from marsmith.scaffold.onnx import onnx_model
from marsmith.scaffold.packaged import default_model, packaged_model
from marsmith.scaffold.sources import ModelSource
from marsmith.scaffold.template import NewFile, common_files

_MODELS: dict[str, Callable[[ModelSource], NewModel]] = {
    "torchvision": packaged_model,
    "timm": packaged_model,
    "torchscript": torchscript_model,
    "checkpoint": checkpoint_model,
    "onnx": onnx_model,
    "huggingface": huggingface_model,
}
# The file that makes the folder a project comes last.
_LAST = "config"


@dataclass(frozen=True)
class NewProject:
    """A project that was created.

    Attributes:
        project: its folder.
        model: its model.
    """

    project: Project
    model: NewModel


def new_project(folder: Path, source: ModelSource | None = None) -> NewProject:
    """Create a project.

    Args:
        folder: an empty folder, or one that does not exist.
        source: its model; None: the default model of this repository.

    Raises:
        UsageError: the folder is not empty, or there is no such model.
        ExportError: the model is not supported; nothing is written.
        MissingDependencyError: the model's package is not installed; nothing is written.
    """
    _require_empty(folder)
    template = template_root()
    model = default_model(template) if source is None else _MODELS[source.scheme](source)
    with made_folder(folder):
        common = common_files(template, model.name, model.extras, model.packages)
        _write([*common, *model.files], folder)
    return NewProject(Project(folder.resolve()), model)


def _require_empty(folder: Path) -> None:
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists() or each.is_symlink())
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is not a folder", tip="name a folder that is empty, or not there yet")
    inside = sorted(each.name for each in folder.iterdir()) if nearest == folder else []
    if inside:
        raise UsageError(
            f"{folder.resolve()} is not empty: it has {inside[0]}",
            tip="name a folder that is empty, or not there yet: marsmith new FOLDER",
        )


def _write(files: Sequence[NewFile], folder: Path) -> None:
    """Write all files beside their final places, then move them there."""
    staged = Path(tempfile.mkdtemp(prefix=".marsmith-new-", dir=folder))
    with removed_at_end(staged):
        for file in files:
            _write_file(staged / file.place, file.content)
        _move(staged, folder)


def _write_file(target: Path, content: bytes | str | Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        # Without its mode: installed files may be read-only.
        shutil.copyfile(content, target)
    else:
        target.write_bytes(content.encode() if isinstance(content, str) else content)


def _move(staged: Path, folder: Path) -> None:
    """Move the staged files into the folder; after a failure the folder is unchanged."""
    moved: list[Path] = []
    try:
        for entry in sorted(staged.iterdir(), key=lambda each: (each.name == _LAST, each.name)):
            place = folder / entry.name
            if entry.is_dir():
                # Fails if there is a file or a folder with content.
                entry.rename(place)
                moved.append(place)
            else:
                with place.open("xb") as file:
                    moved.append(place)
                    file.write(entry.read_bytes())
    except BaseException:
        for place in moved:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        raise
