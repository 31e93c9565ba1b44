"""One version as the host serves it: the unpacked archive, and the settings of its model config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.archive.unpacked import UnpackedArchive, unpacked
from marsmith.errors import ConfigError, UsageError
from marsmith.json_reader import read_json
from marsmith.machine import gpus
from marsmith.names import ModelVersion
from marsmith.strict_yaml import load_model_config

# What a server config says elsewhere.
DEFAULT_QUEUE = 100
_EXAMPLES = "MAR-INF/examples/examples.json"
_SUMS = "MAR-INF/SHA256SUMS"


@dataclass(frozen=True)
class Wishes:
    """What the command line says for all versions; None leaves it to the model config.

    Attributes:
        workers: number of workers.
        batch_size: largest batch.
        queue_size: most requests that wait.
        worker_memory: resident memory above which a worker is replaced, in bytes; None: four times what it has after
            the load, and at least 1 GiB more.
    """

    workers: int | None = None
    batch_size: int | None = None
    queue_size: int | None = None
    worker_memory: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-').removesuffix('-size')} {value}: at least 1 is needed")


@dataclass(frozen=True)
class HostedVersion:
    """One version and its settings.

    Attributes:
        id: model name and version.
        archive: path of the archive.
        content: the unpacked archive.
        config: the model config, as the handler gets it.
        workers: number of workers.
        batch_size: largest batch.
        queue_size: most requests that wait.
        delay_ms: the model config's maxBatchDelay. The host never waits for requests, so it never reaches this.
        worker_memory: see ``Wishes``.
        gpus: numbers of the GPUs for its workers; empty: they run on the CPU.
        unproved: proofs that the archive lacks, in words; empty for one of ours.
    """

    id: ModelVersion
    archive: Path
    content: UnpackedArchive
    config: Mapping[str, Any]
    workers: int
    batch_size: int
    queue_size: int
    delay_ms: int
    worker_memory: int | None
    gpus: tuple[int, ...]
    unproved: tuple[str, ...]

    @property
    def is_idempotent(self) -> bool:
        """Whether a request may be processed twice; the model config says so, or our handlers do."""
        said = self.content.handler_settings.get("idempotent")
        return not self.unproved if said is None else said is True

    @property
    def deadline_header(self) -> str:
        """Name of the header with the time of a request's deadline, in lower case."""
        return str(self.content.handler_settings.get("deadline_header", "x-deadline-ms")).lower()

    @property
    def most_items(self) -> int:
        """Most items of one request; as many parts of a form are read."""
        value = self.content.handler_settings.get("max_items", 0)
        return value if type(value) is int else 0


@contextmanager
def opened(archive: Path, wishes: Wishes) -> Iterator[HostedVersion]:
    """Yield a version whose archive is unpacked until the end of the block.

    Raises:
        UsageError: there is no such archive.
        ArchiveError: it cannot be opened.
        ConfigError: its model config cannot be read.
    """
    with unpacked(archive) as content:
        model = read_json((content.folder / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))["model"]
        config = _config(content.folder, model.get("configFile"))
        workers = wishes.workers or _whole(config, "minWorkers", 1)
        yield HostedVersion(
            id=ModelVersion(content.model_name, str(model.get("modelVersion") or "1.0")),
            archive=archive,
            content=content,
            # The handler divides the cores by it.
            config={**config, "minWorkers": workers},
            workers=workers,
            batch_size=wishes.batch_size or content.batch_size,
            queue_size=wishes.queue_size or _whole(config, "jobQueueSize", DEFAULT_QUEUE),
            delay_ms=_whole(config, "maxBatchDelay", 100),
            worker_memory=wishes.worker_memory,
            gpus=gpus_of(config, len(gpus())),
            unproved=tuple(_lacking(content.folder)),
        )


def gpus_of(config: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """Return the GPUs that a model config gives to its workers: those of ``deviceIds``, else all.

    As in TorchServe, one number that there is not makes the whole list void.

    Args:
        config: the model config; with ``deviceType: cpu`` there are none.
        count: number of GPUs of this machine.
    """
    if str(config.get("deviceType", "")).lower() == "cpu":
        return ()
    ids = config.get("deviceIds")
    if isinstance(ids, list) and ids and all(type(each) is int and 0 <= each < count for each in ids):
        return tuple(ids)
    return tuple(range(count))


def _lacking(folder: Path) -> Iterator[str]:
    if not (folder / _SUMS).is_file():
        yield "digests"
    if not (folder / _EXAMPLES).is_file():
        yield "examples"


def _config(folder: Path, name: str | None) -> dict[str, Any]:
    if not name or not (folder / name).is_file():
        return {}
    loaded = load_model_config((folder / name).read_text(encoding="utf-8"), name, ConfigError)
    # A frame is JSON; a date of YAML becomes its text.
    plain: dict[str, Any] = json.loads(json.dumps(loaded, default=str))
    return plain


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return value if type(value) is int and value > 0 else default
