"""The command line and the environment that start TorchServe's frontend.

Java is started directly, as ``torchserve --start`` does it, so that the process that marsmith knows is the server
itself and not a parent that forgets it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from marsmith.errors import PreflightError
from marsmith.file_errors import user_name
from marsmith.project import Project
from marsmith.server.java import Java

# Every process of a server carries it, also a worker whose parent is gone, and so it can be found and ended.
RUN_VARIABLE = "MARSMITH_RUN_FOLDER"
# A supervisor in the background carries it, so that it can be told whose it is.
SUPERVISED_VARIABLE = "MARSMITH_SUPERVISED_FOLDER"
ADOPT_FLAG = "--adopt"
# The console appender of config/log4j2.xml listens to it: in the background the files are enough.
CONSOLE_VARIABLE = "MARSMITH_CONSOLE_LEVEL"
# Where config/log4j2.xml puts the logs, from the run folder: in a name of files to roll over, `%` has a meaning.
LOGS_VARIABLE = "MARSMITH_LOGS"
# Of the server and its workers. TorchServe makes its key file with the mode that is usual and closes it afterwards, and
# what a worker writes is nobody else's business.
UMASK = 0o077
# They override config and folders of a run behind its back.
_MISLEADING = ("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME", SUPERVISED_VARIABLE)
# The path of a unix socket may have 107 bytes; workers' are `.ts.sock.<port>` in the temporary folder.
_LONGEST_SOCKET_FOLDER = 107 - len("/.ts.sock.65535")


def torchserve_home() -> Path | None:
    """Return the folder that holds TorchServe's package ``ts``; None where it is not installed."""
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).resolve().parent
    return package.parent if (package / "model_service_worker.py").is_file() else None


def temporary_folder(project: Project) -> Path:
    """Return the server's own temporary folder: in the run folder, unless its path is too long for sockets.

    A path with a comma cannot stand in TorchServe's list of models, nor one with a colon in Python's search path.
    """
    folder = project.run / "tmp"
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER and not {",", os.pathsep} & set(str(folder)):
        return folder
    digest = hashlib.sha256(os.fsencode(project.root)).hexdigest()[:12]
    # One that is always in the same place can be found again by `stop`; make_private checks whose it is.
    return Path(f"/tmp/marsmith-{os.getuid()}-{digest}")  # noqa: S108


def make_private(folder: Path) -> None:
    """Make ``folder``, for its owner only.

    Raises:
        PreflightError: it belongs to another user, or is no folder.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise PreflightError(f"{folder} is no folder", tip=f"mv {shlex.quote(str(folder))} SOMEWHERE")
    if status.st_uid != os.getuid():
        owner, user = user_name(status.st_uid), user_name(os.getuid())
        raise PreflightError(
            f"{folder} belongs to the user {owner}, and its server would run as {user}",
            tip=f"run this as {owner}, or sudo chown -R {user} {shlex.quote(str(folder))}",
        )
    folder.chmod(0o700)


def class_path(home: Path, config: Mapping[str, str]) -> list[str]:
    """Return the folders of jars, as ``folder/*``."""
    folders = [str(home / "ts" / "frontend" / "*")]
    if "plugins_path" in config:
        plugins = config["plugins_path"]
        folders.append(plugins if "*" in plugins else f"{plugins}/*")
    return folders


def java_options(config: Mapping[str, str]) -> list[str]:
    """Return the options for Java that the server config asks for."""
    return shlex.split(config.get("vmargs", ""))


def command(
    java: Java,
    home: Path,
    config_file: Path,
    config: Mapping[str, str],
    temporary: Path,
    sharing: Sequence[str] = (),
) -> list[str]:
    """Return the command line.

    Args:
        java: the Java to run.
        home: the folder that holds TorchServe's package.
        config_file: the effective server config.
        config: what it holds.
        temporary: the server's own temporary folder.
        sharing: further options for Java, about sharing classes.
    """
    return [
        str(java.executable),
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={temporary}",
        *java_options(config),
        *sharing,
        "-cp",
        os.pathsep.join(class_path(home, config)),
        "org.pytorch.serve.ModelServer",
        "--python",
        config.get("python", sys.executable),
        "-f",
        str(config_file),
        "-s",
        config["model_store"],
        "-ncs",
    ]


def environment(base: Mapping[str, str], project: Project, temporary: Path, *, console: bool) -> dict[str, str]:
    """Return the environment of the server: the caller's, with the run's own folders."""
    logs = str(project.run / "logs")
    kept = {name: value for name, value in base.items() if name not in _MISLEADING}
    return kept | {
        RUN_VARIABLE: str(project.run),
        CONSOLE_VARIABLE: "all" if console else "off",
        "LOG_LOCATION": logs,
        "METRICS_LOCATION": logs,
        LOGS_VARIABLE: "logs",
        "TEMP": str(temporary),
        "TMPDIR": str(temporary),
        # The worker's prints reach the log while it lives, not only when it ends.
        "PYTHONUNBUFFERED": "1",
        # A worker's modules lie in its unpacked archive, where only what the archive lists may be importable.
        "PYTHONDONTWRITEBYTECODE": "1",
        **_utf8(base),
    }


def _utf8(base: Mapping[str, str]) -> dict[str, str]:
    """Return what makes Java find files whose names are not ASCII: it reads names as the locale says."""
    name = next(filter(None, (base.get(key) for key in ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    if name.lower().replace("-", "").endswith("utf8"):
        return {}
    return {"LC_ALL" if base.get("LC_ALL") else "LC_CTYPE": "C.UTF-8"}
