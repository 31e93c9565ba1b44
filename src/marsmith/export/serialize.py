"""Write the files of a form: the serialized file, and the files that its engine reads beside it. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from marsmith.config.form import Form
from marsmith.errors import ExportError
from marsmith.export.formats import torchscript_file
from marsmith.export.formats.torchscript import DTYPES, in_half_precision, to_torchscript

if TYPE_CHECKING:
    from marsmith.export.int8.plan import Int8Plan

TORCHSCRIPT_FILE = "model.pt"
ONNX_FILE = "model.onnx"
PT2_FILE = "model.pt2"


@dataclass(frozen=True)
class Files:
    """Files of one form.

    Attributes:
        serialized_file: file named by the manifest; TorchScript for formats that can fall back to torch.
        companions: further files beside it in the archive.
        engine_file: name of the companion that the engine opens; None for the serialized file.
    """

    serialized_file: Path
    companions: tuple[Path, ...] = ()
    engine_file: str | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """All files, the serialized one first."""
        return (self.serialized_file, *self.companions)


def serialize(
    graph: torch.nn.Module,
    form: Form,
    *,
    images: Sequence[torch.Tensor],
    folder: Path,
    calibration: Sequence[torch.Tensor] = (),
    method: str = "trace",
    int8: Int8Plan | None = None,
    device: str = "cpu",
) -> Files:
    """Write the files of ``form`` into ``folder``. The same inputs give the same bytes, except for ``pt2``.

    Args:
        graph: the eager float32 module: uint8 (N, 3, H, W) to float32 (N, classes); it is not changed.
        form: form to write.
        images: uint8 (3, H, W) to trace with.
        folder: folder of the files; files of the same names are replaced.
        calibration: uint8 (3, H, W), for int8.
        method: ``trace`` or ``script``, for TorchScript.
        int8: plan of the quantisation; required only for int8.
        device: ``cpu`` or ``cuda``: target device.

    Raises:
        ExportError: the module, the precision or this machine does not support the form; no file is left.
    """
    before = set(folder.iterdir())
    try:
        return _serialize(graph, form, images, folder, calibration, method, int8, device)
    except BaseException:
        for path in set(folder.iterdir()) - before:
            if path.is_file():
                path.unlink()
        raise


def _serialize(
    graph: torch.nn.Module,
    form: Form,
    images: Sequence[torch.Tensor],
    folder: Path,
    calibration: Sequence[torch.Tensor],
    method: str,
    int8: Int8Plan | None,
    device: str,
) -> Files:
    if form.precision == "int8":
        return _int8(graph, form, images, folder, calibration, method, int8)
    if form.format == "pt2":
        from marsmith.export.formats.pt2 import to_pt2

        to_pt2(_in_precision(graph, form.precision), images, folder / PT2_FILE, device)
        return Files(folder / PT2_FILE)
    if form.format == "onnx":
        return Files(_onnx(graph, form, images, folder))
    # Other engines than torch get the precision as a setting: they cast by themselves, and torch can replace them with
    # float32.
    inside = form.precision if form.engine == "torch" else "float32"
    return Files(_torchscript(_in_precision(graph, inside), images, folder, method, device))


def _in_precision(graph: torch.nn.Module, precision: str) -> torch.nn.Module:
    return in_half_precision(graph, precision) if precision in DTYPES else graph


def _onnx(graph: torch.nn.Module, form: Form, images: Sequence[torch.Tensor], folder: Path) -> Path:
    from marsmith.export.formats.onnx import to_onnx

    if form.precision != "float32":
        raise ExportError(f"ONNX files are written in float32 or int8, not in {form.precision}")
    to_onnx(graph, images, folder / ONNX_FILE)
    return folder / ONNX_FILE


def _torchscript(
    graph: torch.nn.Module, images: Sequence[torch.Tensor], folder: Path, method: str, device: str = "cpu"
) -> Path:
    placed = graph if device == "cpu" else copy.deepcopy(graph).to(device)
    module = to_torchscript(placed, [image.to(device) for image in images], method)
    torchscript_file.save_normalised(module, folder / TORCHSCRIPT_FILE)
    return folder / TORCHSCRIPT_FILE


def _int8(
    graph: torch.nn.Module,
    form: Form,
    images: Sequence[torch.Tensor],
    folder: Path,
    calibration: Sequence[torch.Tensor],
    method: str,
    plan: Int8Plan | None,
) -> Files:
    from marsmith.export.int8 import quantize as int8

    if plan is None:
        raise ExportError("int8 needs a plan", tip="search_plan in marsmith.export.int8.quantize finds one")
    made = tuple(int8.quantize(graph, form, plan, calibration, images, folder))
    if form.format == "onnx" or form.engine == "torch":
        return Files(made[0], made[1:])
    return Files(_torchscript(graph, images, folder, method), made, made[0].name)
