"""Servers that take turns in a benchmark: each is started, answers at an address, and is gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from marsmith import run_state
from marsmith.archive import Archive
from marsmith.errors import ClientError
from marsmith.inputs import Input
from marsmith.loadtest.bench import http_target, predict_each
from marsmith.loadtest.http import HttpTarget
from marsmith.loadtest.tune.setup import Setup
from marsmith.loadtest.tune.variant import VariantMaker
from marsmith.project import Project
from marsmith.server.java import find_java
from marsmith.server.scratch import scratch_server

START_TIMEOUT_S = 180.0
Serve = Callable[[], AbstractContextManager[HttpTarget]]


@dataclass(frozen=True)
class Contender:
    """One server with one set-up.

    Attributes:
        name: as tables show it.
        serve: starts it; gives where requests go; stops it at the end.
        note: how it is set up.
    """

    name: str
    serve: Serve
    note: str = ""


def jpeg_inputs(bodies: Sequence[bytes]) -> list[Input]:
    """Return photos as inputs."""
    return [Input(f"{number}.jpg", None, body, "image/jpeg") for number, body in enumerate(bodies)]


def marsmith_server(project: Project, archive: Path, bodies: Sequence[bytes], setup: Setup | None = None) -> Serve:
    """Serve an archive of ours as ``marsmith serve`` does, run as it says or as ``setup`` says."""

    @contextmanager
    def serve() -> Iterator[HttpTarget]:
        with ExitStack() as stack:
            path = archive
            if setup is not None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                path = VariantMaker(archive, scratch).write(setup, scratch / f"{setup.version}.mar")
            server = stack.enter_context(scratch_server(project, {path.name: path}))
            model = Archive.open(archive).manifest.model_name
            yield http_target(run_state.read(server), model, None, jpeg_inputs(bodies))

    return serve


def host_server(archive: Path, bodies: Sequence[bytes], setup: Setup) -> Serve:
    """Serve an archive of ours as ``marsmith host`` does, run as ``setup`` says."""

    @contextmanager
    def serve() -> Iterator[HttpTarget]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = VariantMaker(archive, folder).write(setup, folder / f"{setup.version}.mar")
            (port,) = free_ports(1)
            command = [sys.executable, "-m", "marsmith", "host", str(path), "--no-tokens"]
            command += ["--port", str(port), "--state", str(folder / "state")]
            model = Archive.open(archive).manifest.model_name
            url = f"http://127.0.0.1:{port}/predictions/{model}"
            target = HttpTarget(url, list(bodies), ["image/jpeg"] * len(bodies))
            with process(command, target, {}, cwd=folder):
                yield target

    return serve


def stock_archive(torchscript: Path, labels: Path, folder: Path) -> Path:
    """Package a TorchScript file with torch-model-archiver and the stock image_classifier, by its defaults."""
    named = folder / "index_to_name.json"
    if labels != named:
        shutil.copy(labels, named)
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "stock", "--version", "1.0"]
    command += ["--serialized-file", str(torchscript), "--handler", "image_classifier", "--extra-files", str(named)]
    command += ["--export-path", str(folder), "--force"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "stock.mar"


def stock_server(archive: Path, bodies: Sequence[bytes], *, workers: int | None = None) -> Serve:
    """Serve a stock archive with ``torchserve --start`` and TorchServe's defaults; only the ports are ours.

    Args:
        archive: made by torch-model-archiver.
        bodies: the requests.
        workers: default_workers_per_model; None: TorchServe's own choice, one for each core.
    """

    @contextmanager
    def serve() -> Iterator[HttpTarget]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "store").mkdir()
            shutil.copy(archive, folder / "store" / "stock.mar")
            ports = free_ports(5)
            keys = ("inference_address", "management_address", "metrics_address")
            lines = [f"{key}=http://127.0.0.1:{port}" for key, port in zip(keys, ports[:3], strict=True)]
            lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
            lines += [f"default_workers_per_model={workers}"] if workers else []
            (folder / "config.properties").write_text("\n".join(lines) + "\n")
            command = [
                sys.executable,
                "-m",
                "ts.model_server",
                "--start",
                "--foreground",
                "--ncs",
                "--disable-token-auth",
            ]
            command += ["--model-store", str(folder / "store"), "--models", "stock=stock.mar"]
            command += ["--ts-config", str(folder / "config.properties")]
            environment = {"TEMP": name, "TMPDIR": name, "JAVA_HOME": str(find_java().executable.parents[1])}
            target = HttpTarget(
                f"http://127.0.0.1:{ports[0]}/predictions/stock", list(bodies), ["image/jpeg"] * len(bodies)
            )
            with process(command, target, environment, cwd=folder):
                yield target

    return serve


@contextmanager
def process(
    command: Sequence[str], target: HttpTarget, environment: Mapping[str, str], *, cwd: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it answers a first request; end it, and all that it has started, at the end."""
    log = cwd / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _until_it_answers(server, target, log)
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _until_it_answers(server: subprocess.Popen[bytes], target: HttpTarget, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    first = replace(target, bodies=target.bodies[:1], content_types=target.content_types[:1])
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        with suppress(ClientError, ValueError):
            (answer,) = predict_each(first)
            if answer.is_ok:
                json.loads(answer.body)
                return
        time.sleep(0.3)
    raise RuntimeError(f"{target.url} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing used a moment ago."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    return ports
