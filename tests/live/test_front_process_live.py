"""A real Envoy as a process, before a light server in place of TorchServe."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from marsmith import child_processes
from marsmith.client import Client
from marsmith.config.certificate import make_pair, write_pair
from marsmith.errors import FrontError, RequestRejectedError
from marsmith.run_state import Backend, RunState
from marsmith.server.front import admin, process
from marsmith.server.front.bootstrap import ADMIN_SOCKET, ROUTES_FILE
from marsmith.server.front.door import Front
from marsmith.server.processes import processes_of
from support.header_echo import HeaderEcho, header_echo
from support.live_server import free_addresses, free_ports, until
from support.raw_calls import INFERENCE, Answer, call, grpc_code, open_request

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Place:
    """A front, and what is behind it."""

    front: Front
    config: dict[str, str]
    state: RunState
    echo: HeaderEcho
    metrics: str

    def open(self) -> None:
        self.front.open(self.config, self.state, child_processes.start)

    def ask(self, path: str = "/", token: str | None = None, **headers: str) -> Answer:
        return call(self.config["inference_address"], "POST", path, token, body=b"x", headers=headers)

    def make_tokens(self, inference: str, *, expires: timedelta = HOUR) -> None:
        """Write the key file as TorchServe does at its start."""
        when = f"{datetime.now(UTC) + expires:%Y-%m-%dT%H:%M:%S}Z"
        keys = {name: {"key": inference, "expiration time": when} for name in ("inference", "management")}
        self.state.key_file.write_text(json.dumps({**keys, "API": {"key": "api"}}))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with header_echo() as echo:
        # Longer than the path of a socket may be.
        run = tmp_path / "-".join(["long"] * 30)
        run.mkdir()
        config, metrics_port = free_addresses(), free_ports(1)[0]
        backend = Backend(f"http://127.0.0.1:{echo.port}", "127.0.0.1:1")
        state = RunState(1, 0.0, config["inference_address"], "", "", "", "", run, tokens=True, backend=backend)
        front = Front(run / "front")
        place = Place(front, config, state, echo, f"http://127.0.0.1:{metrics_port}")
        place.make_tokens("first")
        front.prepare(config, metrics_port)
        try:
            yield place
        finally:
            front.close(0.0)
            assert processes_of(run, process.FRONT_VARIABLE) == []


def head(answer: Answer) -> dict[str, str]:
    return {name.lower(): value for name, value in json.loads(answer.body).items()}


def test_requests_arrive_as_they_were_sent_and_answers_are_those_of_torchserve(place: Place) -> None:
    place.open()
    answer = place.ask(
        "/predictions/m%2F/../x?a=1", "first", **{"x-request-id": "mine", "X-marsmith-Log": "1", "X-Mine": "a"}
    )
    # Handlers look for headers by their names as clients write them.
    assert "X-Mine" in json.loads(answer.body)
    assert place.echo.seen == ["/predictions/m%2F/../x?a=1"]
    seen = head(answer)
    assert (seen["authorization"], seen["x-request-id"]) == ("Bearer first", "mine")
    # What the front tells the workers, clients cannot tell them.
    assert "x-marsmith-log" not in seen
    # That of a reply is TorchServe's own.
    assert "x-request-id" not in answer.headers
    assert answer.headers["server"].startswith("BaseHTTP")
    assert not any(name.startswith("x-envoy") for name in answer.headers)
    place.echo.status = 503
    before = len(place.echo.seen)
    assert place.ask(**{"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "3"}).status == 503
    assert len(place.echo.seen) == before + 1


def test_only_the_owner_can_open_the_admin_interface_and_only_get_metrics_passes(place: Place) -> None:
    place.open()
    place.ask()
    mode = (place.front.folder / ADMIN_SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    for file in place.front.folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    metrics = call(place.metrics, "GET", "/metrics")
    assert metrics.status == 200
    assert b'envoy_cluster_upstream_rq_total{envoy_cluster_name="stable/rest"} 1' in metrics.body
    for method, path in (
        *(("POST", "/metrics"), ("HEAD", "/metrics"), ("GET", "/"), ("GET", "/stats"), ("POST", "/quitquitquit")),
        *(("GET", "/metrics/../config_dump"), ("GET", "/metrics/"), ("GET", "//metrics"), ("GET", "/config_dump")),
    ):
        assert call(place.metrics, method, path).status == 404, (method, path)
    # What stands behind a question mark stays a question for metrics.
    assert b"envoy_cluster" in call(place.metrics, "GET", "/metrics?format=json").body


def test_requests_wait_while_torchserve_is_away_and_get_the_token_of_the_new_one(place: Place) -> None:
    place.open()
    assert head(place.ask(token="first"))["authorization"] == "Bearer first"
    place.front.hold(place.config)
    until(lambda: "nobody.sock" in admin.ask(place.front.folder, "/clusters"))
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(place.ask, "/", token) for token in ("first", "foreign", None)]
        refused = "cluster.stable/rest.upstream_cx_connect_fail: "
        until(lambda: int(admin.ask(place.front.folder, "/stats").partition(refused)[2].split()[0]) >= 6)
        assert not any(each.done() for each in waiting)
        place.make_tokens("second")
        place.open()
        heads = [head(each.result()) for each in waiting]
    # One that TorchServe never made, and none at all, are its own to refuse.
    assert [seen.get("authorization") for seen in heads] == ["Bearer second", "Bearer foreign", None]
    assert len(place.echo.seen) == 4


def test_a_token_that_has_expired_is_not_replaced(place: Place) -> None:
    place.make_tokens("first", expires=timedelta(seconds=1))
    place.open()
    place.make_tokens("second")
    place.open()
    until(lambda: head(place.ask(token="first"))["authorization"] == "Bearer first")


def test_a_port_that_is_taken_is_one_clear_line_and_nothing_runs(place: Place) -> None:
    port = int(place.config["inference_address"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(FrontError, match=rf"Envoy ended: cannot bind '127.0.0.1:{port}': Address already in use"):
            place.open()
        assert place.front.process is None
        assert processes_of(place.front.folder.parent, process.FRONT_VARIABLE) == []
    place.open()
    assert place.ask().status == 200


def test_after_sigkill_it_starts_again_from_its_files(place: Place) -> None:
    place.open()
    first = place.front.process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: place.front.process is None)
    process.start(place.front.folder, child_processes.start)
    assert place.ask().status == 200
    second = place.front.process
    assert second is not None
    assert second.pid != first.pid


def test_a_configuration_that_envoy_refuses_is_found_before_the_start(place: Place) -> None:
    with pytest.raises(FrontError, match=r"Envoy refuses its configuration: .*nme"):
        process.check_configuration(place.front.folder, {"static_resources": {"listeners": [{"nme": "rest"}]}})


def test_damaged_routes_do_not_prevent_a_start(place: Place) -> None:
    (place.front.folder / ROUTES_FILE).write_text("{")
    place.front.prepare(place.config)
    place.open()
    assert place.ask().status == 200


def test_without_envoy_one_line_says_what_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_spec", lambda name: None)
    with pytest.raises(FrontError, match="needs Envoy, which is not installed") as error:
        replace(place).front.prepare(place.config)
    assert "--front none" in (error.value.tip or "")


def test_a_token_that_was_revoked_does_not_come_back_with_a_restart_that_nobody_saw(place: Place) -> None:
    place.open()
    # Somebody asks for a new token, and TorchServe dies at once.
    place.make_tokens("second")
    place.front.hold(place.config)
    place.make_tokens("third")
    place.open()
    assert head(place.ask(token="first"))["authorization"] == "Bearer first"
    assert head(place.ask(token="second"))["authorization"] == "Bearer third"
    # The same with everything that runs.
    place.make_tokens("fourth")
    place.front.close(0.0)
    place.front.prepare(place.config)
    place.make_tokens("fifth")
    place.open()
    assert head(place.ask(token="third"))["authorization"] == "Bearer third"
    assert head(place.ask(token="fourth"))["authorization"] == "Bearer fifth"


def test_a_body_above_the_limit_is_refused_before_torchserve_sees_it(place: Place) -> None:
    place.config["max_request_size"] = "1000000"
    place.front.prepare(place.config)
    place.open()
    address, largest = place.config["inference_address"], 1_000_000
    assert call(address, "POST", "/m", body=b"x" * largest).status == 200
    assert len(place.echo.seen) == 1
    with open_request(address, largest + 1, b"") as connection:
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(b"POST /m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            connection.sendall((b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 1000)
            pytest.fail("64 MB were taken")
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")
    # The light server speaks no gRPC: a call that comes through would wait for it.
    grpc_address = f"127.0.0.1:{place.config['grpc_inference_port']}"
    assert grpc_code(grpc_address, INFERENCE, "Predictions", {3: b"x" * largest}, None) == "CANCELLED"
    assert len(place.echo.seen) == 1


def test_a_body_in_chunks_arrives_whole(place: Place) -> None:
    place.open()
    parts = urlsplit(place.config["inference_address"])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request("POST", "/m", iter([b"x" * 1000] * 10), encode_chunked=True)
    assert json.loads(connection.getresponse().read())["content-length"] == "10000"
    connection.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_rest_speaks_tls_1_2_and_1_3_and_says_so_to_those_who_speak_none(place: Place, tmp_path: Path) -> None:
    key, certificate = write_pair(tmp_path / "pair", make_pair())
    plain = place.config["inference_address"]
    secure = plain.replace("http://", "https://")
    place.config.update(inference_address=secure, private_key_file=str(key), certificate_file=str(certificate))
    place.front.prepare(place.config)
    place.open()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert tls_version(secure, certificate, version) == version.name.replace("_", ".")
    with pytest.raises(ssl.SSLError):
        tls_version(secure, certificate, ssl.TLSVersion.TLSv1_1)
    refused = call(plain, "POST", "/m", "first", body=b"x")
    assert (refused.status, json.loads(refused.body)["status"]) == (403, "This server only accepts HTTPS requests")
    assert refused.headers["connection"] == "close"
    assert place.echo.seen == []


def tls_version(address: str, trusted: Path, version: ssl.TLSVersion) -> str | None:
    """Return the version of TLS that a client which knows only this one gets."""
    parts, context = urlsplit(address), ssl.create_default_context(cafile=str(trusted))
    # OpenSSL itself refuses old versions at its usual level.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=parts.hostname) as wrapped,
    ):
        return wrapped.version()


def test_a_request_that_must_not_be_processed_twice_is_sent_once(place: Place) -> None:
    place.open()
    with Client(place.config["inference_address"], key_file=place.state.key_file) as client:
        place.echo.dropped = 1
        assert client.predict("m", b"x").status == 200
        assert len(place.echo.seen) == 2
        place.echo.dropped = 1
        with pytest.raises(RequestRejectedError, match="may have processed it") as lost:
            client.predict("m", b"x", idempotent=False)
        assert (lost.value.status, len(place.echo.seen)) == (502, 3)
        # While TorchServe is away, it has not got the request: it waits like any other.
        place.front.hold(place.config)
        until(lambda: "nobody.sock" in admin.ask(place.front.folder, "/clusters"))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.predict, "m", b"x", idempotent=False)
            refused = "cluster.stable/rest.upstream_cx_connect_fail: "
            until(lambda: int(admin.ask(place.front.folder, "/stats").partition(refused)[2].split()[0]) >= 2)
            place.open()
            assert waiting.result().status == 200
