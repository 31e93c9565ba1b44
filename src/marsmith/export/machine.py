"""Capabilities of a machine for forms: processor, GPUs and installed packages. Imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from marsmith.config.form import Form
from marsmith.export.lock import IMPOSSIBLE
from marsmith.machine import cgroup_cores, cpu_flags_here, cpu_name, gpus, usable_cores
from marsmith.packages import installed_version

# Packages that make and run a form besides torch, and the extra of marsmith that contains each.
_ENGINE_PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}
_FORMAT_PACKAGES = {"onnx": ("onnx", "onnxscript")}
_EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx", "onnx": "onnx", "onnxscript": "onnx"}
# Without one of these a precision is emulated, many times slower than float32. Arm has other names.
_PRECISION_FLAGS = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "int8": frozenset({"avx2", "avx512_vnni", "avx_vnni", "asimd", "asimddp"}),
}
# Each accumulates 8-bit products in 32 bits; without them x86 accumulates pairs in 16 bits.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True)
class Machine:
    """Facts about a machine that determine the possible forms.

    Attributes:
        cpu: name of the processor.
        architecture: such as ``x86_64``.
        cores: number of cores that this process may use.
        cpu_flags: features of the processor.
        gpus: names of the GPUs.
        python: version of Python.
    """

    cpu: str
    architecture: str
    cores: int
    cpu_flags: frozenset[str]
    gpus: tuple[str, ...]
    python: str

    @classmethod
    def here(cls) -> Machine:
        """Return the facts about this machine."""
        quota, usable = cgroup_cores(), usable_cores()
        return cls(
            cpu=cpu_name(),
            architecture=platform.machine(),
            cores=max(1, min(usable, int(quota))) if quota else usable,
            cpu_flags=cpu_flags_here(),
            gpus=tuple(gpu.name for gpu in gpus()),
            python=platform.python_version(),
        )

    def is_that_of(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is of an equal machine: processors of one name may differ in their features."""
        own = self.record()
        return all(own.get(key) == record.get(key) for key in ("cpu", "architecture", "cores", "features", "gpus"))

    def record(self) -> dict[str, Any]:
        """Return the record for a lock: enough to judge its figures."""
        known = frozenset().union(*_PRECISION_FLAGS.values(), {"avx512f", "amx_int8"})
        found: dict[str, Any] = {
            "cpu": self.cpu,
            "architecture": self.architecture,
            "cores": self.cores,
            "features": sorted(self.cpu_flags & known),
            "python": self.python,
        }
        return found | ({"gpus": list(self.gpus)} if self.gpus else {})


def machine_text(record: Mapping[str, Any]) -> str:
    """Return a description of a recorded machine, such as ``AMD EPYC, 2 cores (avx2, avx512_bf16)``."""
    features = record.get("features")
    listed = "features not recorded" if features is None else ", ".join(map(str, features)) or "no relevant feature"
    gpus = "".join(f", {name}" for name in record.get("gpus") or ())
    return f"{record.get('cpu', 'an unknown processor')}, {record.get('cores', '?')} cores ({listed}){gpus}"


def limits_here(form: Form, device: str, machine: Machine) -> str | None:
    """Return how this machine computes a form differently, although another machine supports it.

    None if it does not.
    """
    if instead := stand_in(form, device, machine):
        return f"computes in {instead.precision} here: this processor ({machine.cpu}) has no {form.precision}"
    problem = obstacle(form, device, machine)
    return f"{IMPOSSIBLE} here: {problem}" if problem else None


def packages(form: Form) -> tuple[str, ...]:
    """Return the distributions that make and run a form, torch first."""
    others = (*_ENGINE_PACKAGES.get(form.engine, ()), *_FORMAT_PACKAGES.get(form.format, ()), *_quantiser(form))
    return tuple(dict.fromkeys(("torch", *others)))


def _quantiser(form: Form) -> tuple[str, ...]:
    """Return the packages of the quantisation: other engines than torch use ONNX Runtime and ONNX."""
    return ("onnx", "onnxscript", "onnxruntime") if form.precision == "int8" and form.engine != "torch" else ()


def versions(form: Form) -> dict[str, str]:
    """Return the installed versions of a form's packages."""
    return {name: found for name in packages(form) if (found := installed_version(name))}


def obstacle(form: Form, device: str, machine: Machine) -> str | None:
    """Return why this machine cannot make or run a form; None if no reason is known."""
    missing = next((name for name in packages(form) if installed_version(name) is None), None)
    if missing:
        return f"the package {missing!r} is not installed: pip install 'marsmith[{_EXTRAS.get(missing, 'export')}]'"
    compiler = compiler_here()
    if form.format == "pt2" and shutil.which(compiler) is None:
        return f"no compiler for pt2: {compiler} is not on the PATH: install g++, or name another in CXX"
    if device == "cuda":
        return None if machine.gpus else "this machine has no GPU"
    wanted = _PRECISION_FLAGS.get(form.precision)
    # If the processor's features are unknown, the gate decides.
    if wanted and machine.cpu_flags and not wanted & machine.cpu_flags:
        return f"this processor ({machine.cpu}) computes {form.precision} only by emulation: it has no {_any(wanted)}"
    if (
        form.precision == "int8"
        and form.engine != "onnxruntime"
        and overflows_in_int8(machine.architecture, machine.cpu_flags)
    ):
        return f"int8 overflows in {form.engine} on this processor ({machine.cpu}), which has no VNNI: take onnxruntime"
    return None


def compiler_here() -> str:
    """Return the C++ compiler for pt2."""
    return os.environ.get("CXX", "g++")


def overflows_in_int8(architecture: str, cpu_flags: frozenset[str]) -> bool:
    """Return whether int8 kernels overflow: x86 without VNNI, as in ``marsmith_handler/processor.py``."""
    return architecture in ("x86_64", "AMD64") and bool(cpu_flags) and not cpu_flags & _VNNI


def stand_in(form: Form, device: str, machine: Machine) -> Form | None:
    """Return the form that a machine computes instead, from the same files; None if it computes ``form``.

    OpenVINO's files for bfloat16 are those for float32. It computes in float32 if the processor lacks bfloat16.
    """
    is_hint = form.engine == "openvino" and form.precision == "bfloat16"
    lacks = device == "cpu" and machine.cpu_flags and not _PRECISION_FLAGS["bfloat16"] & machine.cpu_flags
    return replace(form, precision="float32") if is_hint and lacks else None


def _any(flags: frozenset[str]) -> str:
    return " or ".join(sorted(flags))
