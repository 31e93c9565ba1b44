"""What clients and the load driver make of the replies of real handlers, over REST and over gRPC."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marsmith import AsyncClient, run_state
from marsmith.cli import main
from marsmith.client import tokens
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.errors import RequestRejectedError
from marsmith.inputs import Input
from marsmith.loadtest.bench import Load, grpc_target, http_target, predict_each, run_load
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState
from support.host_server import SERVERS
from support.long_tests import mostly_long
from support.reply_server import PICTURE, asked, reply_server

pytestmark = pytest.mark.tensors

Ask = Callable[[str, bytes], Any]
V1 = json.dumps({"instances": [{"data": "refuse"}]}).encode()
V2 = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["refuse"]}]}).encode()


@pytest.fixture(scope="module", params=mostly_long("host", SERVERS, ["TorchServe"]))
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with reply_server(tmp_path_factory.mktemp("replies"), request.param) as project:
        yield project


@pytest.fixture(scope="module")
def state(project: Project) -> RunState:
    return run_state.read(project)


@pytest.fixture(autouse=True)
def in_the_project(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, str(project.root))


@pytest.fixture(params=["REST", "gRPC", "gRPC on a loop"])
def ask(request: pytest.FixtureRequest, project: Project) -> Ask:
    """Ask a model, over each transport."""

    def blocking(model: str, body: bytes) -> Any:
        with Client.for_project(project, retries=NO_RETRIES) as client:
            if request.param == "REST":
                return client.predict(model, body, content_type="application/json" if body[:1] == b"{" else None)
            return client.predict_grpc(model, body)

    def on_a_loop(model: str, body: bytes) -> Any:
        async def run() -> Any:
            async with AsyncClient.for_project(project, retries=NO_RETRIES) as client:
                return await client.predict_grpc(model, body)

        return asyncio.run(run())

    return on_a_loop if request.param == "gRPC on a loop" else blocking


@pytest.mark.parametrize("body", [b"refuse", V1, V2], ids=["plain", "KServe v1", "KServe v2"])
def test_what_our_handlers_refuse_is_refused_over_every_transport_and_in_every_protocol(ask: Ask, body: bytes) -> None:
    with pytest.raises(RequestRejectedError, match=r"not this one \(422 UnprocessableContent\)") as caught:
        ask("ours", body)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    "reply",
    [
        {"error": "not this one"},
        {"code": 400, "type": "Refused", "message": "not this one"},
        {"id": "1", "model_name": "stranger", "error": "not this one"},
    ],
    ids=["KServe v1", "TorchServe", "KServe v2"],
)
def test_what_the_handlers_of_others_refuse_is_told_by_the_form_of_their_errors(
    ask: Ask, reply: dict[str, object]
) -> None:
    with pytest.raises(RequestRejectedError, match="not this one") as caught:
        ask("stranger", asked(400, reply))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "reply",
    [
        {"error": 0.9, "fine": 0.1},
        {"error": None},
        {"error": "in line 3", "line": 3},
        {"code": 404, "type": "shoe", "message": "a boot"},
        {"code": 404, "type": "Shoe", "message": "a boot", "score": 0.5},
        {"code": 204, "type": "Shoe", "message": "a boot"},
        {"error": "a word", "outputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
        [{"error": "not this one"}],
    ],
)
def test_an_answer_that_only_looks_like_an_error_is_an_answer(ask: Ask, reply: object) -> None:
    assert ask("stranger", asked(200, reply)).json() == reply


@pytest.mark.parametrize("make", [http_target, grpc_target])
def test_the_load_driver_counts_a_refusal_as_what_it_is(state: RunState, make: Callable[..., Any]) -> None:
    bodies = [b"fine", b"refuse", V2]
    inputs = [Input("x", None, body, "application/json" if body[:1] == b"{" else "text/plain") for body in bodies]
    answers = predict_each(make(state, "ours", None, inputs))
    assert [answer.verdict for answer in answers] == ["ok", "422", "422"]
    assert json.loads(answers[0].body) == {"text": "fine"}


def test_bench_over_grpc_fails_when_requests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "refused.txt").write_text("refuse")
    line = ["bench", "ours", "--grpc", "--clients", "2", "--seconds", "0.5", "--warm-up", "0"]
    assert main([*line, "--input", str(tmp_path / "refused.txt"), "--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert result["errors"] == {"422": result["requests"]}


@pytest.mark.parametrize("make", [http_target, grpc_target])
def test_a_load_that_outlives_its_token_goes_on_with_the_next(state: RunState, make: Callable[..., Any]) -> None:
    """A rotated token is as invalid as one that has expired."""
    if state.inference == state.management:
        pytest.skip("a host's tokens are valid as long as it runs")
    target = make(state, "ours", None, [Input("x", None, b"fine", "text/plain")])
    over, rotated = threading.Event(), []

    def rotate() -> None:
        while not over.wait(0.3):
            rotated.append(tokens.token(state, "inference", rotate=True))

    rotating = threading.Thread(target=rotate)
    rotating.start()
    try:
        measured = run_load(target, Load(clients=4, seconds=3, warm_up_s=0))
    finally:
        over.set()
        rotating.join()
    assert len(rotated) > 1
    assert measured.errors == {}
    # The load began with a token that is not good any more: one after the other, a second load begins with a good one.
    assert run_load(target, Load(clients=1, seconds=0.1, warm_up_s=0)).errors == {}


def test_no_proxy_stands_before_a_server_on_this_machine(
    project: Project, state: RunState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def on_a_loop() -> None:
        async with AsyncClient.for_project(project, retries=NO_RETRIES) as client:
            for predict in (client.predict, client.predict_grpc):
                assert (await predict("ours", b"fine")).json() == {"text": "fine"}

    with Client.for_project(project, retries=NO_RETRIES) as client:
        for predict in (client.predict, client.predict_grpc):
            assert predict("ours", b"fine").json() == {"text": "fine"}
    asyncio.run(on_a_loop())
    target = [Input("x", None, b"fine", "text/plain")]
    for make in (http_target, grpc_target):
        assert predict_each(make(state, "ours", None, target))[0].is_ok
    (tmp_path / "in.txt").write_text("fine")
    for line in (
        ["predict", "ours", str(tmp_path / "in.txt")],
        ["predict", "ours", str(tmp_path / "in.txt"), "--grpc"],
    ):
        assert main(line) == 0


def marsmith(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command with stdout redirected."""
    return subprocess.run([sys.executable, "-m", "marsmith", *arguments], capture_output=True, check=False)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for text in ("picture", "bytes", "latin", "text", "refuse"):
        (tmp_path / f"{text}.txt").write_text(text)
    return tmp_path


