"""Every verb that starts children or makes temporary files, stopped in the middle as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from marsmith.cli import main
from marsmith.client import Client
from marsmith.inputs import read_input
from marsmith.project import Project
from marsmith.server import processes as server_process
from support.deploy_fixtures import MODEL, write_version
from support.export_fixtures import RECIPE, write_tiny
from support.live_server import SharedServer, is_alive, make_project, running, tiny_archive, until
from support.long_tests import mostly_long
from support.projects import REPOSITORY

# In the middle of its work: a process of its own goes on, and what it has in its temporary folder is there.
HOLD = """
def hold():
    import os, subprocess, tempfile, time
    here = os.environ["TEST_HELD"]
    tempfile.mkdtemp()
    sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(here + ".part", "w") as file:
        file.write(str(sleeper.pid))
    os.rename(here + ".part", here)
    time.sleep(1000)
"""
HOLDS_AT_LOAD = f"{HOLD}\ndef handle(data, context):\n    hold()\n    return [b'x' for _ in data or []]\n"
HOLDS_AT_REQUEST = f"{HOLD}\ndef handle(data, context):\n    return data and hold()\n"


@dataclass
class Place:
    """Where one verb runs.

    Attributes:
        root: of all that it may touch.
        project: its project.
        temporary: its temporary folder, empty.
        held: written with a process id when the middle is reached.
        environment: further variables.
    """

    root: Path
    project: Project
    temporary: Path
    held: Path
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    project = make_project(tmp_path / "project")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    place = Place(tmp_path, project, temporary, tmp_path / "held")
    yield place
    if place.held.exists():
        with_suppress_kill(int(place.held.read_text()))
    server_process.end(project.run, 0.0)


def with_suppress_kill(pid: int) -> None:
    """End a process that a failed test has left."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def export(place: Place) -> list[str]:
    recipe = f"{RECIPE}\n{HOLD}\ndef build():\n    hold()\n"
    for folder in ("export", "handlers"):
        (place.project.root / folder).mkdir()
    write_tiny(place.project, recipe=recipe.replace("build=Tiny", "build=lambda: hold()"))
    shutil.copytree(REPOSITORY / "handlers", place.project.root / "handlers", dirs_exist_ok=True)
    return ["export", "tiny"]


def measuring(place: Place) -> list[str]:
    """Several forms at once, each in a process of its own."""
    arguments = export(place)
    spec = place.project.spec("tiny")
    spec.write_text(spec.read_text().replace("weights: random", "weights: random, precision: auto"))
    return arguments


def archive(place: Place) -> list[str]:
    return ["archive", export(place)[1]]


def watch(place: Place) -> list[str]:
    """The archive is there; its handler is the one under edit, and runs in a fork."""
    export(place)
    (place.project.root / "handlers" / "tiny_handler.py").write_text(HOLDS_AT_LOAD)
    spec = place.project.spec("tiny")
    spec.write_text(spec.read_text().replace("image_classifier_handler", "tiny_handler"))
    tiny_archive(place.project.model_store / "tiny-1.0.mar", name="tiny")
    return ["watch", "tiny", str(_input(place))]


def run(place: Place) -> list[str]:
    return ["run", str(_held_archive(place, HOLDS_AT_REQUEST)), str(_input(place))]


def batch(place: Place) -> list[str]:
    return ["batch", str(_held_archive(place, HOLDS_AT_REQUEST)), str(_input(place)), "--to", str(place.root / "to")]


def check(place: Place) -> list[str]:
    return ["check", str(_held_archive(place, HOLDS_AT_LOAD))]


def check_module(place: Place) -> list[str]:
    handler = place.root / "one_handler.py"
    handler.write_text(f"{HOLD}\nhold()\ndef handle(data, context):\n    pass\n")
    return ["check", str(handler)]


def replay(place: Place) -> list[str]:
    return ["verify", "--replay", str(_held_archive(place, HOLDS_AT_LOAD))]


def tune(place: Place) -> list[str]:
    """While batches are measured in workers, before there is a server."""
    options = ["--p99-ms", "50", "--input", str(_input(place))]
    return ["tune", str(_held_archive(place, HOLDS_AT_REQUEST)), *options]


