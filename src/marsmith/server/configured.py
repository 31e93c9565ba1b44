"""Values that the files alone give to the archives of a store; other values were set at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from marsmith.archive.store import StoredArchive, open_stored
from marsmith.config.properties import Entry
from marsmith.errors import MarsmithError
from marsmith.project import Project
from marsmith.state.served import Parameters, Version

_KEYS = {
    "min_workers": "minWorkers",
    "max_workers": "maxWorkers",
    "batch_size": "batchSize",
    "max_batch_delay_ms": "maxBatchDelay",
    "response_timeout_s": "responseTimeout",
    "startup_timeout_s": "startupTimeout",
}


def configured_parameters(config: Mapping[str, str], archives: Iterable[StoredArchive]) -> dict[Version, Parameters]:
    """Return the configured values of each archive, as far as they are known.

    Args:
        config: effective server config.
        archives: archives of the store.
    """
    # Not imported at the top, because they import much more than a start needs.
    from marsmith.config.effective import server_settings, version_settings
    from marsmith.machine import cgroup_cores, gpus, java_cores, usable_cores

    listed = list(archives)
    if not listed:
        return {}
    entries = [Entry(key, value, line) for line, (key, value) in enumerate(config.items(), start=1)]
    settings = server_settings(Project(Path(config["model_store"]).parent), entries, {})
    cores, counted = java_cores(usable_cores(), cgroup_cores()), len(gpus())
    found = {}
    for archive in listed:
        with suppress(MarsmithError, ValueError):
            version = version_settings(archive, settings, cores=cores, gpus=counted)
            found[archive.version] = Parameters(**{name: int(version.value(key)) for name, key in _KEYS.items()})
    return found


def openable(paths: Iterable[Path]) -> list[StoredArchive]:
    """Open the archives, and skip those that cannot be opened."""
    found = []
    for path in paths:
        with suppress(MarsmithError, OSError):
            found.append(open_stored(path))
    return found