@pytest.mark.parametrize("flags", [(), ("--grpc",)], ids=["REST", "gRPC"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("picture", PICTURE), ("bytes", b"\x00\x01\xff"), ("latin", b"caf\xe9"), ("text", "caf\u00e9".encode())],
)
def test_the_bytes_of_a_reply_go_out_as_they_came(
    inputs: Path, name: str, content: bytes, flags: tuple[str, ...]
) -> None:
    asked_for = [str(inputs / f"{name}.txt"), *flags]
    done = marsmith("predict", "ours", *asked_for)
    assert (done.returncode, done.stdout) == (0, content)
    kept = marsmith("predict", "ours", *asked_for, "-o", str(inputs / "out"))
    assert (kept.returncode, kept.stdout, (inputs / "out").read_bytes()) == (0, b"", content)


def test_bytes_in_json_are_base64_with_their_type(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "ours", str(inputs / "picture.txt"), str(inputs / "latin.txt"), "--json"]) == 0
    picture, latin = json.loads(capsys.readouterr().out)
    assert (picture["content_type"], base64.b64decode(picture["reply_base64"])) == ("image/png", PICTURE)
    assert latin["reply"] == "caf\u00e9"


def test_the_replies_of_several_inputs_are_kept_in_a_folder(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = [str(inputs / f"{name}.txt") for name in ("picture", "refuse", "text")]
    assert main(["predict", "ours", *several]) == 1
    shown = capsys.readouterr()
    assert "11 bytes of image/png, not shown" in shown.out
    assert "-o FOLDER" in shown.err
    assert main(["predict", "ours", *several, "-o", str(inputs / "replies")]) == 1
    assert "not this one" in capsys.readouterr().err
    found = {path.name: path.read_bytes() for path in (inputs / "replies").iterdir()}
    assert found == {"picture.png": PICTURE, "text.txt": "caf\u00e9".encode()}


def test_run_gives_the_same_bytes_without_a_server(project: Project, inputs: Path) -> None:
    archive = str(project.model_store / "ours.mar")
    done = marsmith("run", archive, str(inputs / "picture.txt"))
    assert (done.returncode, done.stdout) == (0, PICTURE)
    several = [str(inputs / "picture.txt"), str(inputs / "text.txt")]
    assert marsmith("run", archive, *several, "-o", str(inputs / "replies")).returncode == 0
    assert (inputs / "replies" / "picture.png").read_bytes() == PICTURE
