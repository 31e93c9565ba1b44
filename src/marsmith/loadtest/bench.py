"""Load test of a running server: the load, the targets and the run."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from marsmith.client.aio import AsyncTokens
from marsmith.client.grpc import GrpcTarget, Tls
from marsmith.client.tokens import TokenAccess
from marsmith.errors import UsageError
from marsmith.inputs import Input, read_input
from marsmith.json_reader import read_json
from marsmith.loadtest.connection import Answer, OpenConnection
from marsmith.loadtest.driver import Check, Kind, LoadRun, arrivals, closed_loop, open_loop
from marsmith.loadtest.grpc import GrpcConnection, GrpcRequests
from marsmith.loadtest.http import HttpConnection, HttpTarget
from marsmith.loadtest.measurement import Measurement, measure
from marsmith.loadtest.shared_requests import SharedRequests
from marsmith.names import check_model_name, check_named_version
from marsmith.run_state import RunState

Target = HttpTarget | GrpcRequests


@dataclass(frozen=True)
class Load:
    """The load of a test: a closed loop of clients, or an open loop of arrivals.

    Attributes:
        clients: number of clients of a closed loop; each sends its next request when it has its reply. None for an open
            loop.
        rps: requests per second of an open loop. None for a closed loop.
        seconds: duration after the warm-up, in seconds.
        warm_up_s: duration of the warm-up, in seconds; its requests are not counted.
        arrivals: process of the arrivals of an open loop.
        seed: seed of the arrivals.
    """

    clients: int | None = None
    rps: float | None = None
    seconds: float = 10.0
    warm_up_s: float = 2.0
    arrivals: Kind = "poisson"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse inconsistent options.

        Raises:
            UsageError: both or neither of clients and rps are given, or a number is not positive.
        """
        if (self.clients is None) == (self.rps is None):
            raise UsageError("a load has either clients (closed loop) or requests per second (open loop)")
        if min(self.clients or 1, self.rps or 1, self.seconds) <= 0 or self.warm_up_s < 0:
            raise UsageError("clients, requests per second and seconds must be positive")

    def __str__(self) -> str:
        """Return a description."""
        if self.rps is None:
            return f"{self.clients} client{'' if self.clients == 1 else 's'}, closed loop"
        return f"{self.rps:g} requests/s, {self.arrivals} arrivals"


def run_load(target: Target, load: Load, *, check: Check | None = None) -> Measurement:
    """Put ``load`` on ``target`` and measure.

    Raises:
        ConnectionFailedError: the server does not accept connections.
        MissingDependencyError: the target is gRPC and grpcio is not installed.
    """
    return measure(drive(target, load, check=check), skip_s=load.warm_up_s)


def drive(target: Target, load: Load, *, check: Check | None = None) -> LoadRun:
    """Put ``load`` on ``target`` and return every sample, including those of the warm-up."""
    return asyncio.run(_drive(target, load, check))


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Pass asyncio's errors on, except for the interrupt that ended the command."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)


async def _drive(target: Target, load: Load, check: Check | None) -> LoadRun:
    asyncio.get_running_loop().set_exception_handler(_report)
    async with connections_to(target) as open_connection:
        seconds, inputs = load.warm_up_s + load.seconds, len(target.bodies)
        if load.clients is not None:
            return await closed_loop(open_connection, inputs, clients=load.clients, seconds=seconds, check=check)
        due = arrivals(load.arrivals, load.rps or 0.0, seconds, seed=load.seed)
        return await open_loop(open_connection, inputs, due=due, check=check)


def predict_each(target: Target) -> list[Answer]:
    """Send every input once, one after the other, and return the answers.

    Raises:
        ConnectionFailedError: the server does not accept connections.
    """

    async def ask() -> list[Answer]:
        async with connections_to(target) as open_connection:
            connection = await open_connection()
            try:
                return [await connection.call(index) for index in range(len(target.bodies))]
            finally:
                await connection.close()

    return asyncio.run(ask())


@asynccontextmanager
async def connections_to(target: Target) -> AsyncIterator[OpenConnection]:
    """Yield a function that opens connections to ``target``; requests are built once, and again for each new token."""
    with target.tokens.opened() if target.tokens else nullcontext() as source:
        tokens = AsyncTokens(source) if source else None
        if isinstance(target, HttpTarget):
            yield await _http_connections(target, tokens)
        else:
            yield await _grpc_connections(target, tokens)


async def _http_connections(target: HttpTarget, tokens: AsyncTokens | None) -> OpenConnection:
    shared = await SharedRequests.open(target.messages, tokens, target.deadline_s)
    return lambda: HttpConnection.open(target, shared)


async def _grpc_connections(target: GrpcRequests, tokens: AsyncTokens | None) -> OpenConnection:
    shared = await SharedRequests.open(GrpcConnection.metadata, tokens, target.deadline_s)
    messages = target.messages()

    async def open_channel() -> GrpcConnection:
        return GrpcConnection(target, messages, shared)

    return open_channel


def http_target(
    state: RunState, model: str, version: str | None, inputs: Sequence[Input], *, deadline_s: float = 30.0
) -> HttpTarget:
    """Return the target for a model over REST, with the tokens of the project's server."""
    names = (check_model_name(model), *((quote(check_named_version(version), safe=""),) if version else ()))
    return HttpTarget(
        url=f"{state.inference}/predictions/{'/'.join(names)}",
        bodies=[item.body for item in inputs],
        content_types=[item.content_type for item in inputs],
        deadline_s=deadline_s,
        tls=ssl.create_default_context(cafile=str(state.ca_file)) if state.ca_file else None,
        tokens=TokenAccess.of(state),
    )


def grpc_target(
    state: RunState, model: str, version: str | None, inputs: Sequence[Input], *, deadline_s: float = 30.0
) -> GrpcRequests:
    """Return the target for a model over gRPC, with the tokens of the project's server."""
    return GrpcRequests(
        target=GrpcTarget(state.grpc_inference, Tls(state.ca_file) if state.ca_file else None),
        model=check_model_name(model),
        version=check_named_version(version) if version else None,
        bodies=[item.body for item in inputs],
        tokens=TokenAccess.of(state),
        deadline_s=deadline_s,
    )


def read_inputs(references: Sequence[str], root: Path) -> list[Input]:
    """Read inputs; a folder means all files in it, sorted by name.

    Raises:
        UsageError: a file or folder is missing, or a folder has no files.
    """
    inputs: list[Input] = []
    for reference in references:
        folder = root / reference
        if not folder.is_dir():
            inputs.append(read_input(reference, root))
            continue
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not files:
            raise UsageError(f"no files in {folder}", tip="name a folder of inputs, or files")
        inputs += [read_input(str(path), root) for path in files]
    return inputs


@dataclass
class SameAnswer:
    """Marks an answer as wrong if its best label differs from that of the first answer to the same input."""

    label_of: Callable[[bytes], str | None] = field(default=lambda body: best_label(body))
    _first: dict[int, str | None] = field(default_factory=dict)

    def __call__(self, body: int, answer: Answer) -> Answer:
        """Return ``answer``, or a wrong answer if the label differs."""
        label = self.label_of(answer.body)
        return answer if self._first.setdefault(body, label) == label else Answer("wrong answer", answer.body)


def best_label(body: bytes) -> str | None:
    """Return the first key of a JSON mapping (the most probable label of classifiers), or None for other bodies."""
    try:
        value = read_json(body)
    except ValueError:
        return None
    return next(iter(value), None) if isinstance(value, dict) else None
