"""Run int8 files during a search, with the same settings as the handlers' engines. Imports torch."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from marsmith.errors import MissingDependencyError
from marsmith.export.machine import overflows_in_int8
from marsmith.machine import cpu_flags_here

Forward = Callable[[torch.Tensor], torch.Tensor]


def open_in_engine(path: Path, engine: str) -> Forward:
    """Return a function of uint8 (N, 3, H, W) to float32 (N, classes) that runs the file in ``engine``.

    Raises:
        MissingDependencyError: the engine is not installed.
    """
    return {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}[engine](path)


def _onnxruntime(path: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if overflows_in_int8(platform.machine(), cpu_flags_here()):
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])


def _openvino(path: Path) -> Forward:
    # Its converter would send telemetry.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(error.name or "openvino", extra="openvino") from None
    core: Any = openvino.Core()
    # By default it computes everything that is not int8 in bfloat16 if the processor supports it, which changes
    # answers.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda images: torch.from_numpy(request.infer([images.contiguous().numpy()], share_outputs=False)[0])


def _torch(path: Path) -> Forward:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: torch.jit.ScriptModule = torch.jit.load(path).eval()
    return lambda images: module(images)
