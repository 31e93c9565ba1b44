"""Variants of an archive that differ only in how they are run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from marsmith import strict_yaml
from marsmith.archive import manifest as manifest_format
from marsmith.archive import sums
from marsmith.archive.members import Member
from marsmith.archive.read import Archive
from marsmith.archive.write import write_archive
from marsmith.config.model_config import FILE_NAME as MODEL_CONFIG
from marsmith.config.model_config import HANDLER_KEY
from marsmith.errors import ConfigError
from marsmith.loadtest.tune.setup import Setup

_REWRITTEN = frozenset({manifest_format.FILE_NAME, sums.FILE_NAME})


class VariantMaker:
    """Writes variants of one archive. Its members are unpacked once."""

    def __init__(self, archive: Path, scratch: Path) -> None:
        """Unpack ``archive``, which the caller has admitted, below ``scratch``.

        Raises:
            ArchiveError: the archive is damaged or hostile.
        """
        opened = Archive.open(archive)
        self._manifest = opened.manifest
        self._folder = opened.extract(scratch / "content")
        self._names = [name for name in opened.members if name not in _REWRITTEN]

    @property
    def model_name(self) -> str:
        """Name of the model in the archive."""
        return self._manifest.model_name

    def write(self, setup: Setup, target: Path, *, warm_up_s: float | None = None) -> Path:
        """Write the archive with the workers, threads and batching of ``setup``, as a version named after the set-up.

        Args:
            setup: the set-up to write.
            target: path of the archive.
            warm_up_s: time limit of the handler's warm-up, in seconds. None: as in the archive.
        """
        config_name = self._manifest.config_file or _free_name(self._names)
        text = self._text(config_name)
        config = changed_config(text, setup, {} if warm_up_s is None else {"warm_up_s": warm_up_s})
        members = [
            Member(name, self._folder / name if name != config_name else config.encode())
            for name in {*self._names, config_name}
        ]
        manifest = replace(self._manifest, model_version=setup.version, config_file=config_name)
        write_archive(manifest, members, target, force=True)
        return target

    def _text(self, config_name: str) -> str:
        path = self._folder / config_name
        return path.read_text(encoding="utf-8") if path.is_file() else "{}"


def _free_name(taken: Collection[str]) -> str:
    """Return a name for a model config.

    A member with the usual name that the manifest does not name is another file.
    """
    names = (MODEL_CONFIG, *(f"{number}-{MODEL_CONFIG}" for number in range(len(taken))))
    return next(name for name in names if name not in taken)


def changed_config(text: str, setup: Setup, handler_settings: Mapping[str, Any] | None = None) -> str:
    """Return a model-config.yaml with the values of ``setup`` and ``handler_settings``. Everything else stays."""
    config: dict[str, Any] = dict(strict_yaml.load_model_config(text, MODEL_CONFIG, ConfigError))
    workers, threads = setup.placement.workers, setup.placement.threads
    config |= {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": setup.batch_size,
        "maxBatchDelay": setup.max_batch_delay_ms,
    }
    config.setdefault("responseTimeout", 60)
    config.setdefault("startupTimeout", 120)
    # A full queue would be a failure of the trial, not of the set-up.
    config["jobQueueSize"] = max(int(config.get("jobQueueSize") or 0), 1000)
    config[HANDLER_KEY] = {**(config.get(HANDLER_KEY) or {}), **(handler_settings or {}), "threads": threads}
    return strict_yaml.dump(config)
