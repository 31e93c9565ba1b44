"""An unpacked archive, and the values that TorchServe's frontend reads from it before it starts a worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marsmith.child_processes import temporary_folder
from marsmith.errors import ArchiveError, ConfigError, UsageError
from marsmith.json_reader import read_json

_MANIFEST = "MAR-INF/MANIFEST.json"
# The frontend's defaults if neither the model config nor the server config has a value.
_DEFAULT_TIMEOUT_S = 120


@dataclass(frozen=True)
class UnpackedArchive:
    """One archive's members and settings for the frontend.

    Attributes:
        folder: absolute path of the members.
        model_name: model name of the manifest.
        handler: handler of the manifest.
        batch_size: batch size of the model config, else 1.
        response_timeout_s: value of the model config, else TorchServe's default.
        startup_timeout_s: value of the model config, else TorchServe's default.
        handler_settings: the model config's block ``handler``; empty if there is none.
    """

    folder: Path
    model_name: str
    handler: str
    batch_size: int = 1
    response_timeout_s: int = _DEFAULT_TIMEOUT_S
    startup_timeout_s: int = _DEFAULT_TIMEOUT_S
    handler_settings: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def unpacked(archive: Path) -> Iterator[UnpackedArchive]:
    """Yield the members of ``archive``, extracted to a temporary folder unless it is a folder.

    Raises:
        UsageError: the archive does not exist.
        ArchiveError: it cannot be opened, or TorchServe would refuse its manifest.
    """
    path = archive.resolve()
    if path.is_dir():
        yield _read(path)
        return
    if not path.is_file():
        raise UsageError(f"no archive {archive}")
    from marsmith.archive import Archive

    with temporary_folder("marsmith-run-") as temporary:
        yield _read(Archive.open(path).extract(temporary / "model"))


def _read(folder: Path) -> UnpackedArchive:
    """Read manifest and model config as leniently as the frontend."""
    try:
        model = read_json((folder / _MANIFEST).read_text(encoding="utf-8"))["model"]
        name, handler = str(model["modelName"]), str(model["handler"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{folder / _MANIFEST} is not a manifest of a model archive: {error!r}") from None
    config = _read_config(folder, model.get("configFile"))
    return UnpackedArchive(
        folder,
        name,
        handler,
        _positive_int(config, "batchSize", 1),
        _positive_int(config, "responseTimeout", _DEFAULT_TIMEOUT_S),
        _positive_int(config, "startupTimeout", _DEFAULT_TIMEOUT_S),
        handler_block(config),
    )


def _read_config(folder: Path, name: str | None) -> Mapping[str, Any]:
    """Read the model config; an unreadable one makes the worker fail, as in a server."""
    from marsmith.strict_yaml import load_model_config

    if not name:
        return {}
    try:
        return load_model_config((folder / name).read_text(encoding="utf-8"), name, ConfigError)
    except (OSError, ValueError, ConfigError):
        return {}


def handler_block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the block of a model config for the handler; empty if there is none."""
    block = config.get("handler")
    return block if isinstance(block, Mapping) else {}


def _positive_int(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return the frontend's value of a key: wrong types and values below 1 give the default."""
    value = config.get(key)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
