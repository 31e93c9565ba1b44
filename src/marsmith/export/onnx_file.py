"""An ONNX file that exists already: served as it is, byte for byte, with what it takes and gives. Imports torch.

What stands in it is the reference. The worker's engine is compared with a plain session of ONNX Runtime.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marsmith.config.export_spec import ExportSpec, GateLimits
from marsmith.config.form import Form
from marsmith.error_text import useful_line
from marsmith.errors import ExportError, MissingDependencyError
from marsmith.export import gate
from marsmith.export.formats.onnx import refuse_telemetry
from marsmith.export.job_images import load_in_engine
from marsmith.export.messages import JobRequest, JobResult
from marsmith.export.serialize import ONNX_FILE, Files
from marsmith.export.tensor_calls import close
from marsmith.files import sha256
from marsmith.stand_ins import stand_in

# What torch and the tensor handler call the types of ONNX.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
# Of an axis that may have any length, in rows that are made up: as the tensor handler warms up.
_LENGTH = 8
_ROWS = 3
_SEED = 0
_TIP = "export the model with one input and one output, each a tensor of numbers with the batch on axis 0"


@dataclass(frozen=True)
class OnnxTensor:
    """An input or an output.

    Attributes:
        name: as the file has it.
        dtype: torch's name of it.
        shape: with the batch axis; None: any length.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def row(self) -> list[int | None]:
        """The shape without the batch axis."""
        return list(self.shape[1:])

    def record(self, shape: Sequence[int | None]) -> dict[str, Any]:
        """Return it as export.json and the handler's settings have it."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(shape)}


class OnnxFile:
    """A file that ONNX Runtime has opened.

    Attributes:
        path: where it lies.
        takes, gives: its input and its output.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            ExportError: it is not one whole ONNX file, or takes or gives what the tensor handler cannot serve.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        if not path.is_file():
            raise ExportError(f"no ONNX file at {path}", tip="name it from the project's root")
        instead = stand_in(path)
        if instead:
            raise ExportError(f"{path} {instead.what}, not an ONNX file", tip=instead.tip)
        self.path = path
        self._session = _session(path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if (len(inputs), len(outputs)) != (1, 1):
            raise ExportError(
                f"{path} takes {len(inputs)} tensors and gives {len(outputs)}; one each is served", tip=_TIP
            )
        self.takes, self.gives = _tensor(inputs[0], path), _tensor(outputs[0], path)

    @property
    def batch(self) -> int | None:
        """The batch size that is fixed in the file; None: any."""
        return self.takes.shape[0]

    def rows(self, row: Sequence[int | None] | None = None) -> torch.Tensor:
        """Return rows of noise from 0 to 1 to try it with, always the same; of whole numbers, 0 and 1.

        Args:
            row: the shape of a row; None: that of the file, with 8 for an axis of any length.
        """
        shape = [_ROWS, *(_LENGTH if size is None else size for size in row or self.takes.row)]
        noise = np.random.default_rng(_SEED).random(shape)
        dtype = np.dtype(self.takes.dtype)
        return torch.from_numpy(noise.astype(dtype) if dtype.kind == "f" else (noise > 0.5).astype(dtype))

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Run a batch; raises ExportError if the file cannot take it."""
        try:
            (result,) = self._session.run(None, {self.takes.name: batch.contiguous().numpy()})
        except Exception as error:  # its errors have no common class but this
            raise ExportError(f"{self.path} fails on {tuple(batch.shape)}: {useful_line(error)}") from error
        return torch.from_numpy(np.asarray(result))


def _session(path: Path) -> Any:
    refuse_telemetry()
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", extra="onnx") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        # From memory: files beside it, which an archive would lack, are not found.
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class but this
        raise ExportError(
            f"{path} is not one whole ONNX file that ONNX Runtime can run: {useful_line(error)}",
            tip="weights in files beside it go into it with onnx.save(onnx.load(path), path)",
        ) from error


def _tensor(described: Any, path: Path) -> OnnxTensor:
    dtype, shape = _DTYPES.get(described.type), described.shape
    if dtype is None or not shape:
        what = described.type if dtype is None else "a single number"
        raise ExportError(f"{path}: {described.name!r} is {what}, which is not served", tip=_TIP)
    return OnnxTensor(described.name, dtype, tuple(size if isinstance(size, int) else None for size in shape))


class OnnxJob:
    """An ONNX file while it is taken into an archive; what ``export_job.Job`` is for a recipe."""

    def __init__(self, request: JobRequest, path: Path, on_step: Callable[[str], None]) -> None:
        self.request = request
        self.path = path
        self.on_step = on_step
        self.spec = ExportSpec.model_validate(request.export)
        torch.set_num_threads(request.threads)

    def run(self) -> JobResult:
        """Copy the file, and compare the worker's engine with ONNX Runtime.

        Raises:
            ExportError: the file cannot be served; nothing is left in the folder.
        """
        form = Form.parse(self.request.form)
        if (form.format, form.precision) != ("onnx", "float32") or self.request.weights != "recipe":
            raise ExportError(
                f"{self.path.name} is served as it is: {form} and the weights {self.request.weights!r} have no place",
                tip="export.format: onnx, export.engine: onnxruntime or openvino, and leave out precision and weights",
            )
        self.on_step(f"trying {self.path.name} in ONNX Runtime")
        file = OnnxFile(self.path)
        rows = self._rows(file)
        want = checked_answers(file, rows)
        target = Path(self.request.folder) / ONNX_FILE
        shutil.copyfile(self.path, target)
        try:
            return self._compared(file, form, rows, want, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def rate(self, what: str, batch_size: int, seconds: float) -> float:
        """Refuse: there is one form only, which is not measured."""
        raise ExportError(f"an ONNX file is served as it is: nothing is measured ({what}, {batch_size}, {seconds})")

    def _rows(self, file: OnnxFile) -> torch.Tensor:
        """Return the spec's examples, if they are JSON or .npy, and noise of their shape."""
        given = [_row(Path(path), file) for path in self.request.images["examples"]]
        known = [row for row in given if row is not None]
        if len({row.shape for row in known}) != 1:
            return file.rows()
        return torch.cat([torch.stack(known), file.rows(known[0].shape)])

    def _compared(self, file: OnnxFile, form: Form, rows: torch.Tensor, want: torch.Tensor, target: Path) -> JobResult:
        self.on_step(f"comparing {form} with it, on {len(rows)} rows")
        started = time.perf_counter()
        handlers = Path(self.request.handlers) if self.request.handlers else None
        engine = load_in_engine(handlers, Files(target), form, "cpu", self.request.threads)
        load_s = time.perf_counter() - started
        size = file.batch or len(rows)
        got = torch.cat([engine(rows[start : start + size]) for start in range(0, len(rows), size)])
        worst = float((want.double() - got.double()).abs().max()) if want.numel() else 0.0
        limits = GateLimits(max_abs_error=self.spec.gate.limits("float32").max_abs_error)
        limit = limits.max_abs_error
        measured = gate.Parity(len(rows), worst)
        record = {**measured.record(limits), "against": "ONNX Runtime"}
        failed = limit is not None and not worst <= limit
        return JobResult(
            serialized_file=str(target),
            companions=[],
            engine_file=None,
            report={**_signature(file), "weights": {"source": "recipe", "sha256": sha256(file.path)}},
            labels={},
            files=[str(file.path.resolve())],
            parity={"samples": len(rows), "max_abs_error": float(f"{worst:.4g}")},
            parity_record={key: record[key] for key in record if key not in ("top1Agreement", "maxRelativeErrorBelow")},
            problems=[f"the largest absolute error is {worst:.2e}, above {limit:.2e}"] if failed else [],
            tip="take engine: onnxruntime, or set export.gate.float32 if the difference is meant",
            bytes=target.stat().st_size,
            load_s=load_s,
        )


def checked_answers(file: OnnxFile, rows: torch.Tensor) -> torch.Tensor:
    """Return what the file gives for rows, one by one, which a batch of them must give too.

    Raises:
        ExportError: it gives something else for a batch, or values that are not finite.
    """
    if file.batch not in (None, 1):
        raise ExportError(f"{file.path} takes batches of {file.batch} only", tip="export it with a dynamic batch axis")
    alone = torch.cat([file.run(row[None]) for row in rows])
    if not torch.isfinite(alone.double()).all():
        raise ExportError(f"{file.path} gives values that are not finite", tip="are these the right weights?")
    if file.batch is None:
        together = file.run(rows)
        if not close([alone], [together]):
            raise ExportError(
                f"{file.path} answers a row otherwise alone ({tuple(alone.shape)} for {len(rows)}) than in a batch "
                f"({tuple(together.shape)})",
                tip="no operation may mix the rows of a batch; was it exported with a dynamic batch axis?",
            )
    if len(alone) != len(rows):
        raise ExportError(f"{file.path} gives {len(alone)} rows for {len(rows)}", tip=_TIP)
    return alone


def _signature(file: OnnxFile) -> Mapping[str, Any]:
    settings = {"inputs": [file.takes.record(file.takes.row)], "outputs": [file.gives.name]}
    return {
        "inputs": [file.takes.record(file.takes.shape)],
        "outputs": [file.gives.record(file.gives.shape)],
        "preprocessing": {"byTheHandler": settings, "inTheGraph": {}},
    }


def _row(path: Path, file: OnnxFile) -> torch.Tensor | None:
    """Return the row that an example holds; None if it is none that can be read here, and the handler decides."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            value = json.loads(path.read_text(encoding="utf-8"))
            array = np.asarray(value.get(file.takes.name, value.get("data")) if isinstance(value, dict) else value)
        array = array.astype(file.takes.dtype)
    except (ValueError, TypeError, OSError):
        return None
    fits = len(array.shape) == len(file.takes.row) and all(
        want in (None, got) for want, got in zip(file.takes.row, array.shape, strict=True)
    )
    return torch.from_numpy(array) if fits else None
