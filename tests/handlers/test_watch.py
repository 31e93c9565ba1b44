"""Watching a handler: each edit is answered by the new code, with weights that were loaded once."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from marsmith.runtime.watch import fingerprint
from support.runner_archives import make_archive

HANDLER = """
import os
import torch
from local_part import word
path = None
def handle(data, context):
    global model
    if data is None:
        folder = context.system_properties["model_dir"]
        model = torch.jit.load(os.path.join(folder, "model.pt"))
        return
    return [{"word": word(), "weights": model.weight.data_ptr(), "sum": float(model(torch.ones(1, 2)))} for _ in data]
"""
LOCAL_PART = "def word():\n    return 'first'\n"
# A process of its own: one that has computed with torch must not fork workers. One line of JSON an outcome.
PROGRAM = """
import json, sys
from pathlib import Path
from marsmith.runtime.runner import Request
from marsmith.runtime.watch import watch
for outcome in watch(Path(sys.argv[1]), Path(sys.argv[2]), [Request(b"x")]):
    replies = [reply.json() for reply in outcome.replies]
    error = outcome.error and outcome.error.message
    changed = [path.name for path in outcome.changed]
    print(json.dumps({"changed": changed, "replies": replies, "error": error}), flush=True)
"""


class Watcher:
    """The outcomes of a running watch."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self._lines.put(line)

    def outcome(self) -> dict[str, Any]:
        outcome: dict[str, object] = json.loads(self._lines.get(timeout=240))
        return outcome


@contextmanager
def watching(archive: Path, entry_point: Path) -> Iterator[Watcher]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(archive), str(entry_point)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watcher = Watcher(process)
        try:
            yield watcher
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
            watcher.join()


def write(path: Path, text: str) -> None:
    """Write a file in one step, so that nobody sees it empty."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def edited(tmp_path: Path) -> tuple[Path, Path]:
    """An archive with TorchScript weights, and the folder in which its handler is edited."""
    import torch

    torch.jit.trace(torch.nn.Linear(2, 1).eval(), torch.zeros(1, 2)).save(str(tmp_path / "model.pt"))
    manifest = {"modelName": "tiny", "modelVersion": "1.0", "serializedFile": "model.pt", "handler": "tiny_handler.py"}
    folder = make_archive(
        tmp_path / "archive",
        HANDLER,
        files={
            "MAR-INF/MANIFEST.json": json.dumps({"runtime": "python", "model": manifest}),
            "model.pt": (tmp_path / "model.pt").read_bytes(),
            "local_part.py": LOCAL_PART,
        },
    )
    archive = tmp_path / "tiny-1.0.mar"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder))
    handlers = tmp_path / "handlers"
    handlers.mkdir()
    (handlers / "tiny_handler.py").write_text(HANDLER)
    (handlers / "local_part.py").write_text(LOCAL_PART)
    return archive, handlers


def test_ending_a_watch_removes_what_it_extracted(
    edited: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, handlers = edited
    temporary = tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with watching(archive, handlers / "tiny_handler.py") as watcher:
        watcher.outcome()
        assert list(temporary.glob("marsmith-watch-*"))
    assert list(temporary.glob("marsmith-*")) == []


def test_each_edit_is_answered_by_the_new_code_with_the_weights_that_are_there(edited: tuple[Path, Path]) -> None:
    archive, handlers = edited
    local = handlers / "local_part.py"
    with watching(archive, handlers / "tiny_handler.py") as watcher:
        first = watcher.outcome()
        assert first["changed"] == ["local_part.py", "tiny_handler.py"]
        (before,) = first["replies"]
        assert before["word"] == "first"

        write(local, "def word():\n    return 'second'\n")
        second = watcher.outcome()
        assert second["changed"] == ["local_part.py"]
        (after,) = second["replies"]
        # The same place in memory: the fork inherited it, and nothing loaded the file again.
        assert after == {**before, "word": "second"}

        write(local, "def word(:\n")
        broken = watcher.outcome()
        assert broken["replies"] == []
        assert "SyntaxError" in str(broken["error"])
        assert 'File "local_part.py", line 1' in str(broken["error"])

        write(local, "def word():\n    return 'third'\n")
        (fixed,) = watcher.outcome()["replies"]
        assert fixed["word"] == "third"


def test_a_change_of_a_local_import_is_noticed_and_of_another_file_not(edited: tuple[Path, Path]) -> None:
    _, handlers = edited
    entry_point = handlers / "tiny_handler.py"
    before = fingerprint(entry_point)
    assert {path.name for path in before} == {"tiny_handler.py", "local_part.py"}
    (handlers / "other.py").write_text("x = 1\n")
    assert fingerprint(entry_point) == before
    os.utime(handlers / "local_part.py", ns=(1, 1))
    assert fingerprint(entry_point) != before


# The parent has a package of the same name loaded, as a handler's own folder may not be the first that brings one.
FORKED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import lib.part
from marsmith.runtime.runner import Request, Runner
from marsmith.runtime.warm_worker import fork_worker
with Runner(Path(sys.argv[1]), launch=fork_worker) as runner:
    print(lib.part.WORD, runner.run([Request(b"x")])[0].json())
"""


def test_a_fork_takes_the_packages_of_its_archive_and_not_those_of_its_parent(tmp_path: Path) -> None:
    handler = "from lib.part import WORD\ndef handle(data, context):\n    return [WORD for _ in data or []]\n"
    make_archive(tmp_path / "model", handler, files={"lib/__init__.py": "", "lib/part.py": "WORD = ['archive']\n"})
    make_archive(tmp_path / "parent", files={"lib/__init__.py": "", "lib/part.py": "WORD = 'parent'\n"})
    command = [sys.executable, "-c", FORKED, str(tmp_path / "model"), str(tmp_path / "parent")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "parent ['archive']"