def optimize(place: Place) -> list[str]:
    """An archive of somebody else's, whose handler is asked for its replies first."""
    import torch

    weights = place.root / "model.pt"
    torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(str(weights))
    handler = place.root / "held_handler.py"
    handler.write_text(HOLDS_AT_LOAD)
    files = ["--serialized-file", str(weights), "--handler", str(handler), "--export-path", str(place.root)]
    assert main(["pack", "--model-name", "held", "--version", "1.0", *files]) == 0
    (place.root / "photos").mkdir()
    (place.root / "photos" / "a.png").write_bytes(read_input("package:skimage/data/chelsea.png", place.root).body)
    return ["optimize", str(place.root / "held.mar"), "--examples", str(place.root / "photos")]


def doctor(place: Place) -> list[str]:
    java = place.root / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text('#!/bin/sh\nsleep 1000 &\necho $! > "$TEST_HELD.part"\nmv "$TEST_HELD.part" "$TEST_HELD"\nwait\n')
    java.chmod(0o755)
    place.environment["JAVA_HOME"] = str(place.root / "java")
    return ["doctor"]


def serve(place: Place) -> list[str]:
    """In the background, waiting until it is ready."""
    tiny_archive(place.project.model_store / "echo.mar", handler=HOLDS_AT_LOAD)
    return ["serve"]


def serve_in_foreground(place: Place) -> list[str]:
    return [*serve(place), "--foreground"]


def _held_archive(place: Place, handler: str) -> Path:
    example = '[{"input": "a.bin", "content_type": "application/octet-stream", "status": 200, "reply": 1, '
    example += '"reply_sha256": null, "tolerance": 0.0}]'
    members: dict[str, bytes | str] = {"MAR-INF/examples/examples.json": example, "MAR-INF/examples/a.bin": b"x"}
    return tiny_archive(place.root / "held.mar", handler=handler, members=members)


def _input(place: Place) -> Path:
    path = place.root / "input.bin"
    path.write_bytes(b"x")
    return path


VERBS = [export, archive, watch, run, batch, check, check_module, replay, tune, optimize, doctor]


# Every verb with one signal, every signal with verbs that start a process of ours and a worker.
CASES = [
    *((verb, signal.SIGTERM) for verb in VERBS),
    *((verb, number) for verb in (export, run) for number in (signal.SIGHUP, signal.SIGINT)),
    *((verb, signal.SIGKILL) for verb in (export, run, watch)),
]
# Every verb once, and every signal.
KEPT = [
    *((export, signal.SIGHUP), (run, signal.SIGINT), (watch, signal.SIGKILL)),
    *((verb, signal.SIGTERM) for verb in VERBS if verb not in (export, run, watch)),
]
IDS = {(verb, number): f"{verb.__name__}-{number.name}" for verb, number in CASES}


