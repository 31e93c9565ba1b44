"""An archive as a folder, and what TorchServe's frontend reads of it before it starts a worker."""

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
# What the frontend takes where neither the model config nor the server config says anything.
_DEFAULT_TIMEOUT_S = 120


@dataclass(frozen=True)
class UnpackedArchive:
    """One archive's members, and how the frontend would run them.

    Attributes:
        folder: absolute path of the members.
        model_name: the manifest's.
        handler: the manifest's.
        batch_size: the model config's, else 1.
        response_timeout_s: the model config's, else TorchServe's default.
        startup_timeout_s: the model config's, else TorchServe's default.
        handler_settings: the model config's block ``handler``; empty where there is none.
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
    """Give the members of ``archive``; extracted to a temporary folder, unless it is a folder already.

    Raises:
        UsageError: there is no such archive.
        ArchiveError: it cannot be opened, or has no manifest that TorchServe would take.
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
    """Read manifest and model config as leniently as the frontend does."""
    try:
        model = read_json((folder / _MANIFEST).read_text(encoding="utf-8"))["model"]
        name, handler = str(model["modelName"]), str(model["handler"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{folder / _MANIFEST} is no manifest of a model archive: {error!r}") from None
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
    """Read the model config; one that cannot be read is left to the worker, which then fails as it does in a server."""
    from marsmith.strict_yaml import load_model_config

    if not name:
        return {}
    try:
        return load_model_config((folder / name).read_text(encoding="utf-8"), name, ConfigError)
    except (OSError, ValueError, ConfigError):
        return {}


def handler_block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the block of a model config that the handler reads; empty where there is none."""
    block = config.get("handler")
    return block if isinstance(block, Mapping) else {}


def _positive_int(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return what the frontend makes of a key: wrong types and values below 1 leave the default."""
    value = config.get(key)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
