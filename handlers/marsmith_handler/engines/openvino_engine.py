"""OpenVINO on the CPU: reads TorchScript, ONNX and its own IR."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from marsmith_handler import processor
from marsmith_handler.engines.errors import EngineMissing, damaged
from marsmith_handler.graph_checks import value_checks

# Shapes of one row that are kept compiled; a classifier needs one.
MOST_SHAPES = 8
PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}
# OpenVINO's names of the precisions that a processor may lack; it then computes in float32 without a message.
_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}


def load(path: Path, device: torch.device, threads: int, precision: str) -> OpenVinoModel:
    """Load a model.

    Args:
        path: TorchScript (``.pt``), ONNX (``.onnx``) or IR (``.xml``, with its ``.bin`` beside it).
        device: the CPU; others are not supported.
        threads: threads for one batch.
        precision: precision of convolutions, if the processor supports it; layers that are quantised in the file stay
            quantised.

    Raises:
        EngineMissing: OpenVINO is not installed, the device is a GPU, int8 overflows on this processor, or the file
            checks values, which OpenVINO would drop.
        RuntimeError: the file is damaged, or has not one input and one output.
    """
    if device.type != "cpu":
        raise EngineMissing(f"openvino runs on the CPU, not on {device}")
    if precision == "int8" and processor.overflows_in_int8():
        raise EngineMissing("int8 overflows in openvino on this processor, which has no VNNI")
    return OpenVinoModel(import_openvino(), path, threads, precision)


def computed_precision(precision: str, capabilities: Collection[str]) -> str:
    """Return the precision of convolutions on a processor with these capabilities, which have OpenVINO's names."""
    needed = _CAPABILITIES.get(precision)
    return precision if needed is None or needed in capabilities else "float32"


def convert(openvino: Any, module: torch.jit.ScriptModule, shape: Any, number_type: Any) -> Any:
    """Convert a module with one input, and leave the root logger as it was.

    If OpenVINO's converter fails, it leaves the root logger at ERROR: the worker would log no metrics and no warnings.
    """
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters.copy(), root.handlers.copy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return openvino.convert_model(module, input=[(shape, number_type)])
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry: its converter, which reports its use, gets a stub.

    Raises:
        EngineMissing: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineMissing(f"openvino is not installed ({error})") from error
    return openvino


class OpenVinoModel:
    """A model that is compiled for each new shape of a row, with any number of rows.

    With only the batch dynamic it is as fast as with nothing dynamic, and faster than with all axes dynamic.

    Attributes:
        precision: precision in which convolutions compute.
    """

    def __init__(self, openvino: Any, path: Path, threads: int, precision: str) -> None:
        self._openvino = openvino
        self._path = path
        self._core = openvino.Core()
        self.precision = computed_precision(precision, self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        self._properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # Workers do not coordinate: with pinning, all of them would run on the first cores.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[self.precision],
        }
        self._requests: OrderedDict[Any, Any] = OrderedDict()
        # Now, so that a damaged file is found when the archive is loaded.
        self._model = self._read()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Run a batch; it is read in place, and the result has its own memory."""
        array = batch.detach().contiguous().numpy()
        key = (array.shape[1:], array.dtype)
        request = self._requests.get(key)
        if request is None:
            request = self._compile(array)
            self._requests[key] = request
            if len(self._requests) > MOST_SHAPES:
                self._requests.popitem(last=False)
        # The request's own output would be overwritten by the next batch.
        result = request.infer([array], share_inputs=True, share_outputs=False)
        return torch.from_numpy(result[0])

    def _read(self) -> Any:
        if self._path.suffix not in (".pt", ".pth"):
            try:
                model = self._core.read_model(self._path)
            except RuntimeError as error:
                raise damaged("openvino", self._path.name, error) from error
            self._check(len(model.inputs), len(model.outputs))
            return model
        from marsmith_handler.engines import torch_engine

        module = torch_engine.read(self._path, torch.device("cpu"), "float32")
        # The first input of a module's graph is the module.
        self._check(len(list(module.graph.inputs())) - 1, len(list(module.graph.outputs())))
        if checks := value_checks(module):
            raise EngineMissing(f"openvino would drop what {self._path.name} raises for some inputs ({checks[0]})")
        return module

    def _check(self, inputs: int, outputs: int) -> None:
        if (inputs, outputs) != (1, 1):
            raise RuntimeError(
                f"{self._path.name} takes {inputs} tensors and gives {outputs}; with the engine openvino it must be one"
                " each: set engine: torch"
            )

    def _compile(self, array: Any) -> Any:
        shape = self._openvino.PartialShape([-1, *array.shape[1:]])
        if isinstance(self._model, torch.jit.ScriptModule):
            model = convert(self._openvino, self._model, shape, self._openvino.Type(array.dtype))
        else:
            model = self._model.clone()
            model.reshape({model.inputs[0]: shape})
        return self._core.compile_model(model, "CPU", self._properties).create_infer_request()