def start(place: Place, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, **place.environment, "TMPDIR": str(place.temporary), "TEST_HELD": str(place.held)}
    # Neither Python's bytecode nor the classes of Java are this test's matter.
    # There a build never measures.
    environment.pop("CI", None)
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(place.root / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "marsmith", *arguments],
        cwd=place.project.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_in_the_middle(place: Place, arguments: list[str], number: signal.Signals) -> tuple[int, str, list[int]]:
    """Return the exit code, stderr, and the processes that there were in the middle."""
    with start(place, arguments) as process:
        until(lambda: place.held.exists() or process.poll() is not None)
        assert process.returncode is None, process.communicate()
        descendants = [each.pid for each in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(number)
        _, errors = process.communicate(timeout=240)
    return process.wait(), errors, [*descendants, int(place.held.read_text())]


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(("verb", "number"), mostly_long("kills", CASES, KEPT, IDS))
def test_a_verb_that_is_stopped_leaves_neither_a_process_nor_a_file(
    place: Place, verb: Callable[[Place], list[str]], number: signal.Signals
) -> None:
    arguments = verb(place)
    before = listing(place.project.root)
    code, errors, pids = stop_in_the_middle(place, arguments, number)
    assert len(pids) > 1
    if number == signal.SIGKILL:
        until(lambda: not any(map(is_alive, pids)) and not any(place.temporary.iterdir()), 60)
        return
    assert code == 128 + number
    assert "Traceback" not in errors
    assert not any(map(is_alive, pids))
    assert list(place.temporary.iterdir()) == []
    assert listing(place.project.root) == before


def test_forms_that_are_measured_side_by_side_all_end(place: Place) -> None:
    code, errors, pids = stop_in_the_middle(place, measuring(place), signal.SIGTERM)
    assert code == 143
    assert "Traceback" not in errors
    assert not any(map(is_alive, pids))
    assert list(place.temporary.iterdir()) == []


# Copying the third file takes until the test ends.
SLOW_COPY = """
import os, shutil, time
copy, copied = shutil.copyfile, []
def copyfile(source, target):
    copied.append(copy(source, target))
    if len(copied) == 3:
        open(os.environ["TEST_HELD"], "w").close()
        time.sleep(1000)
shutil.copyfile = copyfile
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_new_project_that_is_not_whole_yet_is_removed(place: Place, number: signal.Signals) -> None:
    hooks = place.root / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(SLOW_COPY)
    place.environment["PYTHONPATH"] = str(hooks)
    before = listing(place.project.root)
    with start(place, ["new", "cats"]) as process:
        until(lambda: place.held.exists() or process.poll() is not None)
        place.held.unlink()
        assert [each.name[:14] for each in (place.project.root / "cats").iterdir()] == [".marsmith-new-"]
        process.send_signal(number)
        _, errors = process.communicate(timeout=240)
    assert (process.returncode, "Traceback" in errors) == (128 + number, False)
    assert list(place.temporary.iterdir()) == []
    assert listing(place.project.root) == before


# With a real server --------------------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize(("verb", "code"), [(serve, 143), (serve_in_foreground, 0)])
def test_a_server_that_is_not_ready_yet_ends_with_the_command(
    place: Place, verb: Callable[[Place], list[str]], code: int
) -> None:
    arguments = verb(place)
    ended, errors, pids = stop_in_the_middle(place, arguments, signal.SIGTERM)
    assert ended == code
    assert "Traceback" not in errors
    assert not any(map(is_alive, pids[:-1]))
    assert server_process.processes_of(place.project.run) == []


@pytest.mark.live
@pytest.mark.parametrize(
    "number", mostly_long("kills", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], [signal.SIGTERM])
)
def test_the_server_of_a_tuning_ends_with_it(place: Place, number: signal.Signals) -> None:
    slow = "import time\ndef handle(data, context):\n    return data and [time.sleep(0.01) or b'x' for _ in data]\n"
    archive = tiny_archive(place.root / "slow.mar", name="slow", handler=slow)
    command = ["tune", str(archive), "--p99-ms", "200", "--cores", "1", "--minutes", "9", "--input", str(_input(place))]
    with start(place, command) as process:
        until(lambda: len(_servers(process.pid)) > 1 or process.poll() is not None)
        assert process.returncode is None, process.communicate()
        pids = [each.pid for each in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(number)
        _, errors = process.communicate(timeout=240)
    if number == signal.SIGKILL:
        until(lambda: not any(map(is_alive, pids)) and not any(place.temporary.iterdir()), 60)
        return
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert not any(map(is_alive, pids))
    assert list(place.temporary.iterdir()) == []


def _servers(pid: int) -> list[psutil.Process]:
    """Return a scratch server's frontend and its workers."""
    found = []
    for child in psutil.Process(pid).children():
        try:
            if "org.pytorch.serve.ModelServer" in child.cmdline():
                found += [child, *child.children(recursive=True)]
        except psutil.Error:
            continue
    return found


@pytest.mark.live
def test_a_deploy_that_is_stopped_while_it_watches_is_undone(place: Place) -> None:
    write_version(place.project.model_store, "1.0")
    new = write_version(place.root, "2.0")
    with running(place.project):
        before = listing(place.project.model_store)
        with start(place, ["deploy", str(new), "--watch-s", "900"]) as process:
            assert process.stderr
            assert any(line.startswith("watch") for line in iter(process.stderr.readline, ""))
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=240)
        assert process.returncode == 143
        assert "Traceback" not in errors
        with Client.for_project(place.project) as client:
            assert [(each.model_version, each.default) for each in client.describe(MODEL)] == [("1.0", True)]
        assert listing(place.project.model_store) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_that_is_waited_for_is_given_up(place: Place, number: signal.Signals) -> None:
    """Load is put on what answers never: nothing but the command itself is there to end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/predictions/m"
        with start(place, ["bench", "m", "--url", url, "--input", str(_input(place)), "--clients", "1"]) as process:
            connection, _ = silent.accept()
            process.send_signal(number)
            _, errors = process.communicate(timeout=240)
            connection.close()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors


@pytest.mark.live
def test_a_watched_status_ends_well_with_ctrl_c_alone(place: Place, shared_server: SharedServer) -> None:
    there = replace(place, project=shared_server.project)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)):
        with start(there, ["status", "--watch", "--json"]) as process:
            assert process.stdout
            assert process.stdout.readline()
            process.send_signal(number)
            _, errors = process.communicate(timeout=240)
        assert process.returncode == code
        assert "Traceback" not in errors
