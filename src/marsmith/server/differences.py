"""Differences between a running server and its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from marsmith.client.management import VersionStatus
from marsmith.config.effective import SERVE, Setting, VersionSettings


@dataclass(frozen=True)
class ParameterDifference:
    """One value that differs from the files.

    Attributes:
        what: ``server``, or ``model:version``.
        key: name of the value.
        expected: value in the files.
        live: value in the running server.
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
    """Compare the server config now with the one that the running server was started with.

    Args:
        now: result of ``server_settings``.
        started_with: ``config.properties`` of the run folder.
    """
    results = []
    for key, setting in now.items():
        chosen_at_start = setting.origin == SERVE and key not in {"model_store", "load_models"}
        live = started_with.get(key)
        if chosen_at_start or (live is None and setting.origin.startswith("TorchServe")) or live == setting.value:
            continue
        # TS_* variables are written into the server's file, so the file contains them as well.
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
