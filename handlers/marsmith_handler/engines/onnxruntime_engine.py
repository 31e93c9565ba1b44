"""ONNX Runtime: reads ONNX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from marsmith_handler import processor
from marsmith_handler.engines.errors import EngineMissing, damaged


def load(path: Path, device: torch.device, threads: int, precision: str) -> OnnxModel:  # noqa: ARG001
    """Load a model; the file determines its precision.

    Args:
        path: an ONNX file.
        device: device of the model; a GPU needs onnxruntime-gpu.
        threads: threads of the CPU for one batch.
        precision: not used.

    Raises:
        EngineMissing: ONNX Runtime is not installed, or does not support the device.
        RuntimeError: the file is damaged, or has not one input and one output.
    """
    onnxruntime = import_onnxruntime()
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise EngineMissing(f"onnxruntime has no {provider} here")
    providers = [(provider, {"device_id": device.index or 0})] if device.type == "cuda" else [provider]
    try:
        session = onnxruntime.InferenceSession(str(path), _options(onnxruntime, threads), providers=providers)
    except Exception as error:  # this is the only common class of its errors
        raise damaged("onnxruntime", path.name, error) from error
    return OnnxModel(session, path.name, device)


def import_onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry. Since 1.29 telemetry starts on Linux too, at the import.

    Raises:
        EngineMissing: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(f"onnxruntime is not installed ({error})") from error
    return onnxruntime


class OnnxModel:
    """A session with one input and one output."""

    def __init__(self, session: Any, file: str, device: torch.device) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if (len(inputs), len(outputs)) != (1, 1):
            raise RuntimeError(f"{file} takes {len(inputs)} tensors and gives {len(outputs)}; it must be one each")
        self._session = session
        self._input = inputs[0].name
        self._device = device

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Run a batch; on the CPU it is read in place, and the result has its own memory."""
        array = batch.detach().contiguous().cpu().numpy()
        (result,) = self._session.run(None, {self._input: array})
        return torch.from_numpy(result).to(self._device)


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if processor.overflows_in_int8():
        # Kernels that add exactly. With VNNI this would only select slower ones.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Idle threads would take the cores from decoding, from other workers and from the frontend.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options
