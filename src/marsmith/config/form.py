"""The form of an exported model: the format of its serialized file, its precision and the engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from marsmith.errors import UsageError
from marsmith.names import did_you_mean

FORMATS = ("torchscript", "pt2", "onnx")
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
ENGINES = ("torch", "openvino", "onnxruntime", "aot_inductor")
DEVICES = ("cpu", "cuda")
AUTO = "auto"


@dataclass(frozen=True, order=True)
class Form:
    """One way to store and run a model; its text is ``format/precision/engine``.

    Attributes:
        format: format of the serialized file: ``torchscript``, ``pt2`` or ``onnx``.
        precision: precision of the convolutions: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
        engine: engine in the worker: ``torch``, ``openvino``, ``onnxruntime`` or ``aot_inductor``.
    """

    format: str
    precision: str
    engine: str

    def __str__(self) -> str:
        return f"{self.format}/{self.precision}/{self.engine}"

    @classmethod
    def parse(cls, text: str) -> Form:
        """Parse ``format/precision/engine``.

        Raises:
            UsageError: the text does not have three parts, or a part is unknown.
        """
        parts = text.split("/")
        if len(parts) != 3:
            raise UsageError(f"{text!r} is not a form", tip="write FORMAT/PRECISION/ENGINE: torchscript/float32/torch")
        kinds = (("format", FORMATS), ("precision", PRECISIONS), ("engine", ENGINES))
        for part, (what, known) in zip(parts, kinds, strict=True):
            if part not in known:
                raise UsageError(f"{part!r} is no {what}{did_you_mean(part, known)}", tip=f"one of {', '.join(known)}")
        return cls(*parts)


# The reference of all comparisons, which every machine can run.
BASE = Form("torchscript", "float32", "torch")

# Supported forms by device, in the order in which they are tried.
SUPPORTED: dict[str, tuple[Form, ...]] = {
    "cpu": (
        BASE,
        Form("torchscript", "float32", "openvino"),
        Form("onnx", "float32", "onnxruntime"),
        Form("onnx", "float32", "openvino"),
        Form("pt2", "float32", "aot_inductor"),
        Form("torchscript", "bfloat16", "torch"),
        Form("torchscript", "bfloat16", "openvino"),
        Form("pt2", "bfloat16", "aot_inductor"),
        Form("torchscript", "int8", "torch"),
        Form("torchscript", "int8", "openvino"),
        Form("torchscript", "int8", "onnxruntime"),
        Form("onnx", "int8", "onnxruntime"),
        Form("onnx", "int8", "openvino"),
    ),
    "cuda": (
        BASE,
        Form("torchscript", "float16", "torch"),
        Form("torchscript", "bfloat16", "torch"),
        Form("pt2", "float32", "aot_inductor"),
        Form("pt2", "float16", "aot_inductor"),
        Form("pt2", "bfloat16", "aot_inductor"),
    ),
}


def matching(device: str, wanted_format: str, precision: str, engine: str) -> tuple[Form, ...]:
    """Return the supported forms of a device with these parts, each of which may be ``auto``."""
    return tuple(
        form
        for form in SUPPORTED[device]
        if wanted_format in (AUTO, form.format)
        and precision in (AUTO, form.precision)
        and engine in (AUTO, form.engine)
    )


def handler_block(form: Form, engine_file: str | None, engine_missing: str) -> dict[str, Any]:
    """Return the part of model-config.yaml's block ``handler`` about how to run it; empty for the base form."""
    if form == BASE:
        return {}
    block = {"engine": form.engine, "precision": form.precision, "engine_missing": engine_missing}
    return block | ({"engine_file": engine_file} if engine_file else {})
