"""HTTP connections for ``requests`` with one deadline for the whole call.

The timeout of requests applies to each address, each write and each read, so a server that sends a byte now and then
keeps a call forever. Here the socket has the deadline: before it connects, writes or reads, its timeout is set to the
remaining time. There is no thread that watches. A connection whose call ran out of time is never used again.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from marsmith.client.deadline import CONNECTING, HANDSHAKE, READING, SENDING, WAITING, Deadline

# The maximum timeout of a socket is about 24 days.
_LONGEST_WAIT_S = 86_400.0
_NO_DEADLINE = Deadline(float("inf"))


class OutOfTime(Exception):  # noqa: N818 - names the finding
    """The deadline has passed. Not an OSError, which urllib3 would convert.

    Attributes:
        doing: step of the call.
    """

    def __init__(self, doing: str) -> None:
        super().__init__(doing)
        self.doing = doing


class NotConnected(Exception):  # noqa: N818
    """The connection could not be established.

    Attributes:
        error: the reason; a ``socket.gaierror`` if the host name is unknown.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Call:
    """The call of a connection, shared with its socket.

    Attributes:
        deadline: deadline of the call.
        doing: current step.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.doing = CONNECTING

    def seconds(self) -> float:
        """Return the timeout of the next step, in seconds; raises OutOfTime."""
        left_s = self.deadline.left_s
        if left_s <= 0:
            raise OutOfTime(self.doing)
        return min(left_s, _LONGEST_WAIT_S)


_current: ContextVar[_Call] = ContextVar("_current")


@contextmanager
def ends_with(deadline: Deadline) -> Iterator[None]:
    """Set the deadline of requests that begin in this context, including replies that are read later."""
    before = _current.set(_Call(deadline))
    try:
        yield
    finally:
        _current.reset(before)


class _Timed:
    """Deadline of a plain or TLS socket; ``call`` is set when a request begins."""

    call: _Call

    def _within(self, step: Any, *arguments: Any) -> Any:
        self.settimeout(self.call.seconds())  # type: ignore[attr-defined]
        try:
            return step(*arguments)
        except TimeoutError:
            raise OutOfTime(self.call.doing) from None


class _Socket(_Timed, socket.socket):
    def sendall(self, *arguments: Any) -> None:
        self._within(super().sendall, *arguments)

    def recv_into(self, *arguments: Any) -> int:
        return int(self._within(super().recv_into, *arguments))


class _TlsSocket(_Timed, ssl.SSLSocket):
    """The timeouts of a TLS socket apply to a whole handshake or record, so the deadline is set for each of them."""

    def do_handshake(self, block: bool = False) -> None:
        # The handshake comes before ``call`` can be set.
        self.call = _call()
        self.call.doing = HANDSHAKE
        try:
            self._within(super().do_handshake, block)
        except OutOfTime:
            # The socket is not shared yet.
            self.close()
            raise

    def send(self, *arguments: Any) -> int:
        return int(self._within(super().send, *arguments))

    def read(self, *arguments: Any) -> Any:
        return self._within(super().read, *arguments)


class _Connection(HTTPConnection):
    sock: Any

    def _new_conn(self) -> socket.socket:
        return _connected(self._dns_host, self.port or self.default_port, _call())

    def request(self, *arguments: Any, **named: Any) -> None:
        if self.sock is None:
            self.connect()
        call = _call()
        self.sock.call = call
        call.doing = SENDING
        super().request(*arguments, **named)
        call.doing = WAITING

    def getresponse(self) -> Any:
        call = self.sock.call
        response = super().getresponse()
        call.doing = READING
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class TimedAdapter(HTTPAdapter):
    """Keeps the connections of a session, and ends each call at its deadline."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        """Create pools of our own connections."""
        context = create_urllib3_context()
        context.sslsocket_class = _TlsSocket
        super().init_poolmanager(*arguments, **named, ssl_context=context)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


def _call() -> _Call:
    return _current.get(_Call(_NO_DEADLINE))


def _connected(host: str, port: int, call: _Call) -> socket.socket:
    """Connect to the first address that accepts."""
    call.doing = CONNECTING
    failure = OSError(f"{host} has no address")
    try:
        addresses = _addresses(host.strip("[]"), port, call)
    except OSError as error:
        raise NotConnected(error) from None
    for family, kind, protocol, _, address in addresses:
        try:
            return _connect(_Socket(family, kind, protocol), address, call)
        except OSError as error:
            failure = error
    raise NotConnected(failure)


def _connect(made: _Socket, address: Any, call: _Call) -> _Socket:
    made.call = call
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made._within(made.connect, address)
    except BaseException:
        made.close()
        raise
    return made


def _addresses(host: str, port: int, call: _Call) -> list[Any]:
    """Look up a host in a thread.

    The thread is abandoned if it takes too long, because a look-up cannot be cancelled.
    """
    with suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    found: Future[list[Any]] = Future()

    def look_up() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=look_up, name=f"look up {host}", daemon=True).start()
    try:
        return found.result(call.seconds())
    except TimeoutError:
        raise OutOfTime(f"looking up {host}") from None
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from None
