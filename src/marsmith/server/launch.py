"""Command line, environment, folders and config of TorchServe's frontend.

Java is started directly, as ``torchserve --start`` does. The process that marsmith knows is therefore the server
itself, and not a parent that loses it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from marsmith.config.properties import render_properties
from marsmith.config.server_config import FILE_NAME as CONFIG_FILE
from marsmith.errors import PreflightError
from marsmith.file_errors import user_name
from marsmith.project import Project
from marsmith.server.java import Java

# Every process of a server has it, even a worker without a parent, so that all of them can be found and ended.
RUN_VARIABLE = "MARSMITH_RUN_FOLDER"
# A supervisor in the background has it, so that its project can be identified.
SUPERVISED_VARIABLE = "MARSMITH_SUPERVISED_FOLDER"
ADOPT_FLAG = "--adopt"
# The console appender of config/log4j2.xml uses it. In the background the files are enough.
CONSOLE_VARIABLE = "MARSMITH_CONSOLE_LEVEL"
# Folder of the logs in config/log4j2.xml, relative to the run folder: `%` has a meaning in the names of rotated files.
LOGS_VARIABLE = "MARSMITH_LOGS"
# Mode of files of the server and its workers. TorchServe creates its key file with the default mode and restricts it
# afterwards. The files of workers are private too.
UMASK = 0o077
# Server config of a TorchServe behind the front, in the run folder; `config.properties` has the public addresses.
PRIVATE_CONFIG = "torchserve.properties"
# They would override the config and the folders of a run.
_MISLEADING = ("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME", SUPERVISED_VARIABLE)
# The path of a unix socket may have 107 bytes; sockets of workers are `.ts.sock.<port>` in the temporary folder.
_LONGEST_SOCKET_FOLDER = 107 - len("/.ts.sock.65535")


def torchserve_home() -> Path | None:
    """Return the folder of TorchServe's package ``ts``; None if it is not installed."""
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).resolve().parent
    return package.parent if (package / "model_service_worker.py").is_file() else None


def temporary_folder(project: Project) -> Path:
    """Return the server's temporary folder: in the run folder, unless its path is too long for sockets.

    TorchServe's list of models cannot contain a path with a comma, nor Python's search path one with a colon.
    """
    folder = project.run / "tmp"
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER and not {",", os.pathsep} & set(str(folder)):
        return folder
    digest = hashlib.sha256(os.fsencode(project.root)).hexdigest()[:12]
    # A fixed path, so that `stop` finds it again; make_private checks its owner.
    return Path(f"/tmp/marsmith-{os.getuid()}-{digest}")  # noqa: S108


def make_private(folder: Path) -> None:
    """Create ``folder`` with access for its owner only.

    Raises:
        PreflightError: it belongs to another user, or is not a folder.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise PreflightError(f"{folder} is not a folder", tip=f"mv {shlex.quote(str(folder))} SOMEWHERE")
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
    """Return the options for Java in the server config."""
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
        java: the Java.
        home: folder of TorchServe's package.
        config_file: file of the effective server config.
        config: the effective server config.
        temporary: the server's temporary folder.
        sharing: further options for Java, for class data sharing.
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
    """Return the environment of the server: that of the caller, with the folders of the run."""
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
        # The worker's output reaches the log immediately, not only when it ends.
        "PYTHONUNBUFFERED": "1",
        # A worker's modules are in its unpacked archive, where only listed files may be imported.
        "PYTHONDONTWRITEBYTECODE": "1",
        **_utf8(base),
    }


def _utf8(base: Mapping[str, str]) -> dict[str, str]:
    """Return variables for files with non-ASCII names, because Java decodes names by the locale."""
    name = next(filter(None, (base.get(key) for key in ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    if name.lower().replace("-", "").endswith("utf8"):
        return {}
    return {"LC_ALL" if base.get("LC_ALL") else "LC_CTYPE": "C.UTF-8"}


def prepare_folders(project: Project, temporary: Path) -> Path:
    """Create the folders of a run and return the one for logs. The logs of the previous run are kept.

    Prediction logs go on: what compares two versions reads them across a restart.
    """
    shutil.rmtree(temporary, ignore_errors=True)
    make_private(temporary)
    logs, previous = project.run / "logs", project.run / "logs.previous"
    if logs.exists():
        shutil.rmtree(previous, ignore_errors=True)
        logs.rename(previous)
    logs.mkdir()
    with suppress(FileNotFoundError):
        (previous / project.prediction_logs.name).rename(project.prediction_logs)
    return logs


def write_configs(project: Project, config: Mapping[str, str], private: Mapping[str, str] | None) -> Path:
    """Write the server config, and return the file for TorchServe itself.

    Args:
        project: the project of the server.
        config: the effective config, with the public addresses.
        private: the config for TorchServe if it is behind the front; None: the same.
    """
    contents = {CONFIG_FILE: config} | ({PRIVATE_CONFIG: private} if private else {})
    for name, content in contents.items():
        path = project.run / name
        path.write_text(render_properties(content), encoding="ascii")
        path.chmod(0o600)
    return path
