"""New module for an archive with the stock image_classifier: exported like a spec, with our handler.

The preprocessing of the stock handler (TorchServe 0.12.0, ``vision_handler.py`` and ``image_classifier.py``) is the
default of a recipe for TorchScript: shorter side to 256 pixels, bilinear with antialiasing; centre crop of 224;
ImageNet's mean and standard deviation; softmax; the five most probable classes, best first.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from marsmith.archive import Member
from marsmith.build.optimize.source import LABELS_FILE
from marsmith.build.optimize.task import NewModule, Task
from marsmith.config.export_spec import ExportSpec
from marsmith.config.model_spec import Example, HandlerSpec, ModelSpec
from marsmith.errors import ArchiveError, ProjectError, UsageError
from marsmith.export import Export, export_model
from marsmith.export.lock import ExportLock
from marsmith.project import Project
from marsmith.runtime import environment
from marsmith.runtime.imports import local_imports

HANDLER = "image_classifier_handler.py"
_TOP_K = 5
# Recipe of the scratch project in which the export runs.
_RECIPE = """\
from pathlib import Path
from marsmith.build.optimize.graph import rebuilt_recipe
RECIPE = rebuilt_recipe(Path(__file__).with_name({name!r}))
"""


def stock_module(task: Task) -> NewModule:
    """Export the module of an archive with the stock handler.

    Raises:
        ArchiveError: the stock handler does not run its serialized file with torch.
        ProjectError: the project has no handler for images.
        ExportError: the module is not an image classifier, or no form passes the gate.
    """
    old = task.old
    if old.serialized_file.suffix != ".pt":
        raise ArchiveError(
            f"{old.archive.path.name}: {old.serialized_file.name} is not a TorchScript file (.pt)",
            tip="optimize supports archives with TorchScript",
        )
    _check_module(old.serialized_file)
    handler = task.project.root / "handlers" / HANDLER
    if not handler.is_file():
        raise ProjectError(f"{handler} does not exist", tip="run this in a project that has marsmith's handlers")
    files = [handler, *local_imports(handler)]
    environment.record(files)
    project = _scratch_project(task, handler.parent)
    progress = replace(task.progress, step=lambda text: _tell(task, text))
    export = export_model(project, _spec(task), effort=task.effort, progress=progress)
    return NewModule(
        form=export.form,
        members=_members(export, files, handler.parent),
        handler=HANDLER,
        serialized_file=export.serialized_file.name,
        settings=_settings(export),
        report={**export.report, "recipe": f"torchscript:{old.serialized_file.name}"},
        lock=export.lock or (ExportLock.model_validate(export.measured) if export.measured else None),
        environment=environment.record(files, engine=export.form.engine),
    )


def _tell(task: Task, text: str) -> None:
    """Report a step, except for those about the lock of the temporary project."""
    if not text.startswith("wrote "):
        task.progress.step(text)


def _check_module(path: Path) -> None:
    """Refuse a module that is not an image classifier, before the export."""
    import torch

    from marsmith.export import ImagePreprocessing
    from marsmith.export.classifier import check_classifier
    from marsmith.export.recipes.torchscript import load_module

    generator = torch.Generator().manual_seed(0)
    # Nearly grey, because a module may refuse images unlike photos.
    image = 0.1 * torch.randn(3, *ImagePreprocessing().crop, generator=generator)
    check_classifier(load_module(path), image, path.name)


def _scratch_project(task: Task, handlers: Path) -> Project:
    """Create a project with the old module and the handlers."""
    project = Project(task.scratch / "project")
    project.specs.mkdir(parents=True)
    shutil.copytree(handlers, project.root / "handlers", ignore=shutil.ignore_patterns("__pycache__"))
    folder = project.root / "export"
    folder.mkdir()
    name = task.old.serialized_file.name
    shutil.copy(task.old.serialized_file, folder / name)
    (folder / "old_archive.py").write_text(_RECIPE.format(name=name), encoding="utf-8")
    return project


def _spec(task: Task) -> ModelSpec:
    sets, options = task.photos.sets, task.options
    block = {
        "recipe": "export/old_archive.py",
        "precision": options.precision,
        "engine": options.engine,
        "gate": {"must_be_faster": options.must_be_faster},
        "calibration": [str(path) for path in dict.fromkeys([*sets.calibration, *sets.validation])],
    }
    try:
        export = ExportSpec.model_validate(block)
    except ValueError as error:
        lines = [line.strip() for line in str(error).splitlines() if "Value error" in line]
        reason = lines[0].removeprefix("Value error, ").partition(" [type=")[0] if lines else str(error)
        raise UsageError(reason, tip="marsmith optimize --help") from None
    return ModelSpec(
        name=task.name,
        version=task.version,
        export=export,
        handler=HandlerSpec(entry_point=f"handlers/{HANDLER}"),
        examples=[Example(input=str(path)) for path in sets.examples],
        serving=task.config.serving,
    )


def _members(export: Export, files: list[Path], folder: Path) -> tuple[Member, ...]:
    exported = [export.serialized_file, *export.companions]
    handlers = [Member(file.relative_to(folder).as_posix(), file) for file in files]
    return (*(Member(path.name, path) for path in exported), *handlers)


def _settings(export: Export) -> dict[str, Any]:
    return {
        **export.report["preprocessing"]["byTheHandler"],
        **export.handler_block("fallback"),
        "environment": "warn",
        "labels": LABELS_FILE,
        "top_k": _TOP_K,
    }
