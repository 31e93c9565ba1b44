"""The configuration that counts, decided from files; the live server agrees in test_config_live.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from marsmith.archive.store import open_stored
from marsmith.client.management import VersionStatus
from marsmith.config.effective import (
    ANY_MODEL_CONFIG,
    DEFAULT,
    SERVE,
    Setting,
    ValueSource,
    VersionSettings,
    server_settings,
    version_settings,
)
from marsmith.config.properties import Entry
from marsmith.config.server_keys import KNOWN_KEYS
from marsmith.project import Project
from marsmith.server.differences import ParameterDifference, server_differences, version_differences
from support.live_server import make_project, tiny_archive
from support.projects import REPOSITORY

PROJECT = Project(Path("/srv/project"))


def server(environment: Mapping[str, str] | None = None, **values: str) -> dict[str, Setting]:
    entries = [Entry(key, value, line) for line, (key, value) in enumerate(values.items(), start=1)]
    return server_settings(PROJECT, entries, environment or {})


def version(
    tmp_path: Path, config: str | None, request: Mapping[str, int] | None = None, **values: Any
) -> VersionSettings:
    path = tmp_path / "echo.mar"
    manifest = {"modelName": "echo", "modelVersion": "1.0", "handler": "tiny_handler.py"}
    if config is not None:
        manifest["configFile"] = "model-config.yaml"
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": manifest}))
        archive.writestr("tiny_handler.py", "def handle(data, context):\n    return []\n")
        archive.writestr("model-config.yaml", config or "")
    return version_settings(open_stored(path), server(**values), cores=6, request=request)


def setting(settings: VersionSettings, key: str) -> Setting:
    return next(one for one in settings.settings if one.key == key)


def test_every_key_has_a_value_and_an_origin() -> None:
    settings = server()
    assert settings.keys() == KNOWN_KEYS
    assert settings["job_queue_size"] == Setting("job_queue_size", "100", DEFAULT)
    assert settings["model_store"] == Setting("model_store", "/srv/project/model_store", SERVE)


def test_the_last_line_of_a_key_overrides_the_ones_before() -> None:
    entries = [Entry("job_queue_size", "1", 3), Entry("job_queue_size", "2", 8)]
    [found] = [one for one in server_settings(PROJECT, entries, {}).values() if one.key == "job_queue_size"]
    assert found == Setting("job_queue_size", "2", "config.properties:8", (ValueSource("1", "config.properties:3"),))


def test_a_variable_counts_only_where_the_file_allows_it() -> None:
    environment = {"TS_JOB_QUEUE_SIZE": "7", "TS_ALLOWED_URLS": "a", "TS_OPEN_INFERENCE_PROTOCOL": "oip"}
    closed = server(environment, job_queue_size="5", allowed_urls="b")
    assert closed["job_queue_size"].value == "5"
    assert closed["ts_open_inference_protocol"].value == "true"
    opened = server(environment, enable_envvars_config="true", job_queue_size="5", allowed_urls="b")
    overrode = (ValueSource("5", "config.properties:2"),)
    assert opened["job_queue_size"] == Setting("job_queue_size", "7", "$TS_JOB_QUEUE_SIZE", overrode)
    assert opened["allowed_urls"].value == "b"


def test_paths_are_absolute_and_references_are_filled_in() -> None:
    settings = server({"PASS": "secret"}, model_store="store", keystore_pass="$$PASS$$")
    assert settings["model_store"] == Setting("model_store", "/srv/project/store", "config.properties:1")
    assert settings["keystore_pass"].value == "secret"


def test_a_model_config_overrides_the_server_config_with_its_line(tmp_path: Path) -> None:
    settings = version(tmp_path, "batchSize: 8\nresponseTimeout: 30\n", default_response_timeout="60")
    overrode = (ValueSource("60", "config.properties:1"),)
    assert setting(settings, "responseTimeout") == Setting(
        "responseTimeout", "30", "echo.mar/model-config.yaml:2", overrode
    )
    assert setting(settings, "batchSize").origin == "echo.mar/model-config.yaml:1"
    assert setting(settings, "maxBatchDelay") == Setting("maxBatchDelay", "100", DEFAULT)


def test_a_timeout_that_a_model_config_leaves_out_is_120_over_everything(tmp_path: Path) -> None:
    settings = version(tmp_path, "batchSize: 8\n", {"responseTimeout": 9}, default_response_timeout="60")
    found = setting(settings, "responseTimeout")
    assert (found.value, found.origin) == ("120", ANY_MODEL_CONFIG)
    assert found.overrode == (ValueSource("9", "POST /models"), ValueSource("60", "config.properties:1"))


def test_a_batch_size_of_the_api_beats_the_model_config(tmp_path: Path) -> None:
    found = setting(version(tmp_path, "batchSize: 8\n", {"batchSize": 2}), "batchSize")
    assert found == Setting("batchSize", "2", "POST /models", (ValueSource("8", "echo.mar/model-config.yaml:1"),))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, ("6", "6")),
        ("minWorkers: 2\nmaxWorkers: 3\n", ("2", "3")),
        ("minWorkers: 2\n", ("6", "6")),
        ("minWorkers: 3\nmaxWorkers: 2\n", ("6", "6")),
        ("minWorkers: 0\nmaxWorkers: 2\n", ("1", "2")),
        ('minWorkers: "2"\nmaxWorkers: 3\n', ("6", "6")),
    ],
)
def test_workers_of_a_model_config_count_only_in_order(
    tmp_path: Path, config: str | None, expected: tuple[str, str]
) -> None:
    settings = version(tmp_path, config)
    assert (settings.value("minWorkers"), settings.value("maxWorkers")) == expected


def test_an_api_without_workers_starts_none(tmp_path: Path) -> None:
    assert version(tmp_path, None, {}).value("minWorkers") == "0"
    assert version(tmp_path, None, {}, default_workers_per_model="2").value("minWorkers") == "2"


def test_what_models_says_counts_where_the_model_config_is_silent(tmp_path: Path) -> None:
    models = json.dumps({"echo": {"1.0": {"maxBatchDelay": 3, "minWorkers": 2, "maxWorkers": 2, "batchSize": -1}}})
    settings = version(tmp_path, "batchSize: 8\nmaxBatchDelay: 0\n", models=models)
    assert setting(settings, "maxBatchDelay") == Setting("maxBatchDelay", "3", "models in config.properties:1")
    assert settings.value("minWorkers") == "2"
    assert settings.value("batchSize") == "8"


def test_the_committed_project_decides_everything_by_file(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", {"echo-1.0.mar": tiny_archive(tmp_path / "echo.mar")})
    from marsmith.config.server_config import read_server_config

    settings = server_settings(project, read_server_config(project), {})
    found = version_settings(open_stored(project.model_store / "echo-1.0.mar"), settings, cores=2)
    six = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout")
    assert all(setting(found, key).origin.startswith("echo-1.0.mar/model-config.yaml") for key in six)
    assert (REPOSITORY / "config.properties").exists()


def status(**values: int) -> VersionStatus:
    fields = {"min_workers": 6, "max_workers": 6, "batch_size": 1, "max_batch_delay_ms": 100, "response_timeout_s": 120}
    fields |= {"startup_timeout_s": 120, "queue_remaining": 90, "queue_pending": 10} | values
    return VersionStatus(model_name="echo", model_version="1.0", default=True, archive_url="", workers=(), **fields)


def test_differences_name_the_version_the_key_and_both_values(tmp_path: Path) -> None:
    expected = version(tmp_path, None)
    assert version_differences([expected], [status()]) == []
    assert version_differences([expected], [status(batch_size=4)]) == [
        ParameterDifference("echo:1.0", "batchSize", "1", "4")
    ]
    assert version_differences([expected], []) == [
        ParameterDifference("echo:1.0", "version", "in the store", "not registered")
    ]
    assert version_differences([], [status()]) == [
        ParameterDifference("echo:1.0", "version", "not in the store", "registered")
    ]


def test_a_key_that_was_removed_since_the_start_is_a_difference() -> None:
    now = server(model_store="store")
    started = {
        "model_store": "/srv/project/store",
        "load_models": "all",
        "debug": "true",
        "initial_worker_port": "9000",
    }
    assert server_differences(now, started) == [ParameterDifference("server", "debug", "false", "true")]
