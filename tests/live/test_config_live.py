"""Who overrides whom, asked of a real TorchServe: what `marsmith config` says is what describe says."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from marsmith.archive.store import open_stored
from marsmith.client import Client
from marsmith.config.effective import VersionSettings, server_settings, version_settings
from marsmith.config.properties import ENCODING, as_mapping, parse_properties
from marsmith.config.server_config import read_server_config
from marsmith.machine import usable_cores
from marsmith.project import Project
from marsmith.server.differences import server_differences, version_differences
from support.live_server import ECHO, make_project, running

FULL = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 2, "maxBatchDelay": 7, "responseTimeout": 20}
FULL |= {"startupTimeout": 60, "jobQueueSize": 5}
# Every trap at once: 0 for a delay, a text for a number, workers out of order.
CROOKED = {"minWorkers": 0, "batchSize": 0, "maxBatchDelay": 0, "responseTimeout": "20", "jobQueueSize": 0}
LISTED = {
    "batchSize": 9,
    "maxBatchDelay": 17,
    "responseTimeout": 99,
    "startupTimeout": 98,
    "minWorkers": 1,
    "maxWorkers": 1,
}
REQUEST = {"batchSize": 4, "maxBatchDelay": 13, "responseTimeout": 11, "startupTimeout": 12, "initialWorkers": 0}

# Loaded at the start, with the model config that each archive has.
AT_START: dict[str, Mapping[str, object] | None] = {"full": FULL, "bare": None}
# Registered through the API, each with REQUEST.
LATER: dict[str, Mapping[str, object] | None] = {
    "late_full": FULL,
    "late_part": {"batchSize": 2, "maxBatchDelay": 7},
    "late_bare": None,
    "late_listed": None,
    # A start leaves it out.
    "crooked": CROOKED,
}


def write(store: Path, name: str, config: Mapping[str, object] | None) -> None:
    model = {"modelName": name, "modelVersion": "1.0", "handler": "tiny_handler.py"}
    if config is not None:
        model["configFile"] = "model-config.yaml"
    with zipfile.ZipFile(store / f"{name}-1.0.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.writestr("tiny_handler.py", ECHO)
        if config is not None:
            archive.writestr("model-config.yaml", json.dumps(config))


def settings_of(
    project: Project, names: Mapping[str, object], request: Mapping[str, int] | None
) -> list[VersionSettings]:
    server = server_settings(project, read_server_config(project), os.environ)
    stored = [open_stored(project.model_store / f"{name}-1.0.mar") for name in names]
    return [version_settings(one, server, cores=usable_cores(), request=request) for one in stored]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = make_project(
        tmp_path_factory.mktemp("config") / "p",
        load_models=",".join(f"{name}-1.0.mar" for name in AT_START),
        models=json.dumps({name: {"1.0": LISTED} for name in ("full", "crooked", "bare", "late_full", "late_listed")}),
        default_response_timeout="33",
        default_startup_timeout="44",
        job_queue_size="50",
    )
    for name, config in {**AT_START, **LATER}.items():
        write(project.model_store, name, config)
    with running(project):
        yield project


def test_the_effective_configuration_is_what_the_server_says(project: Project) -> None:
    expected = settings_of(project, AT_START, None)
    with Client.for_project(project) as client:
        live = [status for name in AT_START for status in client.describe(name)]
        assert version_differences(expected, live) == []
        for name in LATER:
            client.register(
                f"{name}-1.0.mar",
                initial_workers=REQUEST["initialWorkers"],
                batch_size=REQUEST["batchSize"],
                max_batch_delay_ms=REQUEST["maxBatchDelay"],
                response_timeout_s=REQUEST["responseTimeout"],
                startup_timeout_s=REQUEST["startupTimeout"],
            )
        live = [status for name in LATER for status in client.describe(name)]
        assert version_differences(settings_of(project, LATER, REQUEST), live) == []
    by_name = {status.model_name: status for status in live}
    # The batch of the API beats the model config, and the timeouts of the model config beat the API.
    assert (by_name["late_full"].batch_size, by_name["late_full"].max_batch_delay_ms) == (4, 13)
    assert (by_name["late_full"].response_timeout_s, by_name["late_full"].min_workers) == (20, 1)
    assert by_name["late_part"].response_timeout_s == 120
    assert (by_name["late_bare"].response_timeout_s, by_name["late_bare"].min_workers) == (11, 0)
    assert by_name["late_listed"].response_timeout_s == 99


def test_a_version_that_was_scaled_and_a_file_that_was_edited_are_shown(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from argparse import ArgumentParser

    from marsmith.cli.config import configure, run

    monkeypatch.setenv("MARSMITH_PROJECT", str(project.root))
    parser = ArgumentParser()
    configure(parser)
    assert run(parser.parse_args(["full"])) == 0
    assert capsys.readouterr().out.endswith("the running server agrees\n")
    with Client.for_project(project) as client:
        client.scale("full", min_workers=0, max_workers=1)
    assert run(parser.parse_args(["full", "--json"])) == 1
    [difference] = json.loads(capsys.readouterr().out)["differences"]
    assert difference == {"what": "full:1.0", "key": "minWorkers", "expected": "1", "live": "0"}

    started_with = as_mapping(parse_properties((project.run / "config.properties").read_text(encoding=ENCODING)))
    now = server_settings(project, read_server_config(project), os.environ)
    assert server_differences(now, started_with) == []
    with project.server_config.open("a") as file:
        file.write("job_queue_size=51\n")
    now = server_settings(project, read_server_config(project), os.environ)
    [changed] = server_differences(now, started_with)
    assert (changed.key, changed.expected, changed.live) == ("job_queue_size", "51", "50")
