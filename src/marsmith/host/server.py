"""A host as a process: its sockets, its event loop, and its orderly end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from marsmith.child_processes import StopRequestedError
from marsmith.errors import MissingDependencyError, ServerError, UsageError
from marsmith.host import state as states
from marsmith.host.application import Application, Limits
from marsmith.host.catalogue import Catalogue, Source
from marsmith.host.keys import Keys
from marsmith.host.measured import Measured
from marsmith.host.version import Wishes

_BACKLOG = 2048
_WATCH_S = 1.0


@dataclass(frozen=True)
class HostOptions:
    """How a host runs.

    Attributes:
        source: its archives.
        folder: folder of its state, its key file and its logs.
        address: address to listen at.
        port: port; 0: a free one.
        grpc_port: port of the gRPC API; None: none.
        wishes: settings for all versions.
        tokens: whether requests need a token.
        certificate, private_key: TLS; None: plain HTTP.
        watch: whether changed archives are served without a signal.
        limits: of one request.
        request_s: time in which a whole request must arrive, in seconds.
    """

    source: Source
    folder: Path
    address: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    wishes: Wishes = field(default_factory=Wishes)
    tokens: bool = True
    certificate: Path | None = None
    private_key: Path | None = None
    watch: bool = False
    limits: Limits = field(default_factory=Limits)
    request_s: float = 60.0


class Reports:
    """What the caller is told; prints nothing by default."""

    def tell(self, text: str) -> None:
        """One sentence about what has happened."""

    def admit(self, path: Path) -> None:
        """Refuse an archive before it is run."""

    def ready(self, state: states.HostState, catalogue: Catalogue) -> None:
        """Everything answers."""


def run(options: HostOptions, reports: Reports) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was taken and end.

    Raises:
        MissingDependencyError: the extra ``host`` is not installed.
        ServerError: a port is in use, or another host has this state.
        MarsmithError: an archive cannot be served.
        StopRequestedError: a signal came before everything was ready.
    """
    loop_factory = _loop_factory()
    _check_pair(options)
    with (
        states.held(options.folder),
        _listening(options.address, options.port) as listener,
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):
        runner.run(_serve(options, reports, listener))


def _check_pair(options: HostOptions) -> None:
    if options.certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(options.certificate, options.private_key)
    except OSError as error:
        both = f"{options.certificate} and {options.private_key}"
        reason = getattr(error, "reason", None) or error.strerror
        raise UsageError(
            f"{both} are not a certificate and its private key: {reason}", tip="marsmith certificate makes both"
        ) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import httptools  # noqa: F401 - the protocol needs it
        import uvicorn  # noqa: F401
        import uvloop
    except ImportError as error:
        raise MissingDependencyError(str(error.name), extra="host") from None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


