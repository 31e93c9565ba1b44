"""Eager module to a torch.export program and to an ONNX file, with a dynamic batch. Imports torch and onnx.

The same module gives the same bytes. AOTInductor files are made from the program too.
"""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from marsmith.error_text import typed_line, useful_line
from marsmith.errors import ExportError, MissingDependencyError

if TYPE_CHECKING:
    import onnx


BATCH = "N"
_MADE = TypeVar("_MADE")


def to_program(
    graph: torch.nn.Module, images: Sequence[torch.Tensor], device: str = "cpu"
) -> torch.export.ExportedProgram:
    """Export ``graph`` with a dynamic first dimension.

    Args:
        graph: takes a batch of ``images``.
        images: tensors of one shape and dtype, at least one.
        device: device of the export and of the computation.

    Raises:
        ExportError: torch.export cannot express the module, or the module fixes the batch size.
    """
    # Two inputs, because torch.export treats a dimension of size one as a constant.
    example = torch.stack([images[0], images[-1]]).to(device)
    batch = torch.export.Dim(BATCH, min=1)

    placed = graph if device == "cpu" else copy.deepcopy(graph).to(device)

    def export() -> torch.export.ExportedProgram:
        return torch.export.export(placed, (example,), dynamic_shapes=({0: batch},))

    try:
        return quietly(export)
    except Exception as error:  # torch raises various exceptions here, including its own UserError and RuntimeError.
        raise _explain_capture(error) from error


def quietly(make: Callable[[], _MADE]) -> _MADE:
    """Call ``make`` without gradients, and without the warnings of torch's exporters about themselves."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return make()


def _explain_capture(error: Exception) -> ExportError:
    text = str(error)
    if "Constraints violated" in text or "specialized" in text:
        return ExportError(
            f"the module fixes the batch size: {useful_line(error)}",
            tip="take sizes from the input (images.shape[0]) instead of writing them down, or use format: torchscript",
        )
    return ExportError(
        f"torch.export cannot express the module: {typed_line(error)}",
        tip="use format: torchscript, with method: script where the control flow depends on the data",
    )


# The newest opset that the exporter writes without conversion and that all engines here support.
OPSET = 20
INPUT = "images"
OUTPUT = "probabilities"
# Protocol buffers are limited to 2 GiB; a single file needs no file for external data.
_LARGEST_BYTES = 2**31 - 1
_OTHER = "use format: torchscript"
_UNSUPPORTED = re.compile(r"OpOverload\(op='([\w.:]+)'")


def to_onnx(graph: torch.nn.Module, images: Sequence[torch.Tensor], target: Path) -> None:
    """Export ``graph`` and write it to ``target``.

    Shapes: ``images`` uint8 (N, 3, H, W) to ``probabilities`` float32 (N, classes), N dynamic.

    Args:
        graph: the eager module.
        images: uint8 (3, H, W), at least one.
        target: the file to write.

    Raises:
        ExportError: the module cannot be expressed, an operator is missing in ONNX, or a weight is not a number.
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    refuse_telemetry()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(error.name or "onnx", extra="onnx") from None
    program = to_program(graph, images)
    model = _export(program)
    require_numbers(model)
    save_onnx(model, target)


def refuse_telemetry() -> None:
    """Disable the telemetry of onnxruntime, which torch's and onnx's tools import.

    Since 1.29 it reports on Linux too, at its import; the variable must be set before that.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def save_onnx(model: onnx.ModelProto, target: Path) -> None:
    """Check a model, remove everything that differs between two exports of it, and write it.

    Raises:
        ExportError: onnx's checker refuses it, or it is larger than 2 GiB.
    """
    import onnx

    strip(model)
    size = model.ByteSize()
    if size > _LARGEST_BYTES:
        raise ExportError(f"the model does not fit into one ONNX file: {size} bytes, over {_LARGEST_BYTES}", tip=_OTHER)
    content = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx refuses the exported model: {useful_line(error)}", tip=_OTHER) from error
    target.write_bytes(content)


def strip(model: onnx.ModelProto) -> None:
    """Remove metadata of the export: producer, doc strings, and stack traces with local paths."""
    model.ClearField("producer_name")
    model.ClearField("producer_version")
    model.ClearField("doc_string")
    del model.metadata_props[:]
    for function in model.functions:
        _strip_all([function, *function.node, *function.value_info])
    for graph in _graphs(model):
        values = [*graph.input, *graph.output, *graph.value_info]
        _strip_all([graph, *graph.node, *graph.initializer, *values])


def require_numbers(model: onnx.ModelProto) -> None:
    """Refuse a model with weights that are not numbers.

    Raises:
        ExportError: there are such weights; the message names them.
    """
    import numpy as np
    from onnx import numpy_helper

    arrays = ((tensor.name, numpy_helper.to_array(tensor)) for tensor in model.graph.initializer)
    broken = [name for name, array in arrays if array.dtype.kind == "f" and np.isnan(array).any()]
    if broken:
        raise ExportError(f"weights that are not numbers (NaN): {', '.join(broken[:5])}", tip="load other weights")


def _export(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    def export() -> Any:
        return torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: BATCH},),
            opset_version=OPSET,
            verbose=False,
        )

    try:
        made = quietly(export)
    except Exception as error:  # The exporter's own errors, and any exception of its translations.
        raise _explain(error) from error
    if made is None:
        raise ExportError("torch.onnx.export returned nothing", tip=_OTHER)
    model: onnx.ModelProto = made.model_proto
    return model


def _explain(error: BaseException) -> ExportError:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    operators = sorted({name for one in chain for name in _UNSUPPORTED.findall(str(one))})
    if operators:
        return ExportError(
            f"ONNX has no operator for {', '.join(operators)}",
            tip="use format: torchscript (engine: torch runs every operator), or write it with simpler operators",
        )
    return ExportError(f"the module cannot be exported to ONNX: {useful_line(chain[-1])}", tip=_OTHER)


def _strip_all(parts: Iterable[Any]) -> None:
    for part in parts:
        part.ClearField("doc_string")
        del part.metadata_props[:]


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs
