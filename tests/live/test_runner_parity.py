"""The runner beside a live server: the same archive and the same requests give the same replies."""

from __future__ import annotations

import http.client
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from marsmith.runtime.runner import Request, Runner
from support.host_server import running_host
from support.live_server import make_project, running
from support.runner_archives import make_archive

pytestmark = pytest.mark.tensors

MULTIPART = "multipart/form-data; boundary=X9z"
URLENCODED = "application/x-www-form-urlencoded"
FILE = b'name="data"; filename="a.jpg"'
FIELD = b'name="text"'
PHOTO = bytes(range(256)) * 200


def form(*parts: tuple[bytes, bytes, bytes], end: bytes = b"--X9z--\r\n") -> bytes:
    """Return a multipart body of parts (disposition, content type or nothing, value)."""
    lines = b"--X9z\r\nContent-Disposition: form-data; %b\r\n%b\r\n%b\r\n"
    heads = ((place, b"Content-Type: %b\r\n" % kind if kind else b"", value) for place, kind, value in parts)
    return b"".join(lines % head for head in heads) + end


RAW = [
    Request(b"hello"),
    Request(b""),
    Request(b"x", ""),
    Request(PHOTO, "image/jpeg"),
    Request(bytes(range(256)), "application/octet-stream"),
    Request(b"<a>", "text/html"),
    Request(b"text", "text/plain"),
    Request("é".encode(), "text/plain; charset=utf-8"),
    Request(b"\xff\xfe", "text/plain"),
    Request(b"x", "image/png", {"X-One": "1", "x-two": "two words", "X-Empty": ""}),
    Request(b"x", None, {"explain": "True", "Explain": "yes", "url_path": "elsewhere"}),
]
JSON = [
    Request('{"a": [1, 2.5, null, "é"]}'.encode(), "application/json"),
    Request(b"[1, 2]", "application/json"),
    Request(b'"x"', "application/json"),
    Request(b"NaN", "application/json"),
    Request(b'{"a": 1', "application/json"),
    Request(b"", "application/json"),
    Request(b"\xff\xfe", "application/json"),
    Request(b'{"a": 1}', "application/json; charset=utf-8"),
    Request(b'{"a": 1}', "Application/JSON"),
    Request(b'{"a": 1}', "application/json ;x=1"),
]
FORMS = [
    Request(form((FILE, b"", PHOTO)), MULTIPART),
    Request(form((FILE, b"image/jpeg", PHOTO), (FIELD, b"", b"hello")), MULTIPART),
    Request(form((FIELD, b"", b"hello"), (FIELD, b"", b"again")), MULTIPART),
    Request(form((FIELD, b"application/json", b'{"a": 1}')), MULTIPART),
    Request(form((FILE, b"application/json", b'{"a": 1}')), MULTIPART),
    Request(form((FILE, b"application/json; charset=utf-8", b'{"a": 1}')), MULTIPART),
    Request(form((FILE, b"text/plain", b"hey")), MULTIPART),
    Request(form((FILE, b"", b"")), MULTIPART),
    Request(form((FIELD, b"", b"a\r\nb\n\r\n--X9y\r\n")), MULTIPART),
    Request(form((FIELD, b"", b"a"), end=b""), MULTIPART),
    Request(form((FIELD, b"", b"a"))[:40], MULTIPART),
    Request(form((FIELD, b"", b"a")).replace(b"\r\n", b"\n"), MULTIPART),
    Request(b"before\r\n" + form((FIELD, b"", b"a")), MULTIPART),
    Request(form((FIELD, b"", b"a")) + b"after", MULTIPART),
    Request(b"", MULTIPART),
    Request(b"garbage", MULTIPART),
    Request(form((FIELD, b"", b"a")), "multipart/form-data"),
    Request(form((FIELD, b"", b"a")), 'multipart/form-data; boundary="X9z"'),
    Request(form((FIELD, b"", b"a")), "multipart/form-data; charset=utf-8; boundary=X9z"),
    Request(form((FIELD, b"", b"a")), "Multipart/Form-Data; boundary=X9z"),
    Request(form((FIELD, b"", b"a")), "multipart/mixed; boundary=X9z"),
    Request(form((FIELD + b"\r\nContent-Transfer-Encoding: base64", b"", b"YQ==")), MULTIPART),
    Request(form((FILE + b"\r\nContent-Transfer-Encoding: base64", b"", b"YQ==")), MULTIPART),
    Request(form((FILE + b"\r\nContent-Transfer-Encoding: binary", b"", b"a")), MULTIPART),
    Request(form((b"name=plain", b"", b"a")), MULTIPART),
    Request(form(("name=é".encode(), b"", b"a")), MULTIPART),
    Request(b"a=1&b=two+words&c=%C3%A9&d=&e&a=2", URLENCODED),
    Request(b"a=1", URLENCODED + "; charset=utf-8"),
    Request(b"", URLENCODED),
    Request(b"a=1&", URLENCODED),
    Request(b"data", URLENCODED),
    Request(b"a=1&e", URLENCODED),
    Request(b"&a=1", URLENCODED),
    Request(b"=1", URLENCODED),
    Request(b"a=%zz", URLENCODED),
    Request(b"a%3=1", URLENCODED),
]
ANSWERS = [
    Request(b"x", headers={"X-Do": what})
    for what in (
        *("raise", "memory", "cuda", "prediction", "wrong length", "wrong type", "unserialisable", "status", "headers"),
        *("keys", "bytes", "bytearray", "empty", "none", "text", "number", "tensor", "just fits", "stream"),
        # The worker dies over these.
        *("too large", "exit", "non-ascii type", "number"),
    )
]


