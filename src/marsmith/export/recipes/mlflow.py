"""Weights of a model that is registered with MLflow, by MLflow's name: ``models:/name/version``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from marsmith.child_processes import temporary_folder
from marsmith.error_text import useful_line
from marsmith.errors import ExportError, MissingDependencyError

# A version of a name, or an id of MLflow 3; aliases and stages are not fixed.
_FIXED = re.compile(r"models:/(?:[^/@]+/\d+|m-[0-9a-f]+)")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".pt2")


@contextmanager
def mlflow_weights(uri: str) -> Iterator[Path]:
    """Yield the file with the weights of a registered model.

    Raises:
        ExportError: the name is not fixed, MLflow does not have it, or it has no weights of PyTorch.
        MissingDependencyError: MLflow is not installed.
    """
    if not _FIXED.fullmatch(uri):
        raise ExportError(
            f"{uri!r} is not a fixed version, so two builds could use different weights",
            tip="name a number: models:/NAME/VERSION",
        )
    try:
        download_artifacts = import_module("mlflow.artifacts").download_artifacts
        MlflowException = import_module("mlflow.exceptions").MlflowException  # noqa: N806 - a class
    except ImportError:
        raise MissingDependencyError("mlflow", extra="mlflow") from None
    with temporary_folder("marsmith-") as folder:
        try:
            place = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
        except (MlflowException, OSError) as error:
            raise ExportError(
                f"MLflow cannot return {uri}: {useful_line(error)}", tip="is MLFLOW_TRACKING_URI set?"
            ) from error
        yield _weights_in(place, uri)


def _weights_in(place: Path, uri: str) -> Path:
    """Return the file of the model's record, or the only possible one."""
    named = _model_data(place / "MLmodel")
    folder = place / named if named else place
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS and path.is_file())
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise ExportError(f"{uri} should hold one file with weights ({', '.join(_WEIGHTS)}); it holds {found}")
    return files[0]


def _model_data(record: Path) -> str | None:
    try:
        content = YAML(typ="safe", pure=True).load(record.read_text(encoding="utf-8"))
        named = content["flavors"]["pytorch"]["model_data"]
    except (OSError, YAMLError, KeyError, TypeError):
        return None
    # The path comes from a file of others: it must not leave the folder.
    inside = isinstance(named, str) and (record.parent / named).resolve().is_relative_to(record.parent.resolve())
    return str(named) if inside else None
