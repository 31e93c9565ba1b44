"""Layout of a project.

A project is a folder with the layout of this repository: ``export/``, ``handlers/``, ``config/``, ``model_store/`` and
``config.properties``. marsmith's own files (exports, run state, logs) are under ``.marsmith/``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import ProjectError, UsageError
from marsmith.names import did_you_mean

PROJECT_VARIABLE = "MARSMITH_PROJECT"

_PACKAGE = Path(__file__).resolve().parent
# Folder in a wheel with the files for a new project.
_TEMPLATE = _PACKAGE / "template"


@dataclass(frozen=True)
class Project:
    """Folders and files of one project; all paths are absolute."""

    root: Path

    @property
    def specs(self) -> Path:
        """Folder of the model specs, one ``<name>.yaml`` per model."""
        return self.root / "config" / "models"

    @property
    def settings_file(self) -> Path:
        """Settings of the whole project, ``config/marsmith.yaml``; may be missing."""
        return self.root / "config" / "marsmith.yaml"

    @property
    def model_store(self) -> Path:
        """Default model store if the server config names none.

        `server_config.model_store` returns the effective one.
        """
        return self.root / "model_store"

    @property
    def server_config(self) -> Path:
        """TorchServe's ``config.properties``."""
        return self.root / "config.properties"

    @property
    def exports(self) -> Path:
        """Serialized files and their reports, one folder per model; may be deleted at any time."""
        return self.root / ".marsmith" / "exports"

    @property
    def run(self) -> Path:
        """State of the running server: its effective config, key file, logs and temporary files."""
        return self.root / ".marsmith" / "run"

    @property
    def monitoring(self) -> Path:
        """Configuration and data of Prometheus and Alertmanager, if they run for this project alone."""
        return self.root / ".marsmith" / "monitoring"

    @property
    def prediction_logs(self) -> Path:
        """What handlers log of single requests, a file for each model; goes on when the server is started again."""
        return self.run / "logs" / "predictions"

    def spec_names(self) -> list[str]:
        """Return the names of the models with a spec, sorted."""
        return sorted(path.stem for path in self.specs.glob("*.yaml"))

    def spec(self, model: str) -> Path:
        """Return the path of the spec of ``model``; raises UsageError if there is none."""
        path = self.specs / f"{model}.yaml"
        if not path.is_file():
            names = self.spec_names()
            raise UsageError(
                f"no model {model!r}: {path} does not exist{did_you_mean(model, names)}",
                tip=f"models with a spec: {', '.join(names) or 'none'}",
            )
        return path


def is_installed_wheel() -> bool:
    """Return whether this code is an installed release, by its version, and not a checkout, which may be edited."""
    return _TEMPLATE.is_dir()


def template_root() -> Path:
    """Return the folder with the files for a new project; in a checkout it is the repository.

    Raises:
        ProjectError: the folder does not exist.
    """
    root = _TEMPLATE if is_installed_wheel() else _PACKAGE.parents[1]
    if not (root / "config" / "models").is_dir():
        raise ProjectError(
            f"this installation has no files to make a project from: {_TEMPLATE} is not there",
            tip="reinstall the wheel: pip install --force-reinstall --no-deps marsmith",
        )
    return root


def find_running_project() -> Project:
    """Find the project of the server to stop. Its run folder is enough; the files for a start may be missing.

    Raises:
        ProjectError: no project is found.
    """
    named = os.environ.get(PROJECT_VARIABLE)
    here = Path(named or Path.cwd()).resolve()
    for folder in (here,) if named else (here, *here.parents):
        if (folder / "config" / "models").is_dir() or Project(folder).run.is_dir():
            return Project(folder)
    return find_project()


def find_project(start: Path | None = None) -> Project:
    """Find the project that contains ``start`` (default: the working folder).

    The environment variable MARSMITH_PROJECT takes precedence. Otherwise it is the nearest parent folder with
    ``config/models``.

    Raises:
        ProjectError: no project is found.
    """
    named = os.environ.get(PROJECT_VARIABLE)
    if named:
        root = Path(named).resolve()
        if not (root / "config" / "models").is_dir():
            raise ProjectError(f"{PROJECT_VARIABLE} names {root}, which has no config/models folder")
        return Project(root)
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "config" / "models").is_dir():
            return Project(folder)
    raise ProjectError(
        f"no marsmith project in {here} or above it (a project has a config/models folder)",
        tip=f"change into a project, or name it with {PROJECT_VARIABLE}=FOLDER",
    )
