"""What the client decides without a server: addresses, what a reply means, and what the verbs print."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith import AsyncClient
from marsmith.cli import main
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.client.failures import (
    failure,
    is_authorization_failure,
    problem_in,
    reply_of,
    restore_status,
    was_not_taken,
)
from marsmith.client.http import HttpReply, HttpRequest
from marsmith.client.management import Registration, parse_version
from marsmith.errors import (
    AuthorizationError,
    ClientError,
    ConnectionFailedError,
    DeadlineError,
    FormatError,
    NotFoundError,
    RequestRejectedError,
    UsageError,
)
from marsmith.inputs import guess_content_type, read_input

BASE = "http://127.0.0.1:8081"


@settings(max_examples=100)
@given(
    st.lists(st.text() | st.sampled_from([".", "..", "a/b", "token"]), max_size=3),
    st.dictionaries(st.text(min_size=1), st.text(), max_size=3),
)
def test_no_segment_or_parameter_can_leave_its_place(segments: list[str], parameters: dict[str, str]) -> None:
    address = urlsplit(HttpRequest("GET", BASE, ("models", *segments), parameters).address)
    assert address.netloc == "127.0.0.1:8081"
    assert [unquote(part) for part in address.path.split("/")[2:]] == segments
    assert address.fragment == ""
    assert not {".", ".."} & set(address.path.split("/"))


def test_a_path_never_holds_the_text_that_torchserve_takes_for_its_token_api() -> None:
    assert HttpRequest("GET", BASE, ("models", "tokenizer", "token")).address == f"{BASE}/models/%74okenizer/%74oken"
    assert HttpRequest("GET", BASE, ("token",), {"type": "inference"}).address == f"{BASE}/token?type=inference"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (reply_of(400, "InvalidKeyException", "Token Authorization failed."), AuthorizationError),
        (reply_of(400, "BadRequestException", "no"), RequestRejectedError),
        (reply_of(404, "ModelNotFoundException", "Model not found: m"), NotFoundError),
        (reply_of(404, "ModelVersionNotFoundException", "no version"), NotFoundError),
        (reply_of(404, "NoSuchImage", "the handler says so"), RequestRejectedError),
        (reply_of(408, "RequestTimeoutException", "late"), DeadlineError),
        (reply_of(503, "InternalServerException", "Prediction failed"), RequestRejectedError),
        (HttpReply(502, "text/html", {}, b"<h1>Bad gateway</h1>"), RequestRejectedError),
    ],
)
def test_a_reply_that_is_no_answer_has_a_type(reply: HttpReply, expected: type[ClientError]) -> None:
    error = failure(reply, "model m")
    assert type(error) is expected
    if isinstance(error, RequestRejectedError):
        assert (error.status, error.body) == (reply.status, reply.body)


def test_an_answer_is_no_failure() -> None:
    assert failure(HttpReply(200, "application/json", {}, b"{}"), "model m") is None


def test_only_the_servers_own_words_are_taken_for_its_own() -> None:
    words = "has no worker to serve inference request"
    assert was_not_taken(reply_of(503, "ServiceUnavailableException", f"Model {words}. Please"))
    assert not was_not_taken(reply_of(503, "InternalServerException", words))
    assert not was_not_taken(HttpReply(200, "", {}, words.encode()))
    assert not is_authorization_failure(HttpReply(200, "", {}, reply_of(400, "InvalidKeyException", "").body))


def test_the_problem_of_a_handler_carries_the_request_id_as_well() -> None:
    body = b'{"code": 415, "type": "a", "message": "b", "request_id": "c"}'
    assert restore_status(HttpReply(200, "", {}, body)).status == 415


@pytest.mark.parametrize(
    "body",
    [
        b'{"code": 404, "type": "a"}',
        b'{"code": 404, "type": "a", "message": "b", "more": 1}',
        b'{"code": "404", "type": "a", "message": "b"}',
        b'{"code": true, "type": "a", "message": "b"}',
        b'{"code": 404, "type": 1, "message": "b"}',
        b'[{"code": 404, "type": "a", "message": "b"}]',
        b'{"code": 404',
        b"\xff\xfe",
        b"",
    ],
)
def test_only_the_exact_form_of_a_problem_is_one(body: bytes) -> None:
    assert problem_in(body) is None
    reply = HttpReply(200, "", {}, body)
    assert restore_status(reply) is reply


def test_the_status_that_grpc_drops_is_restored_from_the_body() -> None:
    body = reply_of(413, "ContentTooLarge", "20 MB").body
    assert restore_status(HttpReply(200, "", {}, body)).status == 413
    fine = HttpReply(200, "", {}, reply_of(200, "Fine", "all good").body)
    assert restore_status(fine) is fine


def test_a_registration_sends_only_what_is_given() -> None:
    assert Registration("m-1.0.mar").parameters() == {"url": "m-1.0.mar", "synchronous": "true"}
    given_all = Registration("m-1.0.mar", 2, False, 8, 1, 30, 60).parameters()
    assert given_all == {
        "url": "m-1.0.mar",
        "synchronous": "false",
        "initial_workers": "2",
        "batch_size": "8",
        "max_batch_delay": "1",
        "response_timeout": "30",
        "startup_timeout": "60",
    }


def test_a_reply_of_describe_that_lacks_a_field_is_named() -> None:
    with pytest.raises(FormatError, match="jobQueueStatus"):
        parse_version({"modelName": "m"}, "1.0")


def test_a_reply_that_is_not_json_says_so() -> None:
    with pytest.raises(FormatError, match="not JSON"):
        HttpReply(200, "", {}, b"<html>").json()


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1:1", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with Client(url, None) as client, pytest.raises(ConnectionFailedError, match="not the address"):
        client.predict("m", b"")


def test_without_a_management_address_nothing_is_managed() -> None:
    with Client(BASE, None) as client, pytest.raises(UsageError, match="management API"):
        client.models()
    with Client(BASE, None) as client, pytest.raises(UsageError, match="gRPC"):
        client.predict_grpc("m", b"")


def test_an_input_is_a_file_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\x89PNG\r\n\x1a\n...")
    found = read_input("a.jpg", tmp_path)
    assert (found.name, found.path, found.body[:4]) == ("a.jpg", tmp_path / "a.jpg", b"\x89PNG")
    # The content counts, not the name.
    assert found.content_type == "image/png"


def test_a_file_that_is_missing_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "chelsea.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"chelsae\.png; did you mean 'chelsea\.png'"):
        read_input("chelsae.png", tmp_path)


def test_a_file_of_a_package_is_read_without_importing_it(tmp_path: Path) -> None:
    import subprocess
    import sys

    probe = (
        "import sys; from pathlib import Path; from marsmith.inputs import read_input\n"
        "found = read_input('package:skimage/data/chelsea.png', Path('/'))\n"
        "assert found.content_type == 'image/png' and found.body[1:4] == b'PNG'\n"
        "assert 'skimage' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)


@pytest.mark.parametrize(
    "reference",
    [
        "package:skimage",
        "package:skimage/",
        "package:skimage/../x",
        "package:a.b/c",
        "package:/etc/passwd",
        "package:no_such_one/x",
    ],
)
def test_a_package_input_stays_inside_a_package(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_input(reference, tmp_path)


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("x", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("x", b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        ("x.JSON", b"{}", "application/json"),
        ("x.txt", b"hello", "text/plain"),
        ("x", b"hello", "application/octet-stream"),
    ],
)
def test_the_content_type_is_guessed_the_same_on_every_machine(name: str, body: bytes, expected: str) -> None:
    assert guess_content_type(name, body) == expected


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "m", "a.txt"],
        ["models"],
        ["register", "m-1.0.mar"],
        ["set-default", "m", "1.0"],
        ["scale", "m", "--workers", "1"],
        ["unregister", "m:1.0"],
        ["token", "inference"],
    ],
)
def test_without_a_running_server_every_verb_says_how_to_start_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config" / "models").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    assert "TIP: marsmith serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["m/1", "a"],
        ["m:", "a"],
        ["m", "-", "-"],
        ["m", "a", "--deadline", "0"],
        ["m", "a", "--deadline", "nan"],
        ["m", "a", "--deadline", "inf"],
        ["m", "a", "--key-file", "k"],
        ["m", "a", "--ca-file", "c"],
    ],
)
def test_a_wrong_command_line_has_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", *arguments]) == 2
    assert json.dumps(capsys.readouterr().out) == '""'


def test_a_scale_that_makes_no_sense_is_refused_before_anything_is_sent() -> None:
    with Client(BASE, BASE, retries=NO_RETRIES) as client:
        for least, most in ((-1, None), (2, 1)):
            with pytest.raises(UsageError, match="workers"):
                client.scale("m", min_workers=least, max_workers=most)


def test_both_clients_have_the_same_calls_with_the_same_arguments() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        public = {name: call for name, call in vars(kind).items() if not name.startswith("_") and callable(call)}
        return {name: list(inspect.signature(call).parameters) for name, call in public.items()}

    blocking, on_a_loop = calls(Client), calls(AsyncClient)
    assert on_a_loop.keys() - blocking.keys() == {"predict_many"}
    assert blocking.keys() - on_a_loop.keys() == {"probe"}
    # The one takes a Registration, the other its fields.
    same = blocking.keys() & on_a_loop.keys() - {"register"}
    assert {name: on_a_loop[name] for name in same} == {name: blocking[name] for name in same}
