"""Models from an ONNX file, which the tensor handler serves unchanged."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.scaffold.given import given_file
from marsmith.scaffold.model import TENSORS, NewModel, SpecText
from marsmith.scaffold.packaged import require_torch
from marsmith.scaffold.sources import ModelSource, model_name
from marsmith.scaffold.template import RECIPES, NewFile

if TYPE_CHECKING:
    import torch

# With more numbers than this, JSON is not readable for people.
_READABLE = 1000


def onnx_model(source: ModelSource) -> NewModel:
    """Return a model from an ONNX file, with a request that it has answered.

    Raises:
        UsageError: there is no such file.
        ExportError: it is not ONNX, or the tensor handler cannot serve it.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    path = given_file(Path(source.name), source)
    require_torch()
    from marsmith.export.onnx_file import OnnxFile, checked_answers

    file = OnnxFile(path)
    rows = file.rows()
    checked_answers(file, rows)
    name = model_name(path.stem)
    weights, example = f"{RECIPES}/{name}.onnx", _example(name, rows[0])
    spec = SpecText(
        name=name,
        description=f"{path.name}, as ONNX",
        recipe=f"onnx:{weights}",
        weights="recipe",
        weights_comment="They lie in the ONNX file, which is served as it is.",
        handler=TENSORS,
        examples=(example.place,),
        examples_comment="Noise in the shape that the model takes: name some requests of your own.",
        export_keys=(("format", "onnx"), ("engine", "onnxruntime")),
        batch_size=file.batch,
    )
    shape = ", ".join("any" if size is None else str(size) for size in file.takes.row)
    note = f"a request is numbers: {file.takes.dtype} ({shape}), as JSON, .npy or safetensors; photos are not decoded"
    return NewModel(name, (spec.file(), NewFile(weights, path), example), notes=(note,))


def _example(name: str, row: torch.Tensor) -> NewFile:
    import numpy as np

    if row.numel() <= _READABLE:
        return NewFile(f"examples/{name}.json", json.dumps(row.tolist()) + "\n")
    content = io.BytesIO()
    np.save(content, row.numpy())
    return NewFile(f"examples/{name}.npy", content.getvalue())
