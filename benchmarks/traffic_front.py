"""The part of `traffic.py` about the front itself: latency that it adds, memory, and what a fault costs with it."""

from __future__ import annotations

import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil

from faults import kill_server, serving
from marsmith import run_state
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.client.grpc import InferenceChannel
from marsmith.client.key_file import read_key_file
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server.front.door import Front
from marsmith.server.front.listener import ROUTER
from marsmith.server.front.process import find_envoy
from support.faulty_server import command, faulty_project, kill, load
from support.live_server import free_ports, until

MODEL = "two"
SIZES = {"200 B": 200, "64 kB": 64_000}
REQUESTS_A_ROUND = 50
HELD_BODIES = 4
HELD_BYTES = 16_000_000
FAULTS = 3

TYPES = "type.googleapis.com/envoy.extensions"

Send = Callable[[bytes], None]


@dataclass(frozen=True)
class Added:
    """Latency of one kind of request, in milliseconds.

    Attributes:
        kind: API, size, and the Envoy that it goes through.
        past_p50_ms, through_p50_ms: medians of all requests, past Envoy and through it.
        added_p50_ms: median over the rounds of what Envoy adds to the median of a round.
        low_ms, high_ms: interval of that median, 95%, by the order of the rounds.
        requests: of each side.
    """

    kind: str
    past_p50_ms: float
    through_p50_ms: float
    added_p50_ms: float
    low_ms: float
    high_ms: float
    requests: int


def measure(rounds: int) -> dict[str, object]:
    """Measure everything; ``rounds`` is for the latency."""
    with tempfile.TemporaryDirectory() as folder:
        project = faulty_project(Path(folder), (MODEL,), token_life_s=3600, front="envoy")
        with project.server_config.open("a") as config:
            # The handler answers with what it got.
            config.write("max_response_size=20000000\n")
        with serving(project):
            idle = _front_bytes(project)
            added = [asdict(each) for each in _added(run_state.read(project), rounds)]
            used = _front_bytes(project)
            held = _held_bytes(project)
            with_front = _java_killed(project)
            away = [_envoy_killed(project) for _ in range(FAULTS + 2)]
        project.settings_file.write_text(project.settings_file.read_text().replace("front: envoy", "front: none"))
        with serving(project):
            without = _java_killed(project)
    memory = {"idle_bytes": idle, "after_load_bytes": used, "bytes_a_held_body": held, "held_body_bytes": HELD_BYTES}
    killed = {"with": with_front, "without": without}
    return {"added": added, "memory": memory, "java_killed": killed, "envoy_away_s": away}


