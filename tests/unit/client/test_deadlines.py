"""One deadline over all that a call does, with both clients: the server is slow in every way that there is."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marsmith import AsyncClient
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.client.http import KEPT_CONNECTIONS
from marsmith.client.metrics import read_counters
from marsmith.config.certificate import make_pair, write_pair
from marsmith.errors import DeadlineError
from marsmith.run_state import RunState
from support.dripping_server import Dripping, dripping
from support.long_tests import mostly_long

DEADLINE_S = 0.4
WITHIN = rf"within {DEADLINE_S} s$"
# On a machine that is busy enough a call does not come as far as it is to be interrupted within the shortest of them;
# the slow server takes longer than the longest.
DEADLINES_S = (0.4, 0.8, 1.6, 3.2)
Ask = Callable[..., Any]


@dataclass(frozen=True)
class Served:
    plain: Dripping
    secure: Dripping
    ca_file: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    key, certificate = write_pair(tmp_path_factory.mktemp("tls"), make_pair())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with dripping() as plain, dripping(context) as secure:
        yield Served(plain, secure, certificate)


@pytest.fixture(scope="module", autouse=True)
def young_objects_only() -> Iterator[None]:
    """Let each garbage collection look at what these tests have made, and not at all that the process has imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["blocking", "on a loop"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Make one call, by its name, with one of the two clients."""

    def blocking(url: str, name: str, *args: Any, **options: Any) -> Any:
        with Client(url, url, **{"deadline_s": DEADLINE_S, "retries": NO_RETRIES, **options}) as client:
            return getattr(client, name)(*args)

    def on_a_loop(url: str, name: str, *args: Any, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, url, **{"deadline_s": DEADLINE_S, "retries": NO_RETRIES, **options}) as client:
                return await getattr(client, name)(*args)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else on_a_loop


def ran_out_of_time(ask: Ask, doing: str, *call: Any, **options: Any) -> None:
    """Make sure that a call ends with its deadline, and says what it was doing."""
    for deadline_s in DEADLINES_S:
        with nothing_left_behind(), pytest.raises(DeadlineError, match=rf"within {deadline_s} s$") as caught:
            ask(*call, **options, deadline_s=deadline_s)
        if re.match(doing, caught.value.message):
            return
    pytest.fail(f"not {doing}, but: {caught.value.message}")


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Make sure that no connection stays open."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


WAITING = dict.fromkeys(("silent", "head", "lines"), "waiting for the reply")
READING = dict.fromkeys(("body", "chunk", "chunks"), "reading the reply")
DRIPS = [(scheme, slow, doing) for scheme in ("http", "https") for slow, doing in (WAITING | READING).items()]
# Each scheme once while the client waits, and once while it reads.
KEPT = [
    case for case in DRIPS if case[:2] in (("http", "lines"), ("http", "chunks"), ("https", "head"), ("https", "body"))
]


@pytest.mark.parametrize(("scheme", "slow", "doing"), mostly_long("requests", DRIPS, KEPT))
def test_a_reply_that_drips_in_ends_with_the_deadline(
    ask: Ask, served: Served, scheme: str, slow: str, doing: str
) -> None:
    server = served.plain if scheme == "http" else served.secure
    finished = server.finished
    ran_out_of_time(
        ask, f"{doing}: no answer from {server.url}", server.url, "predict", slow, b"x", ca_file=served.ca_file
    )
    # It had not been sent to its end, which takes the server seconds: the client did not wait for it.
    assert server.finished == finished


def test_a_stream_that_drips_ends_with_the_deadline(served: Served) -> None:
    finished = served.plain.finished

    async def on_a_loop() -> None:
        async with AsyncClient(served.plain.url, None, deadline_s=DEADLINE_S) as client:
            assert [part async for part in client.stream("chunks", b"x")] == []

    with Client(served.plain.url, None, deadline_s=DEADLINE_S) as client, pytest.raises(DeadlineError, match=WITHIN):
        list(client.stream("chunks", b"x"))
    with pytest.raises(DeadlineError, match=WITHIN):
        asyncio.run(on_a_loop())
    assert served.plain.finished == finished


def test_the_connection_of_a_call_that_ran_out_of_time_is_not_used_again(served: Served) -> None:
    server = served.plain
    with Client(server.url, None, deadline_s=DEADLINE_S, retries=NO_RETRIES) as client:
        assert client.predict("quick", b"x", deadline_s=60).body == b"ok"
        before = server.connections
        assert client.predict("quick", b"x", deadline_s=60).body == b"ok"
        assert server.connections == before
        for slow in ("body", "head"):
            with pytest.raises(DeadlineError):
                client.predict(slow, b"x")
            assert client.predict("quick", b"x", deadline_s=60).body == b"ok"
        assert server.connections == before + 2


@pytest.mark.parametrize("over", ["predict", "predict_grpc"])
def test_the_renewal_of_a_token_is_within_the_deadline(ask: Ask, served: Served, tmp_path: Path, over: str) -> None:
    key_file = expired(tmp_path)
    options = {"key_file": key_file, "grpc": "127.0.0.1:9"}
    ran_out_of_time(ask, "renewing the token: no answer from", served.plain.url, over, "quick", b"x", **options)


def test_a_lock_that_another_process_holds_is_waited_for_no_longer_than_the_deadline(
    ask: Ask, served: Served, tmp_path: Path
) -> None:
    import fcntl

    key_file = expired(tmp_path)
    with key_file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        doing = "(waiting for others who renew|renewing) the token: "
        ran_out_of_time(ask, doing, served.plain.url, "predict", "quick", b"x", key_file=key_file)


def expired(folder: Path) -> Path:
    key_file = folder / "key_file.json"
    entry = {"key": "abcdefgh", "expiration time": "2020-01-01T00:00:00Z"}
    key_file.write_text(json.dumps({"inference": entry, "management": entry, "API": {"key": "12345678"}}))
    key_file.chmod(0o600)
    return key_file


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_that_does_not_come_about_ends_with_the_deadline(ask: Ask, scheme: str) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [_begun(address) for _ in range(4)]
        ran_out_of_time(ask, "connecting: no answer from", f"{scheme}://127.0.0.1:{address[1]}", "predict", "m", b"x")
        for one in waiting:
            one.close()


def _begun(address: tuple[str, int]) -> socket.socket:
    """Begin to connect: what takes none fills up, and drops the ones that come later."""
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(address)
    return one


def test_a_handshake_that_is_not_answered_ends_with_the_deadline(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        # aiohttp does not tell the two apart.
        ran_out_of_time(ask, "(in the TLS handshake|connecting): ", url, "predict", "m", b"x")


def test_a_body_that_the_server_does_not_take_ends_with_the_deadline(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ran_out_of_time(ask, "sending the request: ", url, "predict", "m", bytes(50_000_000))


def test_over_grpc_a_server_that_says_nothing_ends_with_the_deadline(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        doing = f"waiting for the reply over gRPC: no answer from {address}"
        ran_out_of_time(ask, doing, "http://127.0.0.1:9", "predict_grpc", "m", b"x", grpc=address)


def test_a_name_that_nobody_answers_for_is_looked_up_no_longer_than_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered, real = threading.Event(), socket.getaddrinfo

    def slow(host: str, *args: Any, **named: Any) -> Any:
        if not named.get("flags"):
            answered.wait()
        return real("127.0.0.1" if not named.get("flags") else host, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    doing = rf"^looking up slow\.invalid: .* {WITHIN}"
    with (
        Client("http://slow.invalid:9", None, deadline_s=DEADLINE_S) as client,
        pytest.raises(DeadlineError, match=doing),
    ):
        client.predict("m", b"x")
    # The look-up is left behind, and ends by itself.
    answered.set()
    for thread in threading.enumerate():
        if thread.name.startswith("look up"):
            thread.join()


@pytest.mark.parametrize("call", [("models",), ("describe", "body"), ("ping",)])
def test_a_call_of_several_requests_has_one_deadline_too(ask: Ask, served: Served, call: tuple[str, ...]) -> None:
    with pytest.raises(DeadlineError, match=WITHIN):
        ask(f"{served.plain.url}/body", *call)


def test_counters_that_drip_in_are_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marsmith.client.metrics._DEADLINE_S", DEADLINE_S)
    finished = served.plain.finished
    state = RunState(1, 0.0, "", "", f"{served.plain.url}/body", "", "", Path(), tokens=False)
    assert read_counters(state) is None
    assert served.plain.finished == finished


def test_as_many_connections_are_kept_as_requests_run_at_the_same_time(served: Served) -> None:
    with Client(served.plain.url, None) as client:
        adapter: Any = client._transport._session.get_adapter(served.plain.url)
        assert adapter.poolmanager.connection_from_url(served.plain.url).pool.maxsize == KEPT_CONNECTIONS
