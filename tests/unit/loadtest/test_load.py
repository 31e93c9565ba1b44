"""The load driver: what it sends, when, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.cli.bench import histogram_lines
from marsmith.errors import ConnectionFailedError, UsageError
from marsmith.loadtest import driver
from marsmith.loadtest.bench import Load, SameAnswer, best_label, read_inputs, run_load
from marsmith.loadtest.connection import Answer, Connection
from marsmith.loadtest.driver import LatencySample, LoadRun, arrivals, closed_loop, open_loop
from marsmith.loadtest.http import HttpConnection, HttpTarget, read_reply
from marsmith.loadtest.measurement import Measurement, histogram, measure, quantile
from marsmith.loadtest.shared_requests import SharedRequests
from marsmith.loadtest.verdict import judge

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A small HTTP server on a free port, with what it got."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def target(self, *bodies: bytes) -> HttpTarget:
        return HttpTarget(f"http://127.0.0.1:{self.port}/predictions/m?x=1", bodies, ["image/jpeg"] * len(bodies))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                await self.respond(self.bodies[-1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def _echo(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


def _opener(target: HttpTarget) -> Callable[[], Awaitable[Connection]]:
    shared = SharedRequests(target.messages, None, None)
    return lambda: HttpConnection.open(target, shared)


@pytest.fixture
def clock_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a second passes with each answer, however busy the machine is."""
    monkeypatch.setattr(driver._Run, "now", lambda run: len(run.samples) / 100)


@pytest.mark.usefixtures("clock_of_answers")
def test_a_closed_loop_sends_the_inputs_in_turn_and_each_client_one_at_a_time() -> None:
    async def scenario() -> None:
        async with Server(_echo) as server:
            drive = await closed_loop(_opener(server.target(b"a", b"bb", b"ccc")), 3, clients=2, seconds=0.2)
            assert len(drive.samples) == len(server.bodies) > 6
            assert server.connections == 2
            assert {sample.verdict for sample in drive.samples} == {"ok"}
            assert abs(server.bodies.count(b"a") - server.bodies.count(b"ccc")) <= 1
            assert server.heads[0].startswith(b"POST /predictions/m?x=1 HTTP/1.1\r\n")

    asyncio.run(scenario())


def test_a_server_that_stalls_is_charged_for_the_requests_that_came_due_meanwhile() -> None:
    stalled = False

    async def stall_once(body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            await asyncio.sleep(0.3)
        await _echo(body, writer)

    async def scenario() -> LoadRun:
        async with Server(stall_once) as server:
            due = [index * 0.01 for index in range(20)]
            return await open_loop(_opener(server.target(b"a")), 1, due=due, max_connections=1, first_connections=1)

    # One connection: all wait for the first. A driver that counted from the sending would report one slow request.
    first, *others = asyncio.run(scenario()).samples
    assert sum(sample.latency_s > 0.1 for sample in (first, *others)) >= 15
    assert all(sample.sent >= first.done for sample in others)


def test_an_open_loop_opens_connections_instead_of_waiting() -> None:
    async def scenario() -> None:
        all_came = asyncio.Event()

        async def answer_when_all_came(body: bytes, writer: asyncio.StreamWriter) -> None:
            if len(server.bodies) == 12:
                all_came.set()
            await all_came.wait()
            await _echo(body, writer)

        async with Server(answer_when_all_came) as server:
            await open_loop(_opener(server.target(b"a")), 1, due=[0.0] * 12, first_connections=1)
            assert server.connections == 12

    asyncio.run(scenario())


@pytest.mark.usefixtures("clock_of_answers")
@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        (b"HTTP/1.1 503 No worker\r\nContent-Length: 2\r\n\r\n{}", "503"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", "ok"),
        (None, "connection lost"),
    ],
)
def test_what_a_server_does_to_a_request_is_what_is_counted(raw: bytes | None, verdict: str) -> None:
    async def respond(_: bytes, writer: asyncio.StreamWriter) -> None:
        if raw is None:
            writer.transport.abort()
        else:
            writer.write(raw)

    async def scenario() -> LoadRun:
        async with Server(respond) as server:
            return await closed_loop(_opener(server.target(b"a")), 1, clients=1, seconds=0.1)

    drive = asyncio.run(scenario())
    assert len(drive.samples) > 1
    assert {sample.verdict for sample in drive.samples} == {verdict}


