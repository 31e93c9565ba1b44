"""The machine and the versions that figures belong to: without them a figure means nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
PACKAGES = (
    "torch",
    "torchvision",
    "torchserve",
    "openvino",
    "onnxruntime",
    "litserve",
    "bentoml",
    "fastapi",
    "uvicorn",
    "ray",
    "mlcommons-loadgen",
    "optuna",
)


def machine_record() -> dict[str, Any]:
    """Return what is needed to read the figures: processor, cores, memory, versions."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cpuFlags": cpu_flags(),
        "memoryGiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def machine_line(record: dict[str, Any]) -> str:
    """Say it in one line of text."""
    flags = ", ".join(record["cpuFlags"]) or "no vector extensions of note"
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items())
    machine = f"{record['cores']} cores of {record['cpu']} ({flags}), {record['memoryGiB']} GiB"
    return f"{machine}; Python {record['python']}, {versions}"


def cpu_name() -> str:
    """Return the processor's name."""
    return next(_cpu_info("model name"), platform.machine())


def cpu_flags() -> list[str]:
    """Return the processor's features that matter here."""
    known = set(next(_cpu_info("flags"), "").split())
    return [flag for flag in CPU_FLAGS if flag in known]


def _cpu_info(key: str) -> Any:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return (line.partition(":")[2].strip() for line in lines if line.startswith(key))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
