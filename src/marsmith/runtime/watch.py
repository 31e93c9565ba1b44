"""Watch a handler: the weights are loaded once, and each edit runs in a fork of that process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from marsmith.archive import Archive
from marsmith.archive.examples import FOLDER as EXAMPLES
from marsmith.archive.manifest import FILE_NAME as MANIFEST
from marsmith.archive.manifest import render_manifest
from marsmith.archive.sums import FILE_NAME as SUMS
from marsmith.child_processes import inductor_folder, temporary_folder
from marsmith.errors import HandlerError, MarsmithError
from marsmith.runtime.imports import follow_imports, third_party
from marsmith.runtime.runner import Request, Runner, RunnerReply
from marsmith.runtime.warm_worker import fork_worker, preload

POLL_S = 0.3
# An editor may write several files, or one file in two steps, so a change counts when the files stay the same.
_SETTLED_S = 0.05

Fingerprint = dict[Path, tuple[int, int]]


@dataclass(frozen=True)
class WatchOutcome:
    """Result of one state of the handler's files.

    Attributes:
        changed: files that differ from the previous state; all of them at first.
        replies: replies to the requests, in order; empty if the handler does not load.
        traceback: traceback from the handler's first frame on; None if there was none.
        error: why the handler does not load; None if it does.
        seconds: time from the change to the last reply, in seconds.
    """

    changed: tuple[Path, ...]
    replies: tuple[RunnerReply, ...]
    traceback: str | None
    error: MarsmithError | None
    seconds: float


def watch(
    archive: Path, entry_point: Path, requests: Sequence[Request], *, wait: Callable[[float], None] = time.sleep
) -> Generator[WatchOutcome, None, None]:
    """Answer ``requests`` now, and again after every change of the handler. Ends only when it is closed.

    Weights, labels and model config come from the archive. The handler and its local imports come from the edited
    files. Digests and examples of the archive are ignored, because they belong to another handler.

    Args:
        archive: a built archive of the model, which the caller has admitted.
        entry_point: the handler's file, beside its local imports.
        requests: requests, sent one by one.
        wait: called with the seconds between two checks of the files.
    """
    with _open_folder(archive) as folder, inductor_folder(folder.with_name("inductor")):
        serialized = Archive.open(archive).manifest.serialized_file
        preload(folder / serialized if serialized else None, _third_party(entry_point))
        before: Fingerprint = {}
        while True:
            now = _settled(entry_point, wait)
            changed = tuple(sorted(path for path in now.keys() | before.keys() if now.get(path) != before.get(path)))
            if changed:
                before = now
                yield _try(folder, list(now), changed, requests)
            else:
                wait(POLL_S)


def fingerprint(entry_point: Path) -> Fingerprint:
    """Return modification time (ns) and size (bytes) of the handler's file and its local imports.

    If the handler cannot be parsed, as during an edit, all files beside it count.
    """
    try:
        files, _ = follow_imports(entry_point)
    except HandlerError:
        files = [entry_point, *sorted(entry_point.parent.glob("*.py"))]
    return {path: marks for path in files if (marks := _marks(path))}


def _marks(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:  # The file disappeared between two checks, as when an editor saves it.
        return None
    return stat.st_mtime_ns, stat.st_size


def _settled(entry_point: Path, wait: Callable[[float], None]) -> Fingerprint:
    while True:
        first = fingerprint(entry_point)
        wait(_SETTLED_S)
        if first and fingerprint(entry_point) == first:
            return first


def _try(folder: Path, files: Sequence[Path], changed: tuple[Path, ...], requests: Sequence[Request]) -> WatchOutcome:
    begin = time.monotonic()
    _link(folder, files)
    replies: list[RunnerReply] = []
    traceback, error = None, None
    try:
        # With a batch size of 1, a handler that warms up each batch size is ready soonest.
        with Runner(folder, batch_size=1, launch=fork_worker) as runner:
            for request in requests:
                replies += runner.run([request])
                traceback = runner.last_traceback or traceback
    except MarsmithError as problem:
        error = problem
    return WatchOutcome(changed, tuple(replies), traceback, error, time.monotonic() - begin)


@contextmanager
def _open_folder(archive: Path) -> Iterator[Path]:
    """Yield the unpacked archive without the records that prove its handler and examples."""
    with temporary_folder("marsmith-watch-") as temporary:
        opened = Archive.open(archive)
        folder = opened.extract(temporary / "model")
        (folder / SUMS).unlink(missing_ok=True)
        (folder / MANIFEST).write_text(render_manifest(replace(opened.manifest, marsmith=None)), encoding="utf-8")
        shutil.rmtree(folder / EXAMPLES, ignore_errors=True)
        yield folder


def _link(folder: Path, files: Sequence[Path]) -> None:
    """Replace the archive's copies by links to the edited files."""
    root = min((file.parent for file in files), key=lambda parent: len(parent.parts))
    for file in files:
        place = folder / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(file.resolve())


def _third_party(entry_point: Path) -> list[str]:
    try:
        files, _ = follow_imports(entry_point)
        return third_party(files)
    except HandlerError:
        return []
