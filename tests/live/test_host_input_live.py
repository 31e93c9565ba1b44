"""A host with bad neighbours: others that want its port or its state, damaged archives, and handlers' odd replies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from marsmith.host import state as states
from marsmith.host.catalogue import Catalogue, Source
from marsmith.host.measured import Measured
from marsmith.host.version import Wishes
from support.host_server import LIGHT, RunningHost, start_host
from support.live_server import free_ports, is_alive, tiny_archive, until
from support.raw_calls import Answer, call

ODD = """
usual = do


def do(order, context, index):
    if order.startswith("status "):
        context.set_response_status(int(order[7:]), "", index)
    if order == "header":
        context.set_response_header(index, "X-A", "a\\r\\nSet-Cookie: b")
    return "\\ud800" if order == "surrogate" else usual(order, context, index)
"""


def odd_archive(path: Path, *, name: str = "odd", gate: Path | None = None, broken: Path | None = None) -> Path:
    """Write an archive that loads only while there is no gate, and not if there is the other file."""
    loading = f"while os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\n"
    loading += f"if os.path.exists({str(broken)!r}):\n    raise ValueError('no weights')\n"
    config = {"minWorkers": 1, "responseTimeout": 20, "handler": {"idempotent": True}}
    handler = f"import os, time\nVERSION = '1.0'\n{loading}{LIGHT}{ODD}"
    return tiny_archive(path, name=name, handler=handler, members={"model-config.yaml": json.dumps(config)})


@dataclass
class Odd:
    """The host, its two files, and what the others were told that wanted its state and its port meanwhile."""

    host: RunningHost
    gate: Path
    broken: Path
    others: list[tuple[int, str]]

    def ask(self, body: str) -> Answer:
        return call(self.host.state.url, "POST", "/predictions/odd", self.host.key(), body=body.encode())

    def raw(self, sent: str) -> bytes:
        at = urlsplit(self.host.state.url)
        received = b""
        with socket.create_connection((at.hostname, at.port), timeout=30) as connection:
            connection.sendall(sent.encode())
            while part := connection.recv(1 << 16):
                received += part
        return received


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    folder = tmp_path_factory.mktemp("odd")
    gate, broken, store = folder / "gate", folder / "broken", folder / "store"
    gate.touch()
    store.mkdir()
    odd_archive(store / "a.mar", gate=gate, broken=broken)
    (store / "broken.mar").write_bytes(b"no archive")
    odd_archive(store / "twin.mar")
    here = ("--address", "::1", "--port", str(free_ports(1)[0]))
    process, state, printed = start_host(folder / "run", [], "--store", str(store), "--worker-memory", "150", *here)
    try:
        until(lambda: is_listening(int(here[3])) or process.poll() is not None)
        others = [outcome(folder, store / "twin.mar", *flags) for flags in (("--state", str(state)), here)]
        gate.unlink()
        until(lambda: (state / states.FILE_NAME).exists() or process.poll() is not None)
        assert process.poll() is None, printed.read_text()
        yield Odd(RunningHost(process, states.read(state), state, printed), gate, broken, others)
    finally:
        process.terminate()
        process.wait(60)


def is_listening(port: int) -> bool:
    with socket.socket(socket.AF_INET6) as connection:
        return connection.connect_ex(("::1", port)) == 0


def outcome(folder: Path, archive: Path, *flags: str) -> tuple[int, str]:
    """Return exit status and output of a host that does not start."""
    process, _, printed = start_host(folder / "other", [archive], *flags)
    try:
        return process.wait(60), printed.read_text()
    finally:
        process.kill()


def test_a_port_and_a_state_belong_to_the_first_host_while_it_loads(odd: Odd) -> None:
    (for_state, told_of_state), (for_port, told_of_port) = odd.others
    assert (for_state, for_port) == (1, 1)
    assert f"runs already (pid {odd.host.process.pid})" in told_of_state
    assert "cannot listen at ::1:" in told_of_port
    assert odd.ask("x").status == 200
    assert odd.host.state.grpc is not None
    assert odd.host.state.grpc.startswith("[::1]:")


def test_one_bad_archive_in_a_store_does_not_stop_the_others(odd: Odd) -> None:
    printed = odd.host.output()
    assert "broken.mar: " in printed
    assert "are the same version, odd:1.0; it is not served" in printed
    assert odd.ask("x").status == 200


def test_odd_replies_of_a_handler_fail_alone_and_cost_no_worker(odd: Odd) -> None:
    before = odd.host.workers()
    assert {body: odd.ask(body).status for body in ("status 99999", "status 100", "header", "surrogate")} == {
        "status 99999": 500,
        "status 100": 500,
        "header": 500,
        "surrogate": 503,
    }
    assert odd.host.workers() == before


def test_a_reply_without_content_does_not_begin_the_next_one(odd: Odd) -> None:
    head = f"POST /predictions/odd HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {odd.host.key()}\r\n"
    first = f"{head}Content-Length: 10\r\n\r\nstatus 204"
    received = odd.raw(f"{first}{head}Connection: close\r\nContent-Length: 1\r\n\r\nx")
    empty, between, _ = received.partition(b"\r\n\r\nHTTP/1.1 200")
    assert empty.startswith(b"HTTP/1.1 204")
    assert b"content-length" not in empty
    assert between


def test_what_follows_a_chunked_body_is_not_a_header(odd: Odd) -> None:
    head = "POST /predictions/odd HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    token = f"Authorization: Bearer {odd.host.key()}\r\n"
    assert odd.raw(f"{head}1\r\nx\r\n0\r\n{token}\r\n").startswith(b"HTTP/1.1 400")


def test_a_leaking_worker_that_dies_before_its_end_is_replaced_once(odd: Odd) -> None:
    odd.gate.touch()
    grown = json.loads(odd.ask("grow 150").body)["pid"]
    until(lambda: len(odd.host.workers()) == 2)
    os.kill(grown, signal.SIGKILL)
    until(lambda: not is_alive(grown))
    odd.gate.unlink()
    assert json.loads(odd.ask("x").body)["pid"] != grown
    until(lambda: grown not in odd.host.workers())
    assert len(odd.host.workers()) == 1


def test_requests_do_not_wait_for_workers_that_do_not_load(odd: Odd) -> None:
    odd.broken.touch()
    killed = odd.ask("die")
    assert (killed.status, "has no worker" in str(killed.body)) == (503, True)
    odd.broken.unlink()
    until(lambda: odd.ask("x").status == 200)


def test_a_refused_archive_is_tried_again_only_if_it_changes(tmp_path: Path) -> None:
    odd_archive(tmp_path / "a.mar")
    (tmp_path / "broken.mar").write_bytes(b"no archive")
    told: list[str] = []

    async def follow() -> None:
        catalogue = Catalogue(Source((), tmp_path), Wishes(), Measured(), told.append)
        await catalogue.start()
        try:
            assert not catalogue.changes()
            (tmp_path / "broken.mar").write_bytes(b"nor is this one")
            assert catalogue.changes()
            odd_archive(tmp_path / "twin.mar")
            await catalogue.reload()
            assert not catalogue.changes()
        finally:
            await catalogue.stop(0.0)

    asyncio.run(follow())
    assert [text.partition(":")[0] for text in told] == ["broken.mar", "reload", "reload"]


def test_a_certificate_that_is_none_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    torn = tmp_path / "torn.pem"
    torn.write_text("no certificate")
    flags = ("--certificate-file", str(torn), "--private-key-file", str(torn))
    status, told = outcome(tmp_path, odd_archive(tmp_path / "a.mar"), *flags)
    assert (status, "are not a certificate and its private key" in told) == (2, True)


@pytest.mark.parametrize(
    "flags", [("--port", "65536"), ("--grpc-port", "0"), ("--drain", "inf"), ("--request-timeout", "nan")]
)
def test_a_number_that_is_out_of_range_is_a_usage_error(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    from marsmith.cli import main

    assert main(["host", "m.mar", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
