"""Inputs of an export: gathered, with their digests, before the export starts. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.config.export_spec import ExportSpec
from marsmith.config.form import Form
from marsmith.config.model_spec import ModelSpec
from marsmith.config.source_names import RecipeSource
from marsmith.errors import UsageError
from marsmith.export import stamp as build_stamp
from marsmith.export.images import ImageSets, digests, image_sets
from marsmith.export.locks import digest_of, export_digest
from marsmith.export.machine import packages
from marsmith.export.messages import JobRequest
from marsmith.export.recipes.imports import requirements
from marsmith.export.recipes.source import recipe_files
from marsmith.packages import installed_version
from marsmith.project import Project
from marsmith.runtime.library import ENGINES


@dataclass(frozen=True)
class ExportInputs:
    """Inputs of an export.

    Attributes:
        project: the project.
        spec: spec of the model.
        export: the spec's export block, with the overrides of the command line.
        weights: name of the weights; see ``weights.load_weights``.
        recipe: name of the recipe.
        sources: files of the recipe.
        images: images for tracing, calibration and comparison.
        allow_pickle: whether to load weights from a file that can run code.
        strip_prefix: prefix to remove from the names of the weights.
    """

    project: Project
    spec: ModelSpec
    export: ExportSpec
    weights: str
    recipe: RecipeSource
    sources: tuple[Path, ...]
    images: ImageSets
    allow_pickle: bool = False
    strip_prefix: str = ""

    @property
    def labels(self) -> Path | None:
        """File with the classes of the validation images."""
        name = self.export.validation_labels
        return self.project.root / name if name else None

    def files(self) -> list[Path]:
        """Return every file that the export depends on, except for its weights and its lock."""
        return [*self.sources, *self.images.files(), *([self.labels] if self.labels else [])]

    def digests(self) -> dict[str, str]:
        """Return the digests that a lock is compared with; see ``formats.export_lock.Fits``."""
        sets = self.images
        images = [digests(paths) for paths in (sets.examples, sets.calibration, sets.validation)]
        labels = files.sha256(self.labels) if self.labels else ""
        recipe = [files.sha256(path) for path in self.sources]
        return {
            # Overrides of the command line for one run are not part of the lock.
            "export": export_digest(self.spec.export),
            "recipe": digest_of([self.export.recipe, *recipe]),
            "images": digest_of([*images, labels]),
        }

    def stamp(self, lock: str | None) -> dict[str, Any]:
        """Return what an export depends on besides files: settings, and versions of packages.

        Args:
            lock: digest of the lock; None if there is none.
        """
        forms = self.export.forms()
        needed = requirements(self.sources, self.project.root)
        names = {*needed.distributions, *self.recipe.packages(), "torchvision"}
        names |= {name for form in forms for name in packages(form)}
        return {
            "export": self.export.model_dump(),
            "examples": [example.input for example in self.spec.examples],
            "images": {key: [str(path) for path in paths] for key, paths in self._image_paths().items()},
            "weights": self.weights,
            "strip_prefix": self.strip_prefix,
            "code": build_stamp.code_digest(),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "packages": {name: installed_version(name) for name in sorted(names)},
            "source_path": needed.loose,
            "engines": self._engines_digest(),
            "lock": lock,
        }

    def request(self, form: Form, folder: Path, cores: int) -> JobRequest:
        """Return the request for one form."""
        handlers = self._handlers()
        return JobRequest(
            export=self.export.model_dump(exclude_unset=True),
            form=str(form),
            weights=self.weights,
            images={key: [str(path) for path in paths] for key, paths in self._image_paths().items()},
            root=str(self.project.root),
            folder=str(folder),
            handlers=str(handlers) if (handlers / ENGINES / "__init__.py").is_file() else None,
            allow_pickle=self.allow_pickle,
            strip_prefix=self.strip_prefix,
            threads=max(1, cores // self.spec.serving.min_workers),
            labels=str(self.labels) if self.labels else None,
        )

    @property
    def has_images_for_base(self) -> bool:
        """Whether the spec has images for the gate, besides its examples."""
        return bool(self.export.calibration or self.export.validation)

    def _handlers(self) -> Path:
        return (self.project.root / self.spec.handler.entry_point).parent

    def _engines_digest(self) -> str:
        return digest_of([files.sha256(path) for path in sorted((self._handlers() / ENGINES).glob("*.py"))])

    def _image_paths(self) -> Mapping[str, Iterable[Path]]:
        fields: dict[str, Any] = {**vars(self.images)}
        return {key: fields[key] for key in ("examples", "calibration", "validation")}


def gather(
    project: Project,
    spec: ModelSpec,
    *,
    weights: str | None = None,
    overrides: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    strip_prefix: str | None = None,
) -> ExportInputs:
    """Gather the inputs of an export.

    Args:
        project: the project.
        spec: spec of the model.
        weights: replaces the spec's weights.
        overrides: keys of the export block, for this run: ``format``, ``precision``, ``engine``, ``device``.
        allow_pickle: whether to load weights from a file that can run code.
        strip_prefix: replaces the spec's prefix.

    Raises:
        ExportError: the recipe does not exist.
        UsageError: an image does not exist, or the overrides give an unsupported form.
    """
    export = overridden(spec.export, overrides or {})
    recipe = RecipeSource.parse(export.recipe)
    sources = recipe_files(recipe, project.root)
    examples = [example.input for example in spec.examples]
    images = image_sets(examples, export.calibration, export.validation, project.root)
    prefix = export.strip_prefix if strip_prefix is None else strip_prefix
    return ExportInputs(
        project, spec, export, weights or export.weights, recipe, tuple(sources), images, allow_pickle, prefix
    )


def overridden(export: ExportSpec, overrides: Mapping[str, str]) -> ExportSpec:
    """Return the export block with the overrides of the command line. Another format gets the engine that fits it.

    Raises:
        UsageError: the form is not supported.
    """
    if not overrides:
        return export
    block = export.model_dump(exclude_unset=True)
    if "engine" not in overrides and overrides.get("format", export.format) != export.format:
        block.pop("engine", None)
    try:
        return ExportSpec.model_validate({**block, **overrides})
    except ValueError as error:
        lines = [line.strip() for line in str(error).splitlines() if "Value error" in line]
        reason = lines[0].removeprefix("Value error, ").partition(" [type=")[0] if lines else str(error)
        raise UsageError(reason, tip="marsmith export --help") from None
