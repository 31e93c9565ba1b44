"""Deterministic TorchScript files: the same model gives the same bytes.

``torch.jit.save`` writes a zip. Two exports of one model differ in the name of its top folder (that of the file), in
``.data/serialization_id``, in the paths of source files in ``*.debug_pkl``, and in the order of constants in the code
of scripted modules (that of a Python set). All of them are normalised in the zip, and every record is stored, so that
the result does not depend on zlib. Nothing is unpickled, no code is run, and torch is not needed.

Some differences remain: names with a counter of the process (``__torch__.___torch_mangle_3``) if it exports more than
one model, differences of the export itself such as other weights, and other releases of torch.
"""

from __future__ import annotations

import ast
import io
import os
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from marsmith.archive.copier import Copier
from marsmith.archive.staging import staged
from marsmith.archive.zip_writer import ZipWriter
from marsmith.errors import ExportError
from marsmith.file_errors import described

if TYPE_CHECKING:
    import torch

TOP_FOLDER = "model"
# PyTorch maps records into memory and computes on them in place; it aligns them in the same way.
_ALIGNMENT_BYTES = 64
_SERIALIZATION_ID = ".data/serialization_id"
_NO_ID = b"0" * 40
# Source lines of nodes: only shown beside the serialized code when a model fails.
_DEBUG = ".debug_pkl"
_CODE = re.compile(r"code/.+\.py")
_CONSTANT = re.compile(r"  \w+ : Final\[.+\] = .+")


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Write a module as torch does. A full disk raises OSError, whereas torch's own writer ends the process.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    with path.open("wb") as file:
        torch.jit.save(module, file)


def save_normalised(module: torch.jit.ScriptModule, target: Path) -> None:
    """Write a module deterministically and atomically; see ``normalise``.

    Raises:
        OSError: the file cannot be written.
    """
    raw = target.with_name(f".raw.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(module, raw)
        normalise(raw, target)
    finally:
        raw.unlink(missing_ok=True)


def normalise(source: Path, target: Path) -> None:
    """Rewrite a TorchScript file so that the same model gives the same bytes.

    ``torch.jit.load`` of the result gives a module with the same outputs. Its errors show only the serialized code, not
    the original Python source. A normalised file does not change.

    Args:
        source: file of ``torch.jit.save``.
        target: file to write, atomically; may be ``source``, and is replaced if it exists.

    Raises:
        ExportError: ``source`` is not a TorchScript file, or ``target`` cannot be written.
    """
    try:
        with zipfile.ZipFile(source) as records, staged(target) as stage:
            with open(stage.descriptor, "r+b", closefd=False) as file:
                _rewrite(records, file)
            stage.sync()
            stage.publish(force=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, UnicodeDecodeError) as error:
        raise ExportError(f"{source}: not a TorchScript file: {error}", tip="save it with torch.jit.save") from None
    except OSError as error:
        description = described(error, target)
        raise ExportError(description.message, tip=description.tip) from None


def _rewrite(records: zipfile.ZipFile, file: BinaryIO) -> None:
    entries = {_record_name(entry.filename): entry for entry in records.infolist()}
    if not {"data.pkl", "constants.pkl"} <= entries.keys():
        raise zipfile.BadZipFile("it has no data.pkl or no constants.pkl")
    if len(entries) != len(records.infolist()):
        raise zipfile.BadZipFile("two of its records have one name")
    with Copier() as copier:
        writer = ZipWriter(file, copier, alignment=_ALIGNMENT_BYTES)
        for name in sorted(entries):
            if not name.endswith(_DEBUG):
                stream, size = _content(name, records, entries[name])
                with stream:
                    writer.add(f"{TOP_FOLDER}/{name}", stream, size)
        writer.close()


def _record_name(path: str) -> str:
    """Return a record's name without the top folder."""
    return path.partition("/")[2]


def _content(name: str, records: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[BinaryIO, int]:
    """Return the content of a normalised record, and its size in bytes."""
    if name == _SERIALIZATION_ID:
        return io.BytesIO(_NO_ID), len(_NO_ID)
    if _CODE.fullmatch(name):
        code = sorted_constants(records.read(entry).decode()).encode()
        return io.BytesIO(code), len(code)
    stream: IO[bytes] = records.open(entry)
    return cast("BinaryIO", stream), entry.file_size


def sorted_constants(code: str) -> str:
    """Sort each run of ``name : Final[type] = value`` lines in serialized code; their order has no meaning."""
    result: list[str] = []
    run: list[str] = []
    for line in code.splitlines(keepends=True):
        if _is_constant(line):
            run.append(line)
        else:
            result += [*sorted(run), line]
            run = []
    return "".join([*result, *sorted(run)])


def _is_constant(line: str) -> bool:
    """Return whether a line is one complete constant; the first line of a longer one is not valid by itself."""
    if not _CONSTANT.fullmatch(line.rstrip("\n")):
        return False
    try:
        ast.parse(line.strip())
    except SyntaxError:
        return False
    return True
