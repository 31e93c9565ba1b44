"""What the processor of this machine can do, as Linux tells it."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Each adds products of 8 bits in 32.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def flags() -> set[str]:
    """Return the processor's flags as Linux names them; empty where it does not."""
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(found, "").split())


def overflows_in_int8() -> bool:
    """Tell whether int8 kernels of torch and OpenVINO overflow: x86 without VNNI.

    There two products of uint8 and int8 are added in 16 bits (``vpmaddubsw``), which saturates from half of the range
    on: https://oneapi-src.github.io/oneDNN/dev_guide_int8_computations.html
    """
    known = flags()
    return platform.machine() in ("x86_64", "AMD64") and bool(known) and not known & _VNNI