def tables(found: dict[str, Any]) -> str:
    """Return the figures as tables."""
    lines = [
        "| request | to TorchServe, p50 | through Envoy, p50 | added p50 (95%) | ratio | requests each |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for each in found["added"]:
        interval = f"{each['added_p50_ms']:.2f} ms ({each['low_ms']:.2f} to {each['high_ms']:.2f})"
        times = f"{each['past_p50_ms']:.2f} ms | {each['through_p50_ms']:.2f} ms"
        ratio = each["through_p50_ms"] / each["past_p50_ms"]
        lines.append(f"| {each['kind']} | {times} | {interval} | {ratio:.2f} | {each['requests']} |")
    memory = found["memory"]
    lines += ["", "| memory of Envoy | |", "|---|--:|"]
    lines.append(f"| idle | {memory['idle_bytes'] / 1e6:.0f} MB |")
    lines.append(f"| after the load above | {memory['after_load_bytes'] / 1e6:.0f} MB |")
    held = memory["bytes_a_held_body"] / 1e6
    lines.append(f"| for each body of {memory['held_body_bytes'] / 1e6:.0f} MB that is kept | {held:.1f} MB |")
    lines += ["", f"| Java killed {FAULTS} times | requests sent once: failed | slowest |", "|---|--:|--:|"]
    for name, seen in found["java_killed"].items():
        lines.append(f"| {name} the front | {seen['failed']} of {seen['sent']} | {seen['longest_s']:.1f} s |")
    away = found["envoy_away_s"]
    lines += ["", f"Envoy killed: answers again after {statistics.median(away):.2f} s (at most {max(away):.2f} s)."]
    return "\n".join(lines)


def _added(state: RunState, rounds: int) -> Iterator[Added]:
    token = read_key_file(state.key_file).inference.value
    with ExitStack() as stack:
        past, bare = state.without_front(), stack.enter_context(_bare_envoy(state))
        ways = {
            "REST": {"past": _rest(past, token), "front": _rest(state, token)},
            # How much of it is any Envoy between the two?
            "gRPC": {
                "past": _grpc(past, token),
                "front": _grpc(state, token),
                "an Envoy that only passes": _grpc(bare, token),
            },
        }
        for way, senders in ways.items():
            opened = {name: stack.enter_context(sender) for name, sender in senders.items()}
            for size, count in SIZES.items():
                yield from _compare(f"{way}, {size}", opened, command(pad="x" * (count - 12)), rounds)


def _compare(kind: str, senders: Mapping[str, Send], body: bytes, rounds: int) -> Iterator[Added]:
    """Send through all of them in turns, one request at a time, in a random order within each turn."""
    taken: dict[str, list[float]] = {name: [] for name in senders}
    medians: dict[str, list[float]] = {name: [] for name in senders}
    for number in range(rounds + 1):
        one: dict[str, list[float]] = {name: [] for name in senders}
        for _ in range(REQUESTS_A_ROUND):
            for name in random.sample(list(senders), len(senders)):
                began = time.perf_counter()
                senders[name](body)
                one[name].append((time.perf_counter() - began) * 1e3)
        if number:  # the first round warms up
            for name, values in one.items():
                medians[name].append(statistics.median(values))
                taken[name] += values
    past = statistics.median(taken["past"])
    for name in list(senders)[1:]:
        differences = [through - alone for through, alone in zip(medians[name], medians["past"], strict=True)]
        low, high = interval(differences)
        added, through = statistics.median(differences), statistics.median(taken[name])
        yield Added(f"{kind}, {name}", past, through, added, low, high, len(taken[name]))


@contextmanager
def _bare_envoy(state: RunState) -> Iterator[RunState]:
    """Run an Envoy that passes gRPC to TorchServe and does nothing else; yield its address."""
    host, port = "127.0.0.1", free_ports(1)[0]
    behind = int(state.without_front().grpc_inference.rpartition(":")[2])
    route = {"match": {"prefix": "/"}, "route": {"cluster": "torchserve", "timeout": "0s"}}
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [ROUTER],
    }
    http2 = {
        "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    place = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": behind}}}}
    cluster = {
        "name": "torchserve",
        "load_assignment": {"cluster_name": "torchserve", "endpoints": [{"lb_endpoints": [place]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }
    listener = {
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    config = json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})
    command_line = [str(find_envoy()), "--config-yaml", config, "--disable-hot-restart", "--concurrency", "2"]
    with subprocess.Popen([*command_line, "--log-level", "error"], stdin=subprocess.DEVNULL) as process:
        try:
            until(lambda: _listens(host, port))
            yield replace(state, grpc_inference=f"{host}:{port}")
        finally:
            process.kill()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def interval(values: list[float]) -> tuple[float, float]:
    """Return the interval of the median at 95%, from the binomial distribution of ranks, by its normal form."""
    ordered, count = sorted(values), len(values)
    reach = 1.96 * count**0.5 / 2
    return ordered[max(0, int(count / 2 - reach))], ordered[min(count - 1, int(count / 2 + reach))]


@contextmanager
def _rest(state: RunState, token: str) -> Iterator[Send]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    with closing(http.client.HTTPConnection(urlsplit(state.inference).netloc)) as connection:

        def send(body: bytes) -> None:
            connection.request("POST", f"/predictions/{MODEL}", body, headers)
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 200, reply.status

        yield send


@contextmanager
def _grpc(state: RunState, token: str) -> Iterator[Send]:
    with closing(InferenceChannel(state.grpc_inference)) as channel:

        def send(body: bytes) -> None:
            assert channel.predict(MODEL, None, body, token, 60).status == 200

        yield send


def _front_bytes(project: Project) -> int:
    process = Front.of(project).process
    assert process is not None
    return int(psutil.Process(process.pid).memory_info().rss)


def _held_bytes(project: Project) -> float:
    """Return what the front takes for each body that it keeps until the answer."""
    gate = project.root / "gate"
    body = command(until=str(gate), pad="x" * (HELD_BYTES - 200))
    before = _front_bytes(project)
    with (
        Client.for_project(project, retries=NO_RETRIES, deadline_s=120) as client,
        ThreadPoolExecutor(HELD_BODIES) as pool,
    ):
        held = [pool.submit(client.predict, MODEL, body) for _ in range(HELD_BODIES)]
        # The workers have one each, the others wait in the queue: all of them have passed the front.
        until(lambda: client.describe(MODEL)[0].queue_pending == HELD_BODIES - 2)
        taken = _front_bytes(project) - before
        gate.touch()
        for each in held:
            each.result()
    return taken / HELD_BODIES


def _java_killed(project: Project) -> dict[str, float]:
    """Kill Java under a load of clients that send each request once."""
    sent = failed = 0
    longest_s = 0.0
    for _ in range(FAULTS):
        with load(lambda: Client.for_project(project, retries=NO_RETRIES, deadline_s=120), MODEL) as seen:
            time.sleep(1)
            kill_server(project)
            time.sleep(1)
        failed += seen.wrong + sum(seen.failed.values())
        sent += seen.answered + seen.wrong + sum(seen.failed.values())
        longest_s = max(longest_s, seen.longest_s)
    return {"sent": sent, "failed": failed, "longest_s": longest_s}


def _envoy_killed(project: Project) -> float:
    """Kill Envoy; return how long it took until a request was answered, in seconds."""
    process = Front.of(project).process
    assert process is not None
    state = run_state.read(project)
    token = read_key_file(state.key_file).inference.value
    began = time.monotonic()
    kill(process.pid)
    until(lambda: _is_answered(state, token))
    taken = time.monotonic() - began
    time.sleep(1)
    return taken


def _is_answered(state: RunState, token: str) -> bool:
    try:
        with _rest(state, token) as send:
            send(b"{}")
    except OSError:
        return False
    return True
