"""What `marsmith lint` calls an error is one: a real frontend with such a file, and what becomes of it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from marsmith.config.lint import lint_paths
from marsmith.config.properties import render_properties
from marsmith.server.java import find_java
from marsmith.server.launch import command, torchserve_home
from support.live_server import free_addresses, tiny_archive
from support.long_tests import long, mostly_long
from support.projects import REPOSITORY

METRICS = (REPOSITORY / "config" / "metrics.yaml").read_text()
START_TIMEOUT_S = 240


@dataclass(frozen=True)
class Frontend:
    """A frontend that was started, and where it lives."""

    folder: Path
    config: dict[str, str]
    process: subprocess.Popen[bytes]

    def get(self, api: str, path: str, role: str | None = None) -> requests.Response:
        headers = {}
        if role:
            keys = json.loads((self.folder / "key_file.json").read_text())
            headers = {"Authorization": f"Bearer {keys[role]['key']}"}
        return requests.get(f"{self.config[f'{api}_address']}{path}", headers=headers, timeout=START_TIMEOUT_S)

    def answers(self) -> bool:
        """Wait until it listens, or has ended."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if self._listens():
                return True
            time.sleep(0.2)
        return False

    def _listens(self) -> bool:
        try:
            self.get("metrics", "/metrics")
        except requests.ConnectionError:
            return False
        return True

    def lint(self) -> set[str]:
        files = [path for path in self.folder.iterdir() if path.suffix in {".properties", ".yaml"}]
        return {item.finding.rule for item in lint_paths(files, self.folder)}


@contextmanager
def frontend(folder: Path, **properties: str) -> Iterator[Frontend]:
    """Start TorchServe's frontend with these keys of the server config, as they are, and end it."""
    java, home = find_java(), torchserve_home()
    assert home is not None
    for name in ("store", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    config = {**free_addresses(), "model_store": str(folder / "store"), "metrics_mode": "prometheus", **properties}
    file = folder / "config.properties"
    file.write_text(render_properties(config))
    environment = {**os.environ, "LOG_LOCATION": str(folder / "logs"), "METRICS_LOCATION": str(folder / "logs")}
    environment |= {"TEMP": str(folder / "tmp"), "TMPDIR": str(folder / "tmp")}
    with (folder / "console.log").open("wb") as console:
        line = command(java, home, file, config, folder / "tmp")
        process = subprocess.Popen(line, cwd=folder, env=environment, stdout=console, stderr=subprocess.STDOUT)
    try:
        yield Frontend(folder, config, process)
    finally:
        process.terminate()
        process.wait(120)


def write_metrics(folder: Path, text: str) -> dict[str, str]:
    (folder / "metrics.yaml").write_text(text)
    return {"metrics_config": str(folder / "metrics.yaml")}


# What TorchServe 0.12.0 does never changes: `make test` starts it once for each kind of rule.
STOPS = ("MS106", {"inference_address": "http://127.0.0.1:18080/"})
WRONG_NUMBER = ("MS104", {"job_queue_size": "1e3", "load_models": "echo.mar"})


@pytest.mark.parametrize(
    ("rule", "properties"),
    mostly_long(
        "servers",
        [
            STOPS,
            ("MS106", {"management_address": "http://[::1]:18081"}),
            ("MS126", {"keystore_pass": "$$MARSMITH_TEST_IS_NOT_SET$$"}),
            ("MS128", {"models": "{"}),
            ("MS103", {"job_queue_size": "100 ", "load_models": "echo.mar"}),
            WRONG_NUMBER,
        ],
        [STOPS, WRONG_NUMBER],
    ),
)
def test_the_frontend_does_not_start(tmp_path: Path, rule: str, properties: dict[str, str]) -> None:
    (tmp_path / "store").mkdir()
    tiny_archive(tmp_path / "store" / "echo.mar")
    with frontend(tmp_path, **properties) as server:
        assert server.process.wait(START_TIMEOUT_S) == 1
        assert rule in server.lint()


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("MS407", "marsmith_batch_items", "marsmith-batch"),
        pytest.param("MS405", "marsmith_infer_seconds", "marsmith_decode_seconds", marks=long("servers")),
    ],
)
def test_the_frontend_does_not_start_with_such_metrics(tmp_path: Path, rule: str, old: str, new: str) -> None:
    with frontend(tmp_path, **write_metrics(tmp_path, METRICS.replace(old, new))) as server:
        assert server.process.wait(START_TIMEOUT_S) == 1
        assert rule in server.lint()


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("MS401", "  gauge:", "  gauges:"),
        pytest.param("MS402", "unit: ms\n", "units: ms\n", marks=long("servers")),
    ],
)
def test_there_are_no_metrics_at_all(tmp_path: Path, rule: str, old: str, new: str) -> None:
    with frontend(tmp_path, **write_metrics(tmp_path, METRICS.replace(old, new))) as server:
        assert server.answers()
        assert server.get("metrics", "/metrics").text == ""
        assert rule in server.lint()


def test_a_metric_of_the_frontend_with_other_dimensions_is_lost(tmp_path: Path) -> None:
    text = METRICS.replace("dimensions: [*level, *hostname]", "dimensions: [*level]", 1)
    with frontend(tmp_path, disable_token_authorization="true", **write_metrics(tmp_path, text)) as server:
        assert server.answers()
        server.get("inference", "/ping")
        late = time.monotonic() + START_TIMEOUT_S
        while "Incorrect number of labels" not in (tmp_path / "console.log").read_text():
            assert time.monotonic() < late
            time.sleep(0.1)
        assert "MS406" in server.lint()


def test_without_prometheus_mode_the_metrics_api_is_empty_and_yes_is_no(tmp_path: Path) -> None:
    with frontend(tmp_path, metrics_mode="log", enable_model_api="yes", disable_token_authorization="true") as server:
        assert server.answers()
        assert server.get("metrics", "/metrics").text == ""
        refused = requests.post(f"{server.config['management_address']}/models?url=a.mar", timeout=10)
        assert refused.status_code == 405
        assert {"MS118", "MS104", "MS112"} <= server.lint()


@long("servers")
def test_a_model_whose_name_begins_with_token_cannot_be_managed(tmp_path: Path) -> None:
    with frontend(tmp_path) as server:
        assert server.answers()
        assert server.get("management", "/models/other", "management").status_code == 404
        assert server.get("management", "/models/tokenizer", "management").status_code == 400
        assert server.get("management", "/models/m/token-1", "management").status_code == 400


def test_no_management_request_is_accepted_at_a_port_that_both_apis_share(tmp_path: Path) -> None:
    addresses = free_addresses()
    addresses["management_address"] = addresses["inference_address"]
    with frontend(tmp_path, **addresses) as server:
        assert server.answers()
        assert server.get("inference", "/ping", "inference").status_code == 200
        for role in ("inference", "management", "API"):
            assert server.get("management", "/models", role).status_code == 400
        assert "MS113" in server.lint()
