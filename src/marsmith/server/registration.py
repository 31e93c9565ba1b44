"""Register an archive of the project's store with the running server, and check that it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from marsmith.client.blocking_client import VersionStatus
from marsmith.config import admission_policy
from marsmith.errors import (
    ClientError,
    MarsmithError,
    NotFoundError,
    NoWorkerError,
    RequestRejectedError,
    ServerError,
    UsageError,
    WorkerDiedError,
)
from marsmith.names import did_you_mean
from marsmith.runtime.traceback import is_cut_off, summary
from marsmith.server.left_out_versions import in_its_place
from marsmith.server.log import WorkerDeath, first_death, parse_log
from marsmith.server.opened import OpenedServer
from marsmith.server.selection import open_servable

READY_DEADLINE_S = 180.0
_POLL_S = 0.2
# The frontend reads a worker's output while the worker dies: the end of the traceback comes later, on a busy machine
# much later.
_LAST_WORDS_S = 0.5
_LATEST_WORDS_S = 5.0
_LOGS = ("model_log.log", "ts_log.log")


def archive_in_store(store: Path, reference: str) -> Path:
    """Find an archive in the model store by its path, or by its name there, with or without ``.mar``.

    Raises:
        UsageError: the archive does not exist, or it lies outside the store.
    """
    store = store.resolve()
    found = _first_existing([Path(reference), store / reference, store / f"{reference}.mar"])
    if found is None:
        names = sorted(path.name for path in store.glob("*.mar"))
        raise UsageError(
            f"no archive {reference!r}{did_you_mean(reference, names)}",
            tip=f"in the model store: {', '.join(names) or 'none; marsmith archive MODEL builds one'}",
        )
    path = found.resolve()
    if path.parent != store:
        raise UsageError(f"{path} is not in the model store", tip=f"cp {path} {store}/ and register it from there")
    return path


@dataclass(frozen=True)
class ArchiveRegistration:
    """The registration of one archive."""

    server: OpenedServer
    archive: Path

    def register(self, initial_workers: int | None) -> VersionStatus:
        """Register the archive and wait until its workers are ready.

        Raises:
            MarsmithError: the archive cannot be served, its digests do not match, or the project does not admit it.
            WorkerDiedError: no worker could load it; the error has the traceback.
            ClientError: the server refused it.
        """
        try:
            return self._register(initial_workers)
        except WorkerDiedError as error:
            if error.traceback and not is_cut_off(error.traceback):
                raise
            died = error
        # Unless the handler is ours, the frontend loses a worker's last output if it does not read it in time; a second
        # worker prints it again.
        try:
            return self._register(initial_workers)
        except WorkerDiedError:
            raise
        except ClientError:
            raise died from None

    def _register(self, initial_workers: int | None) -> VersionStatus:
        # Before every attempt: TorchServe reads the present file, and an archive that it fails on may end it with all
        # its models.
        model, version = open_servable(self.archive, policy=admission_policy(self.server.project)).version
        before = {name: _size(self._log(name)) for name in _LOGS}
        try:
            self.server.client.register(self.archive.name, initial_workers=initial_workers)
            return self._wait(model, version)
        except (RequestRejectedError, NotFoundError, NoWorkerError) as error:
            if isinstance(error, RequestRejectedError) and error.status < 500:
                raise
            raise self._cause(model, version, before) or error from None

    def _wait(self, model: str, version: str) -> VersionStatus:
        late = time.monotonic() + READY_DEADLINE_S
        while True:
            status = self.server.client.describe(model, version)[0]
            if status.is_ready:
                return status
            if not status.workers and not status.min_workers:
                raise NoWorkerError(
                    f"{model}:{version} is registered without a worker", tip="unregister it and register --workers 1"
                )
            if time.monotonic() > late:
                raise NoWorkerError(f"{model}:{version} has no ready worker after {READY_DEADLINE_S:g} s")
            time.sleep(_POLL_S)

    def _cause(self, model: str, version: str, before: dict[str, int]) -> MarsmithError | None:
        """Return why the workers of the version died, from the logs since the registration."""
        late = time.monotonic() + _LATEST_WORDS_S
        time.sleep(_LAST_WORDS_S)
        death = self._death(model, version, before)
        while time.monotonic() < late and (death is None or death.is_cut_off):
            time.sleep(_POLL_S)
            death = self._death(model, version, before)
        if death is None:
            return None
        cause = summary(death.traceback) if death.traceback else "\n".join(death.last_lines)
        return WorkerDiedError(
            f"no worker could load {model}:{version}: {cause}",
            traceback=death.traceback,
            tip=f"its log:{self._log(_LOGS[0])}",
        )

    def _death(self, model: str, version: str, before: dict[str, int]) -> WorkerDeath | None:
        thread = f"-{model}_{version}"
        workers, frontend = (
            [line for line in parse_log(_text_from(self._log(name), before[name])) if thread in line.thread]
            for name in _LOGS
        )
        return first_death(workers, frontend)

    def _log(self, name: str) -> Path:
        return self.server.project.run / "logs" / name


def register_stored(server: OpenedServer, archive: Path, *, workers: int | None = None) -> VersionStatus:
    """Register ``archive``, a file of the server's model store, and return the status of the ready version.

    A version that was left out of the running server gets its place again, even as the default.

    Args:
        server: the running server.
        archive: result of ``archive_in_store``.
        workers: number of workers to start; minWorkers of a model config takes precedence.

    Raises:
        MarsmithError: the archive cannot be served, its digests do not match, or the project does not admit it.
        WorkerDiedError: no worker could load it; the error has the traceback.
        ClientError: the server refused it.
    """
    version = open_servable(archive, policy=admission_policy(server.project)).version
    with in_its_place(server, version):
        ArchiveRegistration(server, archive).register(workers)
    return server.client.describe(*version)[0]


def _first_existing(paths: list[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _text_from(path: Path, start: int) -> str:
    """Return the end of a log, or all of it if it has been rotated since."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None
    return content[start if start <= len(content) else 0 :].decode("utf-8", "replace")
