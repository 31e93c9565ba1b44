"""Where things lie in a project.

A project is a folder with the layout of this repository: ``export/``, ``handlers/``, ``config/``, ``model_store/`` and
``config.properties``. What marsmith itself keeps there (exports, run state, logs) lies under ``.marsmith/``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import ProjectError, UsageError
from marsmith.names import did_you_mean

PROJECT_VARIABLE = "MARSMITH_PROJECT"

_PACKAGE = Path(__file__).resolve().parent
# Where a wheel carries the files of this repository that a new project is made from.
_TEMPLATE = _PACKAGE / "template"


@dataclass(frozen=True)
class Project:
    """The folders and files of one project; all paths are absolute."""

    root: Path

    @property
    def specs(self) -> Path:
        """The folder of the model specs, one ``<name>.yaml`` a model."""
        return self.root / "config" / "models"

    @property
    def settings_file(self) -> Path:
        """The settings of the whole project, ``config/marsmith.yaml``; need not exist."""
        return self.root / "config" / "marsmith.yaml"

    @property
    def model_store(self) -> Path:
        """The model store where the server config names none; `server_config.model_store` says which one counts."""
        return self.root / "model_store"

    @property
    def server_config(self) -> Path:
        """TorchServe's ``config.properties``."""
        return self.root / "config.properties"

    @property
    def exports(self) -> Path:
        """Serialized files and their reports, one folder a model; may be deleted at any time."""
        return self.root / ".marsmith" / "exports"

    @property
    def run(self) -> Path:
        """State of the running server: its effective config, key file, logs and temporary files."""
        return self.root / ".marsmith" / "run"

    def spec_names(self) -> list[str]:
        """Names of the models that have a spec, sorted."""
        return sorted(path.stem for path in self.specs.glob("*.yaml"))

    def spec(self, model: str) -> Path:
        """Path of the spec of ``model``; raises UsageError where there is none."""
        path = self.specs / f"{model}.yaml"
        if not path.is_file():
            names = self.spec_names()
            raise UsageError(
                f"no model {model!r}: {path} does not exist{did_you_mean(model, names)}",
                tip=f"models with a spec: {', '.join(names) or 'none'}",
            )
        return path


def is_installed_wheel() -> bool:
    """Whether this code is a release, which its version names, and not a checkout, which anybody may edit."""
    return _TEMPLATE.is_dir()


def template_root() -> Path:
    """Return the folder with the files that a new project is made from: in a checkout they are the repository's own.

    Raises:
        ProjectError: neither is there.
    """
    root = _TEMPLATE if is_installed_wheel() else _PACKAGE.parents[1]
    if not (root / "config" / "models").is_dir():
        raise ProjectError(
            f"this installation has no files to make a project from: {_TEMPLATE} is not there",
            tip="install the wheel anew: pip install --force-reinstall --no-deps marsmith",
        )
    return root


def find_running_project() -> Project:
    """Find the project whose server is to be stopped: what it needs to start may be gone, its run folder is enough.

    Raises:
        ProjectError: there is none.
    """
    named = os.environ.get(PROJECT_VARIABLE)
    here = Path(named or Path.cwd()).resolve()
    for folder in (here,) if named else (here, *here.parents):
        if (folder / "config" / "models").is_dir() or Project(folder).run.is_dir():
            return Project(folder)
    return find_project()


def find_project(start: Path | None = None) -> Project:
    """Find the project that ``start`` (default: the working folder) lies in.

    The environment variable MARSMITH_PROJECT names it outright. Otherwise it is the nearest folder upwards that has
    ``config/models``.

    Raises:
        ProjectError: there is none.
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
