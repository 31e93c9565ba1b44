"""A server whose workers can be made to fail, and a load that counts what a client sees of it.

Used by tests/live/test_faults_live.py and by benchmarks/faults.py.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from marsmith.client import Client
from marsmith.config.project_settings import FrontKind
from marsmith.errors import ClientError
from marsmith.project import Project
from support.echo_server import write_archive
from support.live_server import make_project

QUEUE_SIZE = 3
RESPONSE_TIMEOUT_S = 2
# Longer than the five seconds before its end in which a client renews a token.
TOKEN_LIFE_S = 9
CAPACITY_TIMEOUT_S = 120.0

HANDLER = """
import json, os, time

def handle(data, context):
    replies = []
    for row in data or []:
        body = row["body"]
        command = body if isinstance(body, dict) else json.loads(bytes(body))
        if "tell" in command:
            with open(command["tell"], "w") as file:
                file.write(str(os.getpid()))
        while not os.path.exists(command.get("until", "/")):
            time.sleep(0.01)
        time.sleep(command.get("sleep", 0))
        replies.append(command)
    return replies
"""
CONFIG = """minWorkers: {workers}
maxWorkers: {workers}
batchSize: 1
maxBatchDelay: 1
responseTimeout: {timeout}
startupTimeout: 240
maxRetryTimeoutInSec: 60
jobQueueSize: {queue}
"""
# Name -> workers, response timeout and length of the job queue.
MODELS = {
    "one": (1, 20, 100),
    "two": (2, 20, 100),
    "frail": (1, RESPONSE_TIMEOUT_S, QUEUE_SIZE),
    "narrow": (1, 20, QUEUE_SIZE),
}


def faulty_project(
    folder: Path,
    models: tuple[str, ...] = tuple(MODELS),
    *,
    token_life_s: float = TOKEN_LIFE_S,
    front: FrontKind = "none",
) -> Project:
    """Make a project that serves these models, each with the handler that does what a request asks of it.

    Without the front, clients see what TorchServe itself does.
    """
    archives = {}
    for name in models:
        workers, timeout, queue = MODELS[name]
        config = CONFIG.format(workers=workers, timeout=timeout, queue=queue)
        path = write_archive(folder, name, "1.0", handler=HANDLER, config=config)
        archives[path.name] = path
    project = make_project(folder / "project", archives, token_expiration_min=str(token_life_s / 60))
    project.settings_file.write_text(f"front: {front}\n{project.settings_file.read_text()}")
    return project


def command(**what: object) -> bytes:
    """Return a body that asks the handler for something."""
    return json.dumps(what).encode()


@dataclass
class Load:
    """What a number of clients saw, each of which sends a request when the one before has its answer.

    Attributes:
        answered: requests that got their own answer.
        wrong: requests that got another answer.
        failed: how often each error was raised.
        longest_s: how long the slowest request took, in seconds.
    """

    answered: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, right: bool | str, taken_s: float) -> None:
        """Count one request: whether its answer was right, or the name of the error."""
        with self._lock:
            self.longest_s = max(self.longest_s, taken_s)
            if isinstance(right, str):
                self.failed[right] += 1
            elif right:
                self.answered += 1
            else:
                self.wrong += 1


@contextmanager
def load(make_client: Callable[[], Client], model: str, *, clients: int = 3, sleep_s: float = 0.02) -> Iterator[Load]:
    """Put a load on ``model`` while the context lasts; it ends when every request that was sent has come back."""
    seen, stop, numbers = Load(), threading.Event(), itertools.count()

    def work() -> None:
        with make_client() as client:
            while not stop.is_set():
                _send(client, model, {"n": next(numbers), "sleep": sleep_s}, seen)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _send(client: Client, model: str, what: dict[str, object], seen: Load) -> None:
    began = time.monotonic()
    try:
        right: bool | str = client.predict(model, command(**what)).json() == what
    except ClientError as error:
        right = type(error).__name__
    seen.note(right, time.monotonic() - began)


def worker_pids(client: Client, model: str) -> list[int]:
    """Return the process ids of the workers that are ready."""
    return [worker.pid for worker in client.describe(model)[0].workers if worker.pid and worker.status == "READY"]


def kill(pid: int) -> None:
    """End a process as `kill -9` does, and wait until it has ended."""
    process = psutil.Process(pid)
    process.kill()
    # It may be gone between one question and the next.
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def until_full_capacity(client: Client, model: str, gone: int) -> float:
    """Wait until ``model`` has all its workers READY again, none of them ``gone``; return the seconds that it took."""
    began = time.monotonic()
    wanted = MODELS[model][0]
    while time.monotonic() < began + CAPACITY_TIMEOUT_S:
        pids = worker_pids(client, model)
        if len(pids) == wanted and gone not in pids:
            return time.monotonic() - began
        time.sleep(0.05)
    raise TimeoutError(f"{model} has not come back")