@contextmanager
def _listening(address: str, port: int) -> Iterator[socket.socket]:
    """Take the port before anything is loaded; whoever connects until then waits.

    Only a socket that listens keeps others away from its port.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ServerError(
                f"cannot listen at {address}:{port}: {error.strerror}", tip="--port with another"
            ) from None
        except OverflowError:
            raise UsageError(f"--port {port} is not from 0 to 65535") from None
        yield listener


async def _serve(options: HostOptions, reports: Reports, listener: socket.socket) -> None:
    keys = Keys() if options.tokens else None
    application = Application(lambda: _catalogue(options, reports), keys=keys, limits=options.limits)
    ended = _Signals(asyncio.current_task())
    try:
        catalogue = await application.start()
        grpc = await _grpc(options, application, keys)
    except BaseException:
        await application.stop()
        if ended.number is not None:
            raise StopRequestedError(ended.number) from None
        raise
    ended.is_ready = True
    listening = asyncio.Event()
    server = _uvicorn(options, application, listening)
    tasks: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(ended.wait()),
        asyncio.ensure_future(listening.wait()),
        asyncio.ensure_future(_reloading(ended, catalogue, options.watch)),
    ]
    served = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        # A server that fails never listens.
        await asyncio.wait([served, tasks[0], tasks[1]], return_when=asyncio.FIRST_COMPLETED)
        if listening.is_set():
            _announce(options, reports, listener, keys, catalogue)
        await asyncio.wait([served, tasks[0]], return_when=asyncio.FIRST_COMPLETED)
        reports.tell("ending: what was taken is answered")
        server.should_exit = True
        # Both at the same time: neither takes new requests, and both have the whole time.
        await asyncio.gather(served, *([grpc.stop(options.limits.drain_s)] if grpc is not None else []))
    finally:
        for task in tasks:
            task.cancel()
        await application.stop()


class _Signals:
    """Signals of the process: an end, and a wish to reload.

    Attributes:
        number: the signal that asked for the end.
        is_ready: whether an end is orderly; before that, the start is cut off.
    """

    def __init__(self, starting: asyncio.Task[Any] | None) -> None:
        self.number: int | None = None
        self.is_ready = False
        self.reload = asyncio.Event()
        self._ended = asyncio.Event()
        self._starting = starting
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)

    async def wait(self) -> None:
        """Wait for the end."""
        await self._ended.wait()

    def _end(self, number: int) -> None:
        if self.number is not None:
            # A second one must not cut off the end itself.
            return
        self.number = number
        self._ended.set()
        if not self.is_ready and self._starting is not None:
            self._starting.cancel()


def _catalogue(options: HostOptions, reports: Reports) -> Catalogue:
    logs = options.folder / states.LOGS
    logs.mkdir(mode=0o700, exist_ok=True)
    return Catalogue(options.source, options.wishes, Measured(), reports.tell, admit=reports.admit, log_folder=logs)


def _uvicorn(options: HostOptions, application: Application, listening: asyncio.Event) -> Any:
    import uvicorn

    from marsmith.host.connections import LimitedProtocol

    class Protocol(LimitedProtocol):
        request_s = options.request_s

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals to the host."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Tell when connections are accepted."""
            await super().startup(sockets)
            listening.set()

    secure = {"ssl_certfile": options.certificate, "ssl_keyfile": options.private_key} if options.certificate else {}
    config = uvicorn.Config(
        application,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        backlog=_BACKLOG,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(options.limits.drain_s),
        **secure,  # type: ignore[arg-type]
    )
    return Server(config)


async def _grpc(options: HostOptions, application: Application, keys: Keys | None) -> Any:
    if options.grpc_port is None:
        return None
    from marsmith.host.grpc_server import start

    pair = (options.certificate, options.private_key) if options.certificate and options.private_key else None
    address = f"{_bracketed(options.address)}:{options.grpc_port}"
    return await start(application, keys, address, options.limits.request_bytes, pair)


def _announce(
    options: HostOptions, reports: Reports, listener: socket.socket, keys: Keys | None, catalogue: Catalogue
) -> None:
    host, port = listener.getsockname()[:2]
    shown = _bracketed(host)
    scheme = "https" if options.certificate else "http"
    pid = os.getpid()
    state = states.HostState(
        pid=pid,
        created=psutil.Process(pid).create_time(),
        url=f"{scheme}://{shown}:{port}",
        grpc=f"{shown}:{options.grpc_port}" if options.grpc_port is not None else None,
        key_file=keys.write(options.folder) if keys else None,
    )
    states.write(options.folder, state)
    reports.ready(state, catalogue)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _reloading(signals: _Signals, catalogue: Catalogue, watch: bool) -> None:
    """Reload at each SIGHUP, and if archives have changed and stayed so for a look."""
    seen = False
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(signals.reload.wait(), _WATCH_S if watch else None)
        asked = signals.reload.is_set()
        changed = watch and await asyncio.to_thread(catalogue.changes)
        if asked or (changed and seen):
            signals.reload.clear()
            await catalogue.reload()
            changed = False
        seen = changed
