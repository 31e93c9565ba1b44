"""The models of a host: versions by name, their default versions, and what changes while it runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from marsmith.archive.store import archives_in
from marsmith.errors import ArchiveError, ConfigError, MarsmithError, UsageError
from marsmith.host.measured import Measured
from marsmith.host.pool import Pool
from marsmith.host.version import HostedVersion, Wishes, opened
from marsmith.names import ModelVersion

_PIECE = re.compile(r"\d+|[^\d.]+")


@dataclass(frozen=True)
class Source:
    """Where archives come from: named ones, or all of a folder.

    Attributes:
        archives: paths of archives.
        store: folder whose archives are all served, also later ones; None: only the named ones.
    """

    archives: tuple[Path, ...] = ()
    store: Path | None = None

    def paths(self) -> list[Path]:
        """Return the archives that are there now.

        Raises:
            UsageError: there are none, or the folder cannot be read.
        """
        found = list(self.archives)
        if self.store is not None:
            try:
                found += [path for path in archives_in(self.store, "all") if path not in found]
            except OSError as error:
                raise UsageError(f"--store: {self.store}: {error.strerror}") from None
        if not found:
            raise UsageError("no archive to serve", tip="marsmith host ARCHIVE, or --store with archives in it")
        return found


@dataclass
class _Entry:
    pool: Pool
    files: ExitStack
    stamp: tuple[int, ...]

    async def close(self, timeout_s: float) -> None:
        await self.pool.drain(timeout_s)
        await asyncio.to_thread(self.files.close)


class Catalogue:
    """All versions that are served.

    Args:
        source: where the archives come from.
        wishes: settings of the command line.
        measured: takes measurements.
        tell: prints one sentence.
        admit: refuses an archive before it is run; prints its warnings.
        log_folder: folder of prediction logs; None: there are none.
    """

    def __init__(
        self,
        source: Source,
        wishes: Wishes,
        measured: Measured,
        tell: Callable[[str], None],
        *,
        admit: Callable[[Path], object] = lambda _: None,
        log_folder: Path | None = None,
    ) -> None:
        self.measured = measured
        self._source = source
        self._wishes = wishes
        self._tell = tell
        self._admit = admit
        self._log_folder = log_folder
        self._entries: dict[ModelVersion, _Entry] = {}
        # What each archive that was refused was like.
        self._refused: dict[Path, tuple[int, ...]] = {}
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Load every archive, and return when every worker is ready.

        One in the store that cannot be served is told, and the others are served.

        Raises:
            MarsmithError: a named one cannot be served, or none can; nothing is left running.
        """
        try:
            await self._start_all()
        except BaseException:
            await self.stop(0.0)
            raise

    async def stop(self, timeout_s: float) -> None:
        """Answer what has been taken, within the time, and end all workers."""
        entries = list(self._entries.values())
        await asyncio.gather(*(entry.close(timeout_s) for entry in entries))
        self._entries.clear()

    async def reload(self) -> None:
        """Serve the archives as they are now: new and changed ones, without the ones that have gone.

        A version that does not load changes nothing. Requests go to the old workers until the new ones are ready.
        """
        async with self._reloading:
            try:
                paths = await asyncio.to_thread(self._source.paths)
            except UsageError as error:
                self._tell(f"reload: {error.message}")
                return
            served = {entry.pool.version.archive: key for key, entry in self._entries.items()}
            for path in paths:
                known = self._entries.get(served[path]) if path in served else None
                if known is None or known.stamp != _stamp(path):
                    await self._take(path, known)
            for path in served.keys() - set(paths):
                await self._leave(served[path])

    def changes(self) -> bool:
        """Return whether an archive differs from what is served."""
        try:
            now = {path: _stamp(path) for path in self._source.paths()}
        except UsageError:
            return False
        # What was refused is tried again if it changes.
        now = {path: stamp for path, stamp in now.items() if self._refused.get(path) != stamp}
        return now != {entry.pool.version.archive: entry.stamp for entry in self._entries.values()}

    def names(self) -> list[str]:
        """Return the names of the models, sorted."""
        return sorted({key.name for key in self._entries})

    def versions(self, model: str) -> list[Pool]:
        """Return the versions of a model, the default one first; empty if it is unknown."""
        own = [entry.pool for key, entry in self._entries.items() if key.name == model]
        return sorted(own, key=lambda pool: version_order(pool.version.id.version), reverse=True)

    def find(self, model: str, version: str | None) -> Pool | None:
        """Return a version; the highest one if none is named; None if there is none."""
        if version is not None:
            entry = self._entries.get(ModelVersion(model, version))
            return entry.pool if entry else None
        versions = self.versions(model)
        return versions[0] if versions else None

    def missing(self, model: str, version: str | None) -> tuple[str, str]:
        """Return TorchServe's error for a version that ``find`` does not have: its name and its text."""
        if self.versions(model):
            return "ModelVersionNotFoundException", f"Model version: {version} does not exist for model: {model}"
        return "ModelNotFoundException", f"Model not found: {model}"

    def pools(self) -> Iterable[Pool]:
        """Return all versions."""
        return [entry.pool for entry in self._entries.values()]

    # -----------------------------------------------------------------------------------------------------------------

    async def _start_all(self) -> None:
        for path in self._source.paths():
            await self._start_one(path)
        if not self._entries:
            raise ArchiveError(f"--store: {self._source.store}: no archive in it can be served")

    async def _start_one(self, path: Path) -> None:
        try:
            entry = await self._load(path)
            self._entries[entry.pool.version.id] = entry
        except MarsmithError as error:
            if path in self._source.archives:
                raise
            self._refused[path] = _stamp(path)
            self._tell(f"{path.name}: {error.message}; it is not served")

    async def _load(self, path: Path) -> _Entry:
        stamp = _stamp(path)
        files = ExitStack()
        try:
            version: HostedVersion = await asyncio.to_thread(self._open, files, path)
            self._check_twin(version)
            pool = Pool(version, self.measured, self._tell, self._log_folder)
            try:
                await pool.start()
            except OSError as error:
                raise ArchiveError(
                    f"{version.id}: no room for {version.workers} workers: {error.strerror}", tip="--workers with fewer"
                ) from None
        except BaseException:
            files.close()
            raise
        return _Entry(pool, files, stamp)

    def _check_twin(self, version: HostedVersion) -> None:
        """Refuse a version that another archive has, unless that has gone."""
        twin = self._entries.get(version.id)
        if twin is not None and twin.pool.version.archive != version.archive and _stamp(twin.pool.version.archive):
            raise UsageError(f"{twin.pool.version.archive} and {version.archive} are the same version, {version.id}")

    def _open(self, files: ExitStack, path: Path) -> HostedVersion:
        if not path.exists():
            raise UsageError(f"no archive {path}")
        self._admit(path)
        try:
            return files.enter_context(opened(path, self._wishes))
        except ConfigError as error:
            raise ArchiveError(f"{path}: {error.message}") from None
        except (OSError, TypeError) as error:
            raise ArchiveError(f"{path}: it cannot be opened: {error}") from None

    async def _take(self, path: Path, known: _Entry | None) -> None:
        try:
            entry = await self._load(path)
        except MarsmithError as error:
            kept = f"{known.pool.version.id} goes on as it was" if known else "it is not served"
            self._tell(f"reload: {path.name}: {error.message}; {kept}")
            # Tried again only if it changes again.
            if known is not None:
                known.stamp = _stamp(path)
            else:
                self._refused[path] = _stamp(path)
            return
        key = entry.pool.version.id
        before = {id(each): each for each in (known, self._entries.get(key)) if each is not None}.values()
        if known is not None:
            self._entries.pop(known.pool.version.id, None)
        self._entries[key] = entry
        self._tell(f"reload: {key} is served from {path.name}")
        await asyncio.gather(*(each.close(_patience_s(each)) for each in before))

    async def _leave(self, key: ModelVersion) -> None:
        entry = self._entries.pop(key)
        self._tell(f"reload: {key} is not served any more")
        await entry.close(_patience_s(entry))


def version_order(version: str) -> list[tuple[int, int, str]]:
    """Return what sorts versions as people do: numbers by value, ``1.9`` before ``1.10``."""
    return [(1, int(piece), "") if piece.isdigit() else (0, 0, piece) for piece in _PIECE.findall(version)]


def _patience_s(entry: _Entry) -> float:
    return float(entry.pool.version.content.response_timeout_s)


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