def test_a_reply_that_never_comes_is_a_timeout_and_its_connection_is_not_used_again() -> None:
    async def silent(_: bytes, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def connected(server: Server, clients: int) -> None:
        # A client has its connection before the server's part of the event loop hears of it.
        while server.connections < clients:
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with Server(silent) as server:
            target = HttpTarget(f"http://127.0.0.1:{server.port}/", [b"a"], ["text/plain"], deadline_s=0.05)
            lane = await HttpConnection.open(target, SharedRequests(target.messages, None, None))
            assert (await lane.call(0)).verdict == "timeout"
            await asyncio.sleep(0.01)
            assert (await lane.call(0)).verdict == "timeout"
            await asyncio.wait_for(connected(server, 2), 60)
            assert server.connections == 2
            await lane.close()

    asyncio.run(scenario())


def test_where_nothing_listens_the_error_names_the_address() -> None:
    with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:9"):
        run_load(HttpTarget("http://127.0.0.1:9/x", [b""], ["text/plain"]), Load(clients=1, seconds=0.1))


@settings(max_examples=60)
@given(body=st.binary(max_size=300), cut=st.integers(0, 400), chunked=st.booleans(), size=st.integers(1, 50))
def test_a_reply_is_read_whole_or_not_at_all(body: bytes, cut: int, chunked: bool, size: int) -> None:
    if chunked:
        parts = [body[i : i + size] for i in range(0, len(body), size)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    else:
        sent, head = body, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    whole = head + sent
    assert read_reply(whole) == (200, body, False)
    if cut < len(whole):
        assert read_reply(whole[:cut]) is None


@given(rate=st.floats(1, 500), seconds=st.floats(0.1, 5), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_arrivals_ascend_and_are_the_same_for_the_same_seed(rate: float, seconds: float, seed: int) -> None:
    due = arrivals("poisson", rate, seconds, seed=seed)
    assert due == sorted(due) == arrivals("poisson", rate, seconds, seed=seed)
    assert all(0 < moment < seconds for moment in due)


def test_poisson_arrivals_have_their_rate_and_gaps_of_every_length() -> None:
    due = arrivals("poisson", 100, 100)
    gaps = [later - earlier for earlier, later in pairwise(due)]
    assert len(due) == pytest.approx(10_000, rel=0.05)
    # Of exponential gaps, 1 - 1/e are shorter than the mean; of constant ones, none.
    assert sum(gap < 0.01 for gap in gaps) / len(gaps) == pytest.approx(1 - 1 / math.e, abs=0.02)
    assert arrivals("constant", 4, 1) == [0, 0.25, 0.5, 0.75]


def test_warm_up_is_not_counted_and_failures_have_no_latency() -> None:
    samples = (
        LatencySample(0.5, 0.5, 5.5, 0, "ok"),
        LatencySample(1.0, 1.0, 1.1, 0, "ok"),
        LatencySample(1.5, 1.5, 1.7, 0, "ok"),
        LatencySample(2.0, 2.0, 9.0, 0, "503"),
        LatencySample(2.5, 2.5, 3.0, 0, "ok"),
    )
    measured = measure(LoadRun(samples, 9.0, 0.1), skip_s=1.0)
    assert (measured.requests, measured.failed, measured.errors) == (4, 1, {"503": 1})
    assert measured.quantiles_ms[0.5] == pytest.approx(200)
    assert measured.max_ms == pytest.approx(500)
    assert measured.requests_per_second == pytest.approx(4 / 8)
    assert not measured.holds(1000)


@pytest.mark.parametrize("clients", [1, 8, 50])
def test_a_closed_loop_has_the_rate_of_the_server_however_many_wait_in_it(clients: int) -> None:
    # One request after the other, 50 a second; each client asks again at once, until 4 s are over.
    waiting, samples, now = [0.0] * clients, [], 0.0
    while waiting:
        now += 0.02
        sent = waiting.pop(0)
        samples.append(LatencySample(sent, sent, now, 0, "ok"))
        if now < 4.0:
            waiting.append(now)
    measured = measure(LoadRun(tuple(samples), now, 0.1), skip_s=1.0)
    assert measured.requests_per_second == pytest.approx(50, rel=0.01)
    assert measured.requests == len([sample for sample in samples if sample.due >= 1.0])


def test_a_driver_that_is_late_or_busy_says_so() -> None:
    late = tuple(LatencySample(i * 0.1, i * 0.1 + 0.02, i * 0.1 + 0.03, 0, "ok") for i in range(10))
    assert not measure(LoadRun(late, 1.0, 0.1)).driver_kept_up
    on_time = tuple(LatencySample(i * 0.1, i * 0.1, i * 0.1 + 0.03, 0, "ok") for i in range(10))
    assert measure(LoadRun(on_time, 1.0, 0.1)).driver_kept_up
    assert not measure(LoadRun(on_time, 1.0, 0.9)).driver_kept_up


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.99, 0.999)] == [50, 99, 100]
    assert math.isnan(quantile([], 0.5))


def test_the_histogram_counts_everything_once() -> None:
    buckets = histogram([1.0, 1.2, 2.0, 7.9])
    assert sum(number for _, number in buckets) == 4
    assert histogram_lines(buckets) == [
        "up to      1.0 ms       1  ########################################",
        "up to      1.4 ms       1  ########################################",
        "up to      2.0 ms       1  ########################################",
        "up to      2.8 ms       0",
        "up to      4.0 ms       0",
        "up to      5.7 ms       0",
        "up to      8.0 ms       1  ########################################",
    ]


def test_an_answer_with_another_best_label_is_wrong() -> None:
    check = SameAnswer()
    assert check(0, Answer("ok", b'{"cat": 0.9, "dog": 0.1}')).is_ok
    assert check(1, Answer("ok", b'{"dog": 0.8}')).is_ok
    assert check(0, Answer("ok", b'{"cat": 0.91}')).is_ok
    assert check(0, Answer("ok", b'{"dog": 0.6}')).verdict == "wrong answer"
    assert best_label(b"not json") is None


def test_a_load_is_either_closed_or_open(tmp_path: object) -> None:
    with pytest.raises(UsageError, match="either clients"):
        Load(clients=1, rps=2)
    with pytest.raises(UsageError, match="either clients"):
        Load()
    assert str(Load(clients=8)) == "8 clients, closed loop"
    assert str(Load(rps=50)) == "50 requests/s, poisson arrivals"


def test_a_folder_of_inputs_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    assert [item.name for item in read_inputs([str(tmp_path)], tmp_path)] == ["a.png", "b.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no files"):
        read_inputs(["empty"], tmp_path)


def _measured(seconds: float, done: list[float], *, failed: int = 0) -> Measurement:
    """Measure requests that came at equal distances within ``seconds``, and were answered at these moments."""
    count = len(done)
    samples = [
        LatencySample(seconds * i / count, seconds * i / count, at, 0, "503" if i < failed else "ok")
        for i, at in enumerate(done)
    ]
    return measure(LoadRun(tuple(samples), max(done, default=0.0), 0.1))


def test_a_verdict_says_what_was_asked_for_what_came_of_it_and_whether_that_holds() -> None:
    # 50 requests a second for 10 s, each answered after 20 ms.
    on_time = _measured(10, [i / 50 + 0.02 for i in range(500)])
    good = judge(on_time, p99_ms=50, rps=50, seconds=10)
    assert (good.held, good.lines()) == (
        True,
        ["p99 20.0 <= 50 ms: held", "50.0 of 50 requests/s answered: held", "0 requests failed: held"],
    )
    late = judge(on_time, p99_ms=10)
    assert (late.held, late.lines()[0]) == (False, "p99 20.0 > 10 ms: not held")
    assert late.record()["checks"][0] == {"what": "p99Ms", "limit": 10, "measured": 20.0, "held": False}


def test_without_a_target_nothing_is_judged_but_failures() -> None:
    on_time = _measured(10, [i / 50 + 0.02 for i in range(500)])
    free = judge(on_time)
    assert (free.held, free.record()["held"]) == (True, None)
    assert free.lines() == ["measured and not judged: neither a limit nor a rate was asked for"]
    refused = judge(_measured(10, [i / 50 + 0.02 for i in range(500)], failed=3))
    assert (refused.held, refused.record()["held"], refused.lines()) == (False, False, ["3 requests failed: not held"])
    nothing = judge(_measured(10, []), p99_ms=50)
    assert not nothing.held
    assert nothing.lines() == ["no answer to measure p99 with: not held", "no request came: not held"]


@pytest.mark.parametrize(("answered_a_second", "held"), [(100, True), (50, True), (40, False), (10, False)])
def test_a_rate_is_held_when_answers_keep_up_with_requests(answered_a_second: float, held: bool) -> None:
    # One request after the other at a fixed speed, while 50 come a second.
    done, free = [], 0.0
    for i in range(500):
        free = max(free, i / 50) + 1 / answered_a_second
        done.append(free)
    verdict = judge(_measured(10, done), rps=50, seconds=10)
    assert verdict.held is held
    assert ("not held" in verdict.lines()[0]) is not held


def test_a_short_load_with_few_requests_is_not_judged_by_its_last_one() -> None:
    assert judge(_measured(1, [0.1 * i + 0.2 for i in range(10)]), rps=10, seconds=1).held
