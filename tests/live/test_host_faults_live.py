"""A host when things go wrong: workers that die, hang or grow, broken requests, changed archives, and its end."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from support.host_server import RunningHost, light_archive, running_host, start_host
from support.live_server import is_alive, tiny_archive, until
from support.long_tests import long
from support.raw_calls import Answer, call


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    folder = tmp_path_factory.mktemp("faults")
    archives = [
        light_archive(folder / "light.mar", responseTimeout=4),
        light_archive(folder / "once.mar", name="once", handler={}, minWorkers=1),
    ]
    flags = ("--no-tokens", "--worker-memory", "150", "--request-timeout", "2", "--max-request-size", "100000")
    with running_host(folder / "run", archives, *flags) as running:
        yield running


def ask(host: RunningHost, body: str = "x", model: str = "light", headers: dict[str, str] | None = None) -> Answer:
    return call(host.state.url, "POST", f"/predictions/{model}", body=body.encode(), headers=headers)


class Load:
    """Four clients that ask one after the other, until the end of the block."""

    def __init__(self, host: RunningHost) -> None:
        self.answers: Counter[int] = Counter()
        self.versions: set[str] = set()
        self._host = host
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            answer = ask(self._host)
            self.answers[answer.status] += 1
            self.versions.add(str(json.loads(answer.body).get("version")))

    def end(self) -> None:
        self._over.set()


@contextmanager
def load(host: RunningHost) -> Iterator[Load]:
    running = Load(host)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(running.run) for _ in range(4)]
        try:
            until(lambda: sum(running.answers.values()) > 20)
            yield running
            before = sum(running.answers.values())
            until(lambda: sum(running.answers.values()) > before + 20)
        finally:
            running.end()
        for job in jobs:
            job.result()


def test_killed_workers_are_replaced_and_their_requests_tried_once_more(host: RunningHost) -> None:
    before = host.workers()
    with load(host) as running:
        for pid in before[:2]:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(host.workers()) == 3 and not set(before[:2]) & set(host.workers()))
    assert set(running.answers) == {200}
    assert "is lost, it was ended by SIGKILL; another is started" in host.output()


def test_a_request_that_kills_its_worker_is_tried_once_more_alone(host: RunningHost, tmp_path: Path) -> None:
    assert json.loads(ask(host, f"die once {tmp_path / 'mark'}").body)["batch"] == 1
    with load(host) as running:
        poison = ask(host, "die")
    assert (poison.status, json.loads(poison.body)["message"]) == (500, "Worker died.")
    assert set(running.answers) == {200}


def test_what_may_not_be_processed_twice_is_not(host: RunningHost, tmp_path: Path) -> None:
    foreign = ask(host, f"die once {tmp_path / 'foreign'}", "once")
    told = ask(host, f"die once {tmp_path / 'told'}", headers={"Marsmith-Idempotent": "false"})
    assert [answer.status for answer in (foreign, told)] == [500, 500]
    assert ask(host, "x", "once").status == 200


def test_a_hung_worker_is_ended_after_the_response_timeout(host: RunningHost) -> None:
    with load(host) as running:
        hung = ask(host, "hang")
    assert (hung.status, json.loads(hung.body)["message"]) == (500, "Worker died.")
    assert set(running.answers) == {200}


def test_a_worker_that_grows_is_replaced_without_a_failed_request(host: RunningHost) -> None:
    with load(host) as running:
        grown = json.loads(ask(host, "grow 150").body)["pid"]
        until(lambda: not is_alive(grown))
    assert set(running.answers) == {200}
    assert f"worker {grown} has" in host.output()


# Broken requests ------------------------------------------------------------------------------------------------------

OPEN = b"POST /predictions/light HTTP/1.1\r\nHost: x\r\n"
HEAD = OPEN + b"Connection: close\r\n"
BROKEN = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00",
    "a line of nothing": b"\r\n\r\nGET",
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "a space in a header": b"GET /ping HTTP/1.1\r\nBad Header: 1\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length that is no number": HEAD + b"Content-Length: ten\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a length and chunks": HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "a chunk of no size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
    "a huge chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n" + b"x" * 200_000,
    "a body above the limit": HEAD + b"Content-Length: 200000\r\n\r\n" + b"x" * 1000,
    "a head without an end": HEAD + b"X: " + b"y" * 200_000,
    "many headers": HEAD + b"".join(b"X-%d: y\r\n" % number for number in range(20_000)),
    "a form without a boundary": HEAD + b"Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc",
    "a form of nothing": HEAD + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n\r\n=1",
    "JSON of nothing": HEAD + b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
    "deep JSON": HEAD + b"Content-Type: application/json\r\nContent-Length: 90000\r\n\r\n" + b"[" * 90_000,
    "a path of zeros": b"POST /predictions/%00%00 HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "a path out of the root": b"GET /../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n",
    "a websocket": b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}

# It gets the bytes as they are, as with TorchServe.
FOR_THE_HANDLER = ("JSON of nothing", "deep JSON", "a form without a boundary")


def raw(host: RunningHost, sent: bytes, *, all_of_it: bool = True) -> bytes:
    """Send bytes, and return what comes back until the host closes; or only what comes first."""
    at = urlsplit(host.state.url)
    with socket.create_connection((at.hostname, at.port), timeout=30) as connection:
        received = b""
        try:
            connection.sendall(sent)
            while (all_of_it or not received) and (part := connection.recv(1 << 16)):
                received += part
        except ConnectionError:
            pass
        return received


@pytest.mark.parametrize("name", BROKEN)
def test_no_broken_request_is_answered_with_200_or_hurts_the_host(host: RunningHost, name: str) -> None:
    before = host.workers()
    status = raw(host, BROKEN[name])[9:12]
    assert (status == b"200") is (name in FOR_THE_HANDLER)
    assert ask(host).status == 200
    assert host.workers() == before


def test_requests_may_be_chunked_pipelined_and_expect_to_be_welcome(host: RunningHost) -> None:
    chunked = OPEN + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    last = HEAD + b"Content-Length: 2\r\n\r\nhi"
    answers = raw(host, chunked + last)
    assert [order in answers for order in (b'"order": "abcde"', b'"order": "hi"')] == [True, True]
    assert answers.index(b"abcde") < answers.index(b'"hi"')
    welcome = HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi"
    assert raw(host, welcome).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", b"POST /pre", HEAD, HEAD + b"Content-Length: 10\r\n\r\nhalf"])
def test_a_request_that_does_not_end_is_ended(host: RunningHost, sent: bytes) -> None:
    received = raw(host, sent)
    assert received == b"" if not sent else received.startswith(b"HTTP/1.1 408")


def test_idle_connections_cost_nothing(host: RunningHost) -> None:
    at = urlsplit(host.state.url)
    idle = [socket.create_connection((at.hostname, at.port)) for _ in range(200)]
    try:
        assert ask(host).status == 200
    finally:
        for connection in idle:
            connection.close()


# Changed archives, and the end ----------------------------------------------------------------------------------------


def test_a_reload_loses_no_request_and_a_broken_archive_changes_nothing(tmp_path: Path) -> None:
    archive = light_archive(tmp_path / "light.mar")
    with running_host(tmp_path / "run", [archive], "--no-tokens", "--watch") as host, load(host) as running:
        light_archive(tmp_path / "new.mar", "2.0").replace(archive)
        until(lambda: "2.0" in running.versions)
        (tmp_path / "broken.mar").write_bytes(b"no archive")
        (tmp_path / "broken.mar").replace(archive)
        host.process.send_signal(signal.SIGHUP)
        until(lambda: "light:2.0 goes on as it was" in host.output())
        light_archive(tmp_path / "new.mar", "3.0").replace(archive)
        host.process.send_signal(signal.SIGHUP)
        until(lambda: "3.0" in running.versions)
    assert set(running.answers) == {200}


def test_at_its_end_a_host_answers_what_it_has_taken_and_leaves_nothing(tmp_path: Path) -> None:
    archive = light_archive(tmp_path / "light.mar")
    with running_host(tmp_path / "run", [archive], "--no-tokens") as host, ThreadPoolExecutor(1) as pool:
        begun, until_then = tmp_path / "begun", tmp_path / "until"
        job = pool.submit(ask, host, f"wait {begun} {until_then}")
        until(begun.exists)
        family = psutil.Process(host.process.pid).children(recursive=True)
        stopping = subprocess.Popen([sys.executable, "-m", "marsmith", "stop", "--state", str(host.folder)])
        until(lambda: "what was taken is answered" in host.output())
        until_then.touch()
        assert job.result().status == 200
        assert stopping.wait(30) == 0
        assert host.process.wait(30) == 0
        assert not any(is_alive(child.pid) for child in family)
        assert not list(host.folder.glob("*.json"))


# Bad input ------------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, archives: list[Path], *flags: str) -> tuple[int, str]:
    process, _, printed = start_host(tmp_path / "run", archives, *flags)
    status = process.wait(60)
    return status, printed.read_text()


def test_an_archive_that_cannot_be_served_is_one_clear_line(tmp_path: Path) -> None:
    missing = refused(tmp_path, [tmp_path / "none.mar"])
    assert missing[0] == 2
    assert "none.mar" in missing[1]
    (tmp_path / "torn.mar").write_bytes(b"PK\x03\x04")
    assert refused(tmp_path, [tmp_path / "torn.mar"])[0] == 1
    broken = tiny_archive(tmp_path / "broken.mar", handler="raise ValueError('no weights')")
    status, printed = refused(tmp_path, [broken])
    assert status == 1
    assert "marsmith: error: echo:1.0: the handler 'tiny_handler.py' does not load: ValueError: no weights" in printed
    members = {"model-config.yaml": json.dumps({"startupTimeout": 1})}
    endless = tiny_archive(tmp_path / "endless.mar", handler="import time\ntime.sleep(600)\n", members=members)
    status, printed = refused(tmp_path, [endless])
    assert (status, "did not load within 1 s" in printed) == (1, True)
    ending = tiny_archive(tmp_path / "ending.mar", handler="import os\nos._exit(3)\n")
    status, printed = refused(tmp_path, [ending])
    assert (status, "its worker ended while it loaded" in printed) == (1, True)


def test_a_port_or_a_state_that_is_in_use_is_refused(tmp_path: Path) -> None:
    archive = light_archive(tmp_path / "light.mar", minWorkers=1)
    with running_host(tmp_path / "run", [archive], "--no-tokens") as host:
        port = str(urlsplit(host.state.url).port)
        status, printed = refused(tmp_path / "other", [archive], "--port", port)
        assert (status, f"cannot listen at 127.0.0.1:{port}" in printed) == (1, True)
        assert host.state.grpc
        status, printed = refused(tmp_path / "other", [archive], "--grpc-port", host.state.grpc.rpartition(":")[2])
        assert (status, "for gRPC: it is in use" in printed) == (1, True)
        status, printed = refused(tmp_path / "third", [archive], "--state", str(host.folder))
        assert (status, f"runs already (pid {host.process.pid})" in printed) == (1, True)


def test_a_start_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    handler = f"import time, pathlib\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(600)\n"
    process, state, _ = start_host(tmp_path / "run", [tiny_archive(tmp_path / "endless.mar", handler=handler)])
    until(begun.exists)
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(30) == 143
    assert not any(is_alive(child.pid) for child in family)
    assert not list(state.glob("*.json"))


# Many of them ---------------------------------------------------------------------------------------------------------


def damaged(seed: int) -> bytes:
    """Return a good request with some of its bytes changed, left out, doubled, or put elsewhere."""
    chance = random.Random(seed)
    kind = chance.choice(["text/plain", "application/json", "multipart/form-data; boundary=X", "image/jpeg"])
    form = b'--X\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--X--\r\n'
    body = chance.choice([b'{"a": [1, 2]}', form, b"\xff\xd8"])
    request = bytearray(HEAD + f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    for _ in range(chance.randint(1, 6)):
        at, size = chance.randrange(len(request)), chance.randint(1, 8)
        part = request[at : at + size]
        what = chance.choice(["change", "leave out", "double", "move"])
        request[at : at + size] = chance.randbytes(size) if what == "change" else part * 2 if what == "double" else b""
        if what == "move":
            to = chance.randrange(len(request) + 1)
            request[to:to] = part
    return bytes(request)


@long("host")
def test_hundreds_of_damaged_requests_do_not_hurt_the_host(host: RunningHost) -> None:
    before = host.workers()
    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(lambda seed: raw(host, damaged(seed), all_of_it=False)[9:12], range(400)))
    assert sum(statuses.values()) == 400
    assert statuses[b"400"] > 50
    assert ask(host).status == 200
    assert host.workers() == before


@long("host")
def test_ten_thousand_idle_connections_leave_room_for_requests(tmp_path: Path) -> None:
    most = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < most + 500:
        pytest.skip(f"a process may open {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 500, hard))
    idle: list[socket.socket] = []
    try:
        with running_host(tmp_path / "run", [light_archive(tmp_path / "light.mar")], "--no-tokens") as host:
            before = psutil.Process(host.process.pid).memory_info().rss
            at = urlsplit(host.state.url)
            idle += [socket.create_connection((at.hostname, at.port), timeout=30) for _ in range(most)]
            assert ask(host).status == 200
            # Less than 16 KiB each.
            assert psutil.Process(host.process.pid).memory_info().rss - before < most << 14
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
