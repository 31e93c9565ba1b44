"""Steady load on a model from plain clients that repeat nothing: REST closed loop, REST open loop, gRPC closed loop.

Every reply is kept with the moments between which it came, so that it can be judged afterwards: a right one echoes its
own request and names a version that was the default at some time in between.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from marsmith.client.grpc import InferenceChannel
from marsmith.run_state import RunState


@dataclass(frozen=True)
class Sent:
    """One request and what came of it; times on the monotonic clock, in seconds."""

    way: str
    marker: str
    began_s: float
    ended_s: float
    status: int
    body: bytes

    @property
    def version(self) -> str | None:
        """The version that a right reply names; None where it is not the echo of this request."""
        try:
            reply = json.loads(self.body)
            return str(reply["version"]) if self.status == 200 and reply["echo"] == self.marker else None
        except (ValueError, KeyError, TypeError):
            return None


@dataclass
class SteadyLoad:
    """Requests to one model that name no version, until it is stopped.

    Attributes:
        think_s: pause of a closed loop after an answer, in seconds. Without it the load takes all cores.
    """

    state: RunState
    model: str
    token: str | None = None
    body: Callable[[str], bytes] = str.encode
    think_s: float = 0.01
    sent: list[Sent] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _markers: Iterator[int] = field(default_factory=itertools.count)

    def rest_closed(self) -> None:
        """Send over one REST connection, each request ``think_s`` after the answer to the one before."""
        connection = http.client.HTTPConnection(urlsplit(self.state.inference).netloc, timeout=60)
        with _closing(connection):
            while not self._stop.wait(self.think_s):
                self._send("rest closed", lambda marker: self._post(connection, marker))

    def rest_open(self, per_second: float) -> None:
        """Send at a fixed rate, however long answers take: connections of their own, as many as it needs."""
        with ThreadPoolExecutor(16) as pool:
            begin = time.monotonic()
            for i in itertools.count():
                if self._stop.wait(max(0.0, begin + i / per_second - time.monotonic())):
                    return
                pool.submit(self._send, "rest open", self._post_once)

    def grpc_closed(self) -> None:
        """Send over one gRPC channel, each request ``think_s`` after the answer to the one before."""
        channel = InferenceChannel(self.state.grpc_inference)
        with _closing(channel):
            while not self._stop.wait(self.think_s):
                self._send("grpc closed", lambda marker: self._call(channel, marker))

    def stop(self) -> None:
        """Let every loop end after its present request."""
        self._stop.set()

    def count(self) -> int:
        """Return how many requests have ended so far."""
        return len(self.sent)

    def failed(self) -> list[Sent]:
        """Return the requests that got no answer."""
        return [sent for sent in self.sent if sent.status != 200]

    def wrong(self, was_default: Callable[[str, float, float], bool]) -> list[Sent]:
        """Return the answers of a version that was no default meanwhile, or to another request."""
        return [
            sent
            for sent in self.sent
            if sent.status == 200
            and (sent.version is None or not was_default(sent.version, sent.began_s, sent.ended_s))
        ]

    def by_way(self) -> Counter[str]:
        """Return how many requests came which way."""
        return Counter(sent.way for sent in self.sent)

    def _send(self, way: str, send: Callable[[str], tuple[int, bytes]]) -> None:
        marker, began = f"m{next(self._markers)}", time.monotonic()
        try:
            status, body = send(marker)
        except Exception as error:  # any trouble at all is a failed request
            status, body = -1, repr(error).encode()
        self.sent.append(Sent(way, marker, began, time.monotonic(), status, body))

    def _post_once(self, marker: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.state.inference).netloc, timeout=60)
        with _closing(connection):
            return self._post(connection, marker)

    def _post(self, connection: http.client.HTTPConnection, marker: str) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        connection.request("POST", f"/predictions/{self.model}", self.body(marker), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()

    def _call(self, channel: InferenceChannel, marker: str) -> tuple[int, bytes]:
        reply = channel.predict(self.model, None, self.body(marker), self.token, 60)
        return reply.status, reply.body


@contextmanager
def steady_load(load: SteadyLoad, *, closed: int = 2, per_second: float = 20.0, grpc: int = 1) -> Iterator[SteadyLoad]:
    """Keep ``load`` up inside the block: so many closed loops over REST and gRPC, and an open one."""
    loops: list[Callable[[], None]] = [load.rest_closed] * closed + [load.grpc_closed] * grpc
    if per_second:
        loops.append(lambda: load.rest_open(per_second))
    threads = [threading.Thread(target=loop) for loop in loops]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(load.stop)
        yield load


@contextmanager
def _closing(connection: http.client.HTTPConnection | InferenceChannel) -> Iterator[None]:
    try:
        yield
    finally:
        connection.close()
