"""Processor, GPUs and limits of this machine, as reported by the system."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from marsmith import child_processes

_DRIVER_CUDA = re.compile(r"CUDA Version:\s*(?P<version>[\d.]+)")


@dataclass(frozen=True)
class Gpu:
    """One GPU in nvidia-smi: its name and the version of its driver."""

    name: str
    driver: str


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of nvidia-smi, which TorchServe counts too; empty if it is missing or fails."""
    printed = _nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader")
    lines = [[part.strip() for part in line.split(",")] for line in printed.splitlines() if "," in line]
    return tuple(Gpu(",".join(parts[:-1]), parts[-1]) for parts in lines)


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the features of the first processor in the text of ``/proc/cpuinfo``."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def cpu_flags_here() -> frozenset[str]:
    """Return the features of this machine's processor; empty if Linux does not report them."""
    return cpu_flags(_text(Path("/proc/cpuinfo")))


def cpu_name() -> str:
    """Return the name of this machine's processor; its architecture if Linux does not report the name."""
    cpuinfo = _text(Path("/proc/cpuinfo"))
    line = next((line for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return line.partition(":")[2].strip() or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores that this process may use, as torch counts them: without the container's quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def java_cores(usable: int, quota: float | None) -> int:
    """Return the number of cores as Java counts them, which is TorchServe's number of workers if no file says one.

    Args:
        usable: cores that this process may use.
        quota: CPU quota of the container, in cores; None: there is no quota.
    """
    return usable if quota is None else min(usable, max(1, math.ceil(quota)))


def cgroup_cores(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> float | None:
    """Return the CPU quota of a control group, in cores; None if there is no quota.

    Args:
        root: mount point of the control groups.
        own: text of ``/proc/self/cgroup``; None: the file is read.
    """
    own = _text(Path("/proc/self/cgroup")) if own is None else own
    inner = next((line.partition("::")[2].lstrip("/") for line in own.splitlines() if line.startswith("0::")), "")
    for folder in (root / inner, root):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            return int(quota) / int(period)
    quota, period = (_text(root / "cpu" / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def driver_cuda() -> str | None:
    """Return the newest CUDA version that the driver supports; None without a driver."""
    match = _DRIVER_CUDA.search(_nvidia_smi())
    return match["version"] if match else None


def _nvidia_smi(*arguments: str) -> str:
    try:
        done = child_processes.run(["nvidia-smi", *arguments], 30.0, text=True, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