# TorchServe's worker dies over these; a host's answers.
HOST_IS_BETTER = ("too large", "non-ascii type")


def ask(address: str, request: Request) -> tuple[int, str, bytes]:
    """Send one request with exactly its headers; return status, content type and body."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=240)
    connection.putrequest("POST", "/predictions/tiny")
    if request.content_type is not None:
        connection.putheader("Content-Type", request.content_type)
    connection.putheader("Content-Length", str(len(request.body)))
    for name, value in request.headers.items():
        connection.putheader(name, value)
    connection.endheaders(request.body)
    response = connection.getresponse()
    result = response.status, response.getheader("content-type") or "", response.read()
    connection.close()
    return result


def ask_until_a_worker_is_up(address: str, request: Request) -> tuple[int, str, bytes]:
    """Ask again while the frontend says that it has no worker: it starts a new one a second after one died."""
    for _ in range(400):
        result = ask(address, request)
        if result[0] != 503 or b"no worker" not in result[2].lower():
            return result
        time.sleep(0.5)
    raise AssertionError("no worker came up again")


@pytest.mark.live
def test_the_runner_gives_what_a_live_server_gives(tmp_path: Path) -> None:
    folder = make_archive(tmp_path / "archive")
    archive = tmp_path / "tiny-1.0.mar"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    requests = [*RAW, *JSON, *FORMS, *ANSWERS]
    assert len(requests) >= 50
    settings = {"disable_token_authorization": "true", "max_response_size": "6553500"}
    project = make_project(tmp_path / "project", {archive.name: archive}, **settings)
    # The handler shows its headers, and the front adds some.
    project.settings_file.write_text("front: none\n")
    host_runs = running_host(tmp_path / "host", [archive], "--no-tokens")
    with running(project) as server, Runner(archive) as runner, host_runs as host:
        for number, request in enumerate(requests):
            (reply,) = runner.run([request])
            live = ask_until_a_worker_is_up(server.inference, request)
            where = f"request {number}: {request.content_type} {dict(request.headers)} {request.body[:60]!r}"
            assert (reply.status, reply.content_type) == live[:2], where
            assert reply.body == live[2], where
            if request.headers.get("X-Do") not in HOST_IS_BETTER:
                assert ask(host.state.url, request) == live, where
