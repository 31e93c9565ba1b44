"""Class data sharing: Java maps its classes from one file, so that TorchServe's frontend starts faster.

Class data sharing is a feature of Java (JEP 310, https://openjdk.org/jeps/310; `java`'s -XX:SharedArchiveFile). There
is one file for each user and Java. The first server that is started records the classes that it loads. When it is
ready, ``python -m marsmith.server.class_sharing`` creates the file from that list, at the lowest priority. That process
belongs to the server: `marsmith stop` ends it too. Java checks whether the file fits, and starts without it otherwise.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.files import LockedError
from marsmith.server import processes as server_process

# A user who sets one of these configures sharing, or replaces classes so that the file would not be used.
_OWN_PLANS = ("-Xshare", "SharedArchive", "SharedClassList", "DumpLoadedClassList", "ArchiveClassesAtExit")
_REPLACES_CLASSES = ("-javaagent", "-agent", "-Xrun", "--patch-module", "--upgrade-module-path", "--limit-modules")
_LOWEST_PRIORITY = 19
_TIMEOUT_S = 300
# A file that is unused for this long belongs to a Java or a TorchServe that does not exist any more.
_KEPT_S = 90 * 24 * 3600.0
# Wait before another attempt after a failure: a full disk may have room again by then.
_TRIED_AGAIN_S = 24 * 3600.0


@dataclass(frozen=True)
class ClassSharing:
    """The shared file for one Java, TorchServe and set of options.

    Attributes:
        java: path of ``java``.
        options: Java's options that decide whether a file fits: heap and garbage collector.
        class_path: value of ``-cp``.
        file: path of the file, which may not exist yet.
    """

    java: str
    options: tuple[str, ...]
    class_path: str
    file: Path

    def start_options(self, class_list: Path) -> list[str]:
        """Return the options to start a server with: use the file, or record the loaded classes in ``class_list``."""
        if _is_usable(self.file):
            # The modification time records the last use.
            with suppress(OSError):
                os.utime(self.file)
            return [f"-XX:SharedArchiveFile={self.file}"]
        return [] if _age_s(self._failed) < _TRIED_AGAIN_S else [f"-XX:DumpLoadedClassList={class_list}"]

    def make_in_background(
        self, class_list: Path, environment: Mapping[str, str], start: Callable[..., subprocess.Popen[Any]]
    ) -> None:
        """Create the file in the background from the classes that a server has loaded so far.

        A failure does not affect the running server.

        Args:
            class_list: path as given to ``start_options``.
            environment: environment of the server; the process belongs to it.
            start: starts a process that ends with the server; see ``child_processes``.
        """
        if not class_list.exists():
            return
        arguments = [str(self.file), self.java, self.class_path, str(class_list), *self.options]
        with suppress(OSError):
            process = start(
                [sys.executable, "-m", "marsmith.server.class_sharing", *arguments],
                {**environment, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
                cwd=class_list.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            server_process.remember_child(process)

    def make(self, class_list: Path) -> bool:
        """Create the file from the classes of a server, and return whether it exists.

        Another process may be creating it.

        Raises:
            OSError: the folder cannot be written, or the list was deleted with its server.
        """
        classes = class_list.read_bytes()
        folder = self.file.parent
        try:
            with files.lock(folder / "lock", wait_s=0):
                _clear(folder)
                return self.file.exists() or self._make(classes)
        except LockedError:
            return False

    def _make(self, classes: bytes) -> bool:
        partial, whole_lines = self.file.with_suffix(".partial"), self.file.with_suffix(".classes")
        try:
            # The server still writes: the last line may be incomplete.
            whole_lines.write_bytes(classes[: classes.rfind(b"\n") + 1])
            return self._dump(whole_lines, partial)
        finally:
            whole_lines.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)

    def _dump(self, class_list: Path, partial: Path) -> bool:
        command = [self.java, *self.options, "-Xshare:dump", f"-XX:SharedClassListFile={class_list}"]
        command += [f"-XX:SharedArchiveFile={partial}", "-cp", self.class_path]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
        if done.returncode == 0 and partial.exists():
            partial.chmod(0o600)
            # Java would silently ignore a damaged file forever.
            files.publish(partial, self.file)
            return True
        # A process that was ended with its server is not a failure for the next one.
        if 0 < done.returncode < 128:
            self._failed.write_text(done.stdout + done.stderr)
        return False

    @property
    def _failed(self) -> Path:
        return self.file.with_suffix(".failed")


def class_sharing(java: Path, class_path: Sequence[str], java_options: Sequence[str]) -> ClassSharing | None:
    """Return the sharing for this Java; None if it is switched off, or if there is no folder for the file.

    Args:
        java: executable.
        class_path: entries of ``-cp``; ``folder/*`` stands for the folder's jars.
        java_options: value of ``vmargs``.
    """
    if any(
        option.startswith(_REPLACES_CLASSES) or any(word in option for word in _OWN_PLANS) for option in java_options
    ):
        return None
    folder = _folder()
    if folder is None:
        return None
    options = tuple(option for option in java_options if option.startswith(("-X", "--")))
    try:
        parts = [*options, *class_path, *(_identity(file) for file in [java.resolve(), *_files(class_path)])]
    except OSError:
        return None
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return ClassSharing(str(java), options, os.pathsep.join(class_path), folder / f"torchserve-{digest}.jsa")


def _folder() -> Path | None:
    """Return the folder of such files, private to this user: its files decide what the server runs."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "marsmith" / "java"
        for each in (folder.parent, folder):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_ours(each.lstat()):
                return None
    except (OSError, RuntimeError):
        return None
    return folder if cache.is_absolute() and folder.is_dir() and os.access(folder, os.W_OK) else None


def _is_ours(status: os.stat_result) -> bool:
    """Return whether no one else could have written to it or created it."""
    return status.st_uid == os.getuid() and not status.st_mode & 0o022 and not stat.S_ISLNK(status.st_mode)


def _is_usable(file: Path) -> bool:
    try:
        status = file.lstat()
    except OSError:
        return False
    return _is_ours(status) and stat.S_ISREG(status.st_mode)


def _age_s(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return math.inf


def _files(class_path: Sequence[str]) -> list[Path]:
    found = []
    for entry in class_path:
        folder, star = (Path(entry[:-1]), True) if entry.endswith("*") else (Path(entry), False)
        found += sorted(folder.glob("*.jar")) if star else [folder]
    return found


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{file} {status.st_size} {status.st_mtime_ns}"


def _clear(folder: Path) -> None:
    """Remove leftovers of processes that were ended, and files that are not used any more."""
    for file in folder.glob("torchserve-*"):
        if file.suffix in {".partial", ".classes"} or _age_s(file) > _KEPT_S:
            file.unlink(missing_ok=True)


def _main() -> None:
    file, java, class_path, class_list, *options = sys.argv[1:]
    os.nice(_LOWEST_PRIORITY)
    ClassSharing(java, tuple(options), class_path, Path(file)).make(Path(class_list))


if __name__ == "__main__":
    _main()
