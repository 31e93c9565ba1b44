"""Where a running server differs from what its files say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from marsmith.client.management import VersionStatus
from marsmith.config.effective import SERVE, Setting, VersionSettings


@dataclass(frozen=True)
class ParameterDifference:
    """One value that is not what the files say.

    Attributes:
        what: ``server``, or ``model:version``.
        key: its name.
        expected: what the files say.
        live: what the running server says.
    """

    what: str
    key: str
    expected: str
    live: str


def version_differences(
    expected: Iterable[VersionSettings], live: Iterable[VersionStatus]
) -> list[ParameterDifference]:
    """Compare the versions in the store with those that are registered."""
    wanted = {(version.model_name, version.model_version): version for version in expected}
    running = {(status.model_name, status.model_version): status for status in live}
    results = []
    for version in sorted(wanted.keys() | running.keys()):
        name = ":".join(version)
        if version not in running:
            results.append(ParameterDifference(name, "version", "in the store", "not registered"))
        elif version not in wanted:
            results.append(ParameterDifference(name, "version", "not in the store", "registered"))
        else:
            results += _values(name, wanted[version], running[version])
    return results


def server_differences(now: Mapping[str, Setting], started_with: Mapping[str, str]) -> list[ParameterDifference]:
    """Compare the server config as it is now with the one that the running server was started with.

    Args:
        now: what ``server_settings`` gave.
        started_with: the ``config.properties`` of the run folder.
    """
    results = []
    for key, setting in now.items():
        chosen_at_start = setting.origin == SERVE and key not in {"model_store", "load_models"}
        live = started_with.get(key)
        if chosen_at_start or (live is None and setting.origin.startswith("TorchServe")) or live == setting.value:
            continue
        # A TS_* variable is written into the file that the server gets, so it stands there as well.
        results.append(ParameterDifference("server", key, setting.value, "not set" if live is None else live))
    return results


def _values(name: str, expected: VersionSettings, live: VersionStatus) -> list[ParameterDifference]:
    found = {
        "minWorkers": live.min_workers,
        "maxWorkers": live.max_workers,
        "batchSize": live.batch_size,
        "maxBatchDelay": live.max_batch_delay_ms,
        "responseTimeout": live.response_timeout_s,
        "startupTimeout": live.startup_timeout_s,
        "jobQueueSize": live.queue_remaining + live.queue_pending,
    }
    return [
        ParameterDifference(name, key, expected.value(key), str(value))
        for key, value in found.items()
        if expected.value(key) != str(value)
    ]
