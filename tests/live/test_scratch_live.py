"""A scratch server speaks what the project speaks: over TLS too, whatever the project's certificate is good for."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.cli import main
from marsmith.client import Client
from marsmith.config.properties import as_mapping, parse_properties
from marsmith.project import Project
from marsmith.server import scratch as scratch_server
from marsmith.server.front.ports import free_ports
from marsmith.server.scratch import scratch_config
from support.live_server import make_project, tiny_archive
from support.long_tests import long

SLOW = "import time\ndef handle(data, context):\n    return data and [time.sleep(0.005) or b'x' for _ in data]\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """With TLS on every address of the machine, and a certificate that is good for another host too."""
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.root)
    assert main(["certificate", "--write", "--host", "models.example.org"]) == 0
    return project


def config_of(project: Project) -> dict[str, str]:
    return as_mapping(parse_properties(project.server_config.read_text()))


def test_the_config_keeps_to_the_loopback_and_to_what_the_project_speaks(project: Project, tmp_path: Path) -> None:
    theirs = config_of(project) | {
        "inference_address": "https://0.0.0.0:8443",
        "grpc_inference_address": "0.0.0.0",
        "initial_worker_port": "9000",
        "model_snapshot": "{}",
        "enable_envvars_config": "true",
    }
    scratch = Project(tmp_path / "scratch")
    (scratch.root).mkdir()
    own = scratch_config(scratch, theirs)
    assert own["inference_address"].startswith("https://127.0.0.1:")
    assert own["metrics_address"].startswith("https://127.0.0.1:")
    assert own["grpc_inference_address"] == own["grpc_management_address"] == "127.0.0.1"
    assert own["enable_grpc_ssl"] == "true"
    assert own["certificate_file"].startswith(str(scratch.root))
    assert own["disable_token_authorization"] == theirs["disable_token_authorization"]
    assert own["enable_envvars_config"] == "false"
    assert not {"initial_worker_port", "model_snapshot"} & own.keys()
    ports = {
        own[key].rpartition(":")[2] for key in own if key.endswith(("_address", "_port")) and own[key] != "127.0.0.1"
    }
    assert len(ports) == 5


def test_without_tls_no_certificate_is_made(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    own = scratch_config(Project(tmp_path / "scratch"), config_of(project))
    assert "certificate_file" not in own
    assert own["inference_address"].startswith("http://127.0.0.1:")


@pytest.mark.live
def test_a_scratch_server_of_a_project_with_tls_answers_over_rest_and_grpc(project: Project, tmp_path: Path) -> None:
    archive = tiny_archive(tmp_path / "echo.mar")
    with scratch_server.scratch_server(project, {"echo.mar": archive}) as scratch:
        state = run_state.read(scratch)
        assert state.inference.startswith("https://127.0.0.1:")
        assert state.tokens
        with Client.for_project(scratch) as client:
            assert client.predict("echo", b"abc").body == b"abc"
            assert client.predict_grpc("echo", b"abc").body == b"abc"
    assert not scratch.root.exists()


@long("servers")
@pytest.mark.live
def test_tune_works_in_a_project_with_tls(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tiny_archive(tmp_path / "slow.mar", name="slow", handler=SLOW)
    (tmp_path / "input.bin").write_bytes(b"x")
    options = ["--p99-ms", "1000", "--rps", "5", "--minutes", "0.05", "--cores", "1", "--trials", "1"]
    code = main(["tune", str(archive), *options, "--input", str(tmp_path / "input.bin")])
    told = capsys.readouterr()
    assert "at 5 requests/s" in told.out, told.err
    assert "0 requests failed: held" in told.out
    assert code == 0


@pytest.mark.live
def test_a_port_that_was_taken_meanwhile_is_exchanged_for_another(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    given: list[list[int]] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def ports(count: int) -> list[int]:
            found = free_ports(count)
            given.append(found if given else [taken.getsockname()[1], *found[1:]])
            return list(given[-1])

        monkeypatch.setattr(scratch_server, "free_ports", ports)
        with scratch_server.scratch_server(project) as scratch:
            assert run_state.read(scratch).ready
    assert len(given) == 2
