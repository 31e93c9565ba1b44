"""Eager module to a ``.pt2`` file: torch.export, compiled ahead of time by AOTInductor. Imports torch.

The file contains machine code. It is compiled for the instruction set of this machine's CPU, which is recorded in it,
and for this release of torch. Two builds on one machine give the same code and weights; the page on formats and engines
describes the possible differences.
"""

from __future__ import annotations

import os
import platform
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from marsmith import files
from marsmith.archive.copier import Copier
from marsmith.archive.staging import staged
from marsmith.archive.zip_writer import ZipWriter
from marsmith.child_processes import inductor_folder, temporary_folder, usual_temporary_folder
from marsmith.error_text import typed_line
from marsmith.errors import ExportError
from marsmith.export.formats.onnx import quietly, to_program
from marsmith.export.machine import compiler_here
from marsmith.file_errors import described
from marsmith.machine import cpu_flags_here

# Key in the file's metadata: CPU flags that its code needs, with their names in Linux.
CPU_FLAGS = "MARSMITH_CPU_FLAGS"
_TOP_FOLDER = "model"
_ALIGNMENT_BYTES = 64
_NO_ID = b"0" * 40
_V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
_LEVELS = {"x86-64-v4": f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl", "x86-64-v3": _V3}


def to_pt2(graph: torch.nn.Module, images: Sequence[torch.Tensor], target: Path, device: str = "cpu") -> None:
    """Compile ``graph`` and write it to ``target``; takes about a minute for a network of 50 convolutions on 2 cores.

    Args:
        graph: the eager module, in its final precision.
        images: uint8 (3, H, W), at least one.
        target: the file to write.
        device: ``cpu`` or ``cuda``.

    Raises:
        ExportError: there is no C++ compiler, torch.export cannot express the module, or compiling fails.
    """
    require_compiler()
    program = to_program(graph, images, device)
    with _own_cache() as folder:
        raw = folder / "raw.pt2"
        try:
            quietly(lambda: _compile(program, raw))
        except Exception as error:  # Inductor raises various exceptions, with the compiler's output.
            raise ExportError(
                f"AOTInductor cannot compile the module: {typed_line(error)}",
                tip="use format: torchscript",
            ) from error
        normalise(raw, target)


def require_compiler() -> None:
    """Refuse a machine without a C++ compiler.

    Raises:
        ExportError: no compiler is found.
    """
    compiler = compiler_here()
    if shutil.which(compiler) is None:
        raise ExportError(
            f"no compiler for pt2: {compiler} is not on the PATH",
            tip="install g++ (apt-get install g++), name another in CXX, or use format: torchscript",
        )


def normalise(source: Path, target: Path) -> None:
    """Rewrite a ``.pt2`` file with sorted records, and without its random id and its C++ source.

    Raises:
        ExportError: ``source`` is not a ``.pt2`` file, or ``target`` cannot be written.
    """
    try:
        with zipfile.ZipFile(source) as records, staged(target) as stage:
            with open(stage.descriptor, "r+b", closefd=False) as file, Copier() as copier:
                writer = ZipWriter(file, copier, alignment=_ALIGNMENT_BYTES)
                for name, entry in sorted(_kept(records).items()):
                    is_id = name == ".data/serialization_id"
                    stream = BytesIO(_NO_ID) if is_id else cast("BinaryIO", records.open(entry))
                    with stream:
                        writer.add(f"{_TOP_FOLDER}/{name}", stream, len(_NO_ID) if is_id else entry.file_size)
                writer.close()
            stage.sync()
            stage.publish(force=True)
    except zipfile.BadZipFile as error:
        raise ExportError(f"{source}: not a pt2 file: {error}") from None
    except OSError as error:
        description = described(error, target)
        raise ExportError(description.message, tip=description.tip) from None


def _kept(records: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {e.filename.partition("/")[2]: e for e in records.infolist() if not e.filename.endswith((".cpp", ".h"))}


def _compile(program: torch.export.ExportedProgram, target: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(target), inductor_configs=_configs())


def _configs() -> dict[str, Any]:
    from torch._inductor import config

    # The worker chooses the number of threads; otherwise this machine's number would be compiled in.
    configs: dict[str, Any] = {"cpp.dynamic_threads": True}
    # The reported CPU flags are enough; compiling a probe for each instruction set takes longer than the model.
    configs["cpp.vec_isa_ok"] = True
    level = _level() if hasattr(config.cpp, "march") else None
    if level:
        configs["cpp.march"] = level
    return {**configs, "aot_inductor.metadata": {CPU_FLAGS: " ".join(sorted(_needed_flags(level)))}}


def _level() -> str | None:
    """Return the highest of the x86-64 levels below that this CPU supports; None if it supports none."""
    flags = cpu_flags_here()
    return next((level for level, needed in _LEVELS.items() if set(needed.split()) <= flags), None)


def _needed_flags(level: str | None) -> set[str]:
    """Return the CPU flags that code of a level needs, including Inductor's additions.

    Without a level, all flags of this CPU.
    """
    if level is None:
        return {*cpu_flags_here(), platform.machine()}
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with config.patch({"cpp.vec_isa_ok": True}):
        isa = pick_vec_isa()
    added = {str(flag) for flag in str(isa).split() if flag in cpu_flags_here()}
    extra = {"avx512_bf16"} if "avx512bf16" in isa.build_arch_flags() else set()
    return {platform.machine(), *_LEVELS[level].split(), *added, *extra}


@contextmanager
def _own_cache() -> Iterator[Path]:
    """Give Inductor an empty cache, because the shared one may have entries with other settings.

    Its path is compiled into the machine code, so it must not be random.
    """
    with _fixed_folder() as folder, inductor_folder(folder):
        yield folder


@contextmanager
def _fixed_folder() -> Iterator[Path]:
    """Yield an empty folder with a fixed path, or another one while a second export of this user holds it."""
    place = usual_temporary_folder() / f"marsmith-pt2-{os.getuid()}"
    with ExitStack() as held:
        try:
            held.enter_context(files.lock(place.with_suffix(".lock"), wait_s=0.0, remove=True))
            # It may contain files of an export that was killed.
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(mode=0o700)
        except (OSError, files.LockedError):
            place = held.enter_context(temporary_folder("marsmith-pt2-"))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
