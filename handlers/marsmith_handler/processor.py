"""Features of this machine's processor, from Linux."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Each of these sums products of 8 bits in 32 bits.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def flags() -> set[str]:
    """Return the processor's flags with Linux's names; empty if Linux lists none."""
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(found, "").split())


def overflows_in_int8() -> bool:
    """Return whether int8 kernels of torch and OpenVINO overflow: x86 without VNNI.

    Without VNNI two products of uint8 and int8 are added in 16 bits (``vpmaddubsw``), which saturates above half of
    the range: https://oneapi-src.github.io/oneDNN/dev_guide_int8_computations.html
    """
    known = flags()
    return platform.machine() in ("x86_64", "AMD64") and bool(known) and not known & _VNNI
