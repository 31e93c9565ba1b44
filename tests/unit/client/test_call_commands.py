from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from marsmith.client.curl import Caller, curl_command, grpc_command
from marsmith.inputs import Input
from marsmith.project import Project
from marsmith.run_state import RunState


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


CALLER = Caller(("/p q/.venv/bin/marsmith",), Project(Path("/p q")))
PHOTO = Input("cat.png", Path("/photos/a cat.png"), b"", "image/png")


def _state(*, tokens: bool) -> RunState:
    return RunState(1, 0.0, "http://127.0.0.1:8080", "", "", "127.0.0.1:7070", "", Path("/p q/.marsmith/run"), tokens)


def test_the_curl_line_carries_project_and_token_into_another_shell() -> None:
    assert curl_command(CALLER, _state(tokens=True), "m", "2.0", PHOTO) == (
        "curl -sS -H \"Authorization: Bearer $(MARSMITH_PROJECT='/p q' '/p q/.venv/bin/marsmith' token inference)\" "
        "-H 'Content-Type: image/png' --data-binary '@/photos/a cat.png' http://127.0.0.1:8080/predictions/m/2.0"
    )


def test_without_tokens_no_header_is_sent() -> None:
    line = curl_command(CALLER, _state(tokens=False), "m", None, PHOTO)
    assert line is not None
    assert "Authorization" not in line
    assert shlex.split(line)[-1] == "http://127.0.0.1:8080/predictions/m"


def test_where_the_environment_names_a_proxy_curl_is_told_to_pass_it_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    line = curl_command(CALLER, _state(tokens=False), "m", None, PHOTO)
    assert line is not None
    assert line.startswith("curl -sS --noproxy '*' ")
    elsewhere = replace(_state(tokens=False), inference="http://models.example.org:8080")
    assert "--noproxy" not in str(curl_command(CALLER, elsewhere, "m", None, PHOTO))


def test_what_came_from_a_stream_cannot_be_named() -> None:
    stream = Input("-", None, b"x", "image/png")
    assert curl_command(CALLER, _state(tokens=True), "m", None, stream) is None
    assert grpc_command(CALLER, "m", None, stream) is None


def test_the_grpc_line_is_our_own_command() -> None:
    line = grpc_command(CALLER, "m", "1.0", PHOTO)
    assert line is not None
    assert shlex.split(line)[1:] == ["/p q/.venv/bin/marsmith", "predict", "--grpc", "m:1.0", "/photos/a cat.png"]


def test_over_tls_curl_is_told_whom_to_trust() -> None:
    state = replace(_state(tokens=False), inference="https://127.0.0.1:8080", ca_file=Path("/p q/certificate.pem"))
    line = curl_command(CALLER, state, "m", None, PHOTO)
    assert line is not None
    assert line.startswith("curl -sS --cacert '/p q/certificate.pem' ")


@pytest.mark.parametrize(
    ("folder", "script", "expected"),
    [
        ("plain", True, "{bin}/marsmith"),
        ("plain", False, "{bin}/python -m marsmith"),
        ("a b", True, "{bin}/python -m marsmith"),
    ],
)
def test_a_script_in_a_path_with_a_space_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, script: bool, expected: str
) -> None:
    bin_folder = tmp_path / folder
    bin_folder.mkdir()
    if script:
        (bin_folder / "marsmith").touch()
    monkeypatch.setattr("sys.executable", str(bin_folder / "python"))
    caller = Caller.here(Project(tmp_path))
    assert shlex.split(caller.marsmith("stop"))[1:] == [
        part.format(bin=bin_folder) for part in [*expected.split(" "), "stop"]
    ]
