"""TLS from the server config to every command, with a pair made by `marsmith certificate` and a real TorchServe."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import requests

from marsmith import run_state
from marsmith.cli import main
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.config.certificate import folder_of
from marsmith.errors import ConnectionFailedError
from marsmith.project import Project
from marsmith.run_state import RunState
from support.live_server import make_project, running, tiny_archive


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("tls")
    project = make_project(root / "project", {"echo.mar": tiny_archive(root / "echo.mar")})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        assert main(["certificate", "--write"]) == 0
        with running(project):
            yield project


@pytest.fixture(scope="module")
def state(project: Project) -> RunState:
    return run_state.read(project)


def certificate(project: Project) -> Path:
    return folder_of(project) / "certificate.pem"


def token(state: RunState, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {json.loads(state.key_file.read_text())[role]['key']}"}


def handshake(address: str, trusted: Path, version: ssl.TLSVersion) -> ssl.SSLSocket:
    host, _, port = address.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cafile=str(trusted))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        return context.wrap_socket(connection, server_hostname=host)


def test_the_server_is_ready_with_the_pair_and_every_api_speaks_tls(project: Project, state: RunState) -> None:
    assert {url.partition("://")[0] for url in (state.inference, state.management, state.metrics)} == {"https"}
    assert state.ca_file == certificate(project)
    trusted = str(state.ca_file)
    assert requests.get(f"{state.metrics}/metrics", verify=trusted, timeout=10).status_code == 200
    models = requests.get(f"{state.management}/models", headers=token(state, "management"), verify=trusted, timeout=10)
    assert models.json()["models"] == [{"modelName": "echo", "modelUrl": "echo.mar"}]
    for address in (state.grpc_inference, state.grpc_management):
        with handshake(address, certificate(project), ssl.TLSVersion.TLSv1_3) as secure:
            assert secure.selected_alpn_protocol() == "h2"


def test_the_client_answers_over_rest_and_grpc(project: Project) -> None:
    with Client.for_project(project) as client:
        assert client.predict("echo", b"secret").body == b"secret"
        assert client.predict_grpc("echo", b"secret").body == b"secret"
        assert [model.name for model in client.models()] == ["echo"]
        assert client.describe("echo")[0].is_ready


def test_a_client_that_does_not_trust_the_certificate_sends_nothing(state: RunState) -> None:
    with Client(
        state.inference, state.management, key_file=state.key_file, grpc=state.grpc_inference, retries=NO_RETRIES
    ) as client:
        for call in (client.predict, client.predict_grpc):
            with pytest.raises(ConnectionFailedError, match="certificate"):
                call("echo", b"secret")


def test_without_tls_an_https_port_answers_nothing_but_that(state: RunState) -> None:
    plain = state.inference.replace("https://", "http://")
    reply = requests.post(f"{plain}/predictions/echo", data=b"secret", headers=token(state, "inference"), timeout=10)
    assert b"only accepts HTTPS" in reply.content
    assert b"secret" not in reply.content


def test_rest_speaks_tls_1_2_and_of_torchserve_nothing_else(project: Project, state: RunState) -> None:
    for address in (state.inference, state.management):
        handshake(address, certificate(project), ssl.TLSVersion.TLSv1_2).close()
    with pytest.raises(ssl.SSLError):
        handshake(state.management, certificate(project), ssl.TLSVersion.TLSv1_3)
    # In front of the inference API there may be Envoy.
    with nullcontext() if state.backend else pytest.raises(ssl.SSLError):
        handshake(state.inference, certificate(project), ssl.TLSVersion.TLSv1_3).close()


def test_the_commands_work_as_they_do_without_tls(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "body.bin").write_bytes(b"\x00\x01")
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"][0]["model"] == "echo"
    for flags in ([], ["--grpc"]):
        assert main(["predict", "echo", str(tmp_path / "body.bin"), *flags]) == 0
    tiny_archive(project.model_store / "echo-2.0.mar", version="2.0")
    assert main(["register", "echo-2.0.mar"]) == 0
    assert main(["set-default", "echo", "2.0"]) == 0
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    assert "2.0" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_trusts_the_server_with_the_certificate_alone(project: Project, state: RunState) -> None:
    url = state.inference.replace("127.0.0.1", "localhost") + "/ping"
    line = ["curl", "-sS", "--cacert", str(certificate(project)), "-H", _header(state), url]
    reply = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(reply.stdout) == {"status": "Healthy"}
    refused = subprocess.run(["curl", "-sS", url], capture_output=True, text=True, check=False)
    assert refused.returncode == 60


def test_a_version_is_deployed_and_put_under_load_over_tls(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tiny_archive(tmp_path / "echo-3.0.mar", version="3.0")
    assert main(["deploy", str(second), "--watch-s", "0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == "deployed"
    (tmp_path / "body.bin").write_bytes(b"\x00\x01")
    load = [
        "bench",
        "echo",
        "--clients",
        "1",
        "--seconds",
        "0.3",
        "--warm-up",
        "0",
        "--input",
        str(tmp_path / "body.bin"),
    ]
    assert main(load) == 0
    assert main([*load, "--grpc"]) == 0


def _header(state: RunState) -> str:
    return f"Authorization: {token(state, 'inference')['Authorization']}"


def test_the_key_can_be_read_by_its_owner_only(project: Project) -> None:
    key = folder_of(project) / "key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert folder_of(project).stat().st_mode & 0o777 == 0o700
    assert b"BEGIN PRIVATE KEY" in key.read_bytes()


def test_a_new_pair_is_made_only_when_asked_for(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    before = certificate(project).read_bytes()
    assert main(["certificate"]) == 2
    assert "exist already" in capsys.readouterr().err
    assert certificate(project).read_bytes() == before


def test_the_help_of_the_command_needs_no_cryptography() -> None:
    probe = "import sys; from marsmith.cli import main\ntry: main(['certificate', '--help'])\nexcept SystemExit: pass\n"
    probe += "assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)
