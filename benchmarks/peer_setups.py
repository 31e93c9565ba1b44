"""The other servers: how each is started, set up and asked."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from contenders import Contender, Serve, free_ports, process
from marsmith.loadtest.http import HttpTarget
from peer_servers.peer_model import PeerSettings

SERVERS = Path(__file__).resolve().parent / "peer_servers"
BATCH = 8
# With as many workers as cores, what 8 clients fill.
SMALL_BATCH = 4
# Workers x threads: one process with both cores, and one for each core.
SHARES = ((1, 2), (2, 1))
BOUNDARY = "marsmith-benchmark"
# No telemetry. Ray writes no token into the home folder, and runs its workers at the priority of everybody else.
VARIABLES = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
}

COMMANDS: dict[str, Callable[[PeerSettings], list[str]]] = {
    "LitServe": lambda _: [sys.executable, str(SERVERS / "litserve_server.py")],
    "FastAPI": lambda _: [sys.executable, str(SERVERS / "fastapi_server.py")],
    "BentoML": lambda settings: [
        *(str(Path(sys.executable).parent / "bentoml"), "serve", "peer_servers.bentoml_service:Service"),
        *("--working-dir", str(SERVERS.parent), "--host", "127.0.0.1", "--port", str(settings.port)),
    ],
    "Ray Serve": lambda _: [sys.executable, str(SERVERS / "ray_app.py")],
}
MODULES = {"LitServe": "litserve", "FastAPI": "fastapi", "BentoML": "bentoml", "Ray Serve": "ray"}


def variants(server: str, workers: int, threads: int) -> list[PeerSettings]:
    """Return the set-ups of a peer with so many workers and threads; folder and port come later.

    Each that forms batches gets its better timeouts with small batches too.

    - LitServe: batch_timeout 10 ms stands in its benchmark; it advises ZeroMQ from 100 requests per second on.
    - FastAPI: one request at once in a process, so that threads are not shared out twice, and its default, 40.
    - BentoML: max_latency_ms is a bound beyond which it refuses; by default a minute, and the least for 32 clients.
    - Ray Serve: batch_wait_timeout_s is 10 ms by default; it advises RAY_SERVE_THROUGHPUT_OPTIMIZED.
    """
    one = PeerSettings("", 0, workers, threads)
    batched = replace(one, batch_size=BATCH)
    if server == "LitServe":
        zeromq = replace(batched, payload="multipart", option="fast_queue")
        return [
            replace(zeromq, timeout_ms=10),
            replace(zeromq, timeout_ms=1),
            replace(zeromq, timeout_ms=10, batch_size=SMALL_BATCH),
            replace(zeromq, timeout_ms=1, batch_size=SMALL_BATCH),
            replace(zeromq, timeout_ms=10, payload="json"),
            replace(zeromq, timeout_ms=10, option=""),
            replace(one, payload="multipart", option="fast_queue"),
        ]
    if server == "FastAPI":
        return [replace(one, option="1"), one]
    if server == "BentoML":
        form = replace(batched, payload="multipart")
        small = replace(form, timeout_ms=60_000, batch_size=SMALL_BATCH)
        return [replace(form, timeout_ms=60_000), replace(form, timeout_ms=500), small, one]
    fast = replace(batched, option="throughput")
    small = replace(fast, batch_size=SMALL_BATCH)
    return [replace(batched, timeout_ms=10)] + [
        replace(each, timeout_ms=wait) for each in (fast, small) for wait in (10, 1)
    ]


def described(settings: PeerSettings) -> str:
    """Say a set-up in short."""
    batch = f"batch {settings.batch_size}, {settings.timeout_ms:g} ms" if settings.batch_size > 1 else "no batches"
    words = [f"{settings.workers} x {settings.threads}", batch]
    words += [settings.payload] if settings.payload != "raw" else []
    words += [f"{settings.option} at once" if settings.option.isdigit() else settings.option] if settings.option else []
    return ", ".join(words)


def form(body: bytes, name: str) -> bytes:
    """Return a photo as a form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="photo.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + body + f"\r\n--{BOUNDARY}--\r\n".encode()


def in_json(body: bytes, name: str) -> bytes:
    """Return a photo as base64 in JSON."""
    return json.dumps({name: base64.b64encode(body).decode()}).encode()


def target_of(server: str, settings: PeerSettings, bodies: Sequence[bytes]) -> HttpTarget:
    """Return where a peer takes requests, and the requests as it takes them."""
    url = f"http://127.0.0.1:{settings.port}/predict"
    if settings.payload == "multipart":
        field = "images" if server == "BentoML" else "image"
        made, kind = [form(body, field) for body in bodies], f"multipart/form-data; boundary={BOUNDARY}"
    elif settings.payload == "json":
        made, kind = [in_json(body, "image_data") for body in bodies], "application/json"
    else:
        made, kind = list(bodies), "image/jpeg"
    return HttpTarget(url, made, [kind] * len(made))


def peer_server(server: str, settings: PeerSettings, bodies: Sequence[bytes]) -> Serve:
    """Return what starts a peer, with temporary files of its own."""

    @contextmanager
    def serve() -> Iterator[HttpTarget]:
        with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
            placed = replace(settings, port=free_ports(1)[0])
            target = target_of(server, placed, bodies)
            variables = {**VARIABLES, **placed.variables(), "TMPDIR": folder, "BENTOML_HOME": folder}
            # Frameworks start processes of their own, which import the peer anew.
            variables["PYTHONPATH"] = str(SERVERS.parent)
            if settings.option == "throughput":
                variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
            with process(COMMANDS[server](placed), target, variables, cwd=Path(folder)):
                yield target

    return serve


def peers(names: Sequence[str], folder: Path, bodies: Sequence[bytes]) -> list[Contender]:
    """Return every set-up of the peers, with the archive that lies unpacked in ``folder``."""
    return [
        Contender(name, peer_server(name, settings, bodies), described(settings))
        for name in names
        for workers, threads in SHARES
        for settings in (replace(each, folder=str(folder)) for each in variants(name, workers, threads))
    ]
