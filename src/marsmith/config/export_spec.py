"""The block ``export:`` of a model spec: what to export, in which form, and the limits of the gate."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from marsmith.config import form as forms
from marsmith.config.form import AUTO, Form
from marsmith.strict_yaml import Strict

_ENGINE_OF_FORMAT = {"torchscript": "torch", "pt2": "aot_inductor", "onnx": "onnxruntime", AUTO: AUTO}


class GateLimits(Strict):
    """Limits of the difference between an export and the eager float32 module. A key set to null removes that limit.

    Attributes:
        max_abs_error: maximum absolute difference of any output value.
        max_relative_error: maximum absolute difference in one sample, divided by that sample's largest output.
        cosine: minimum cosine between the outputs for one sample, 0 to 1.
        top1_agreement: minimum share of the samples whose largest output stays the same, 0 to 1.
        top5_agreement: minimum share of the five largest outputs that stay among them, over all samples, 0 to 1.
        max_accuracy_drop: maximum loss of accuracy, if labels are given: 0.01 is one percentage point.
    """

    max_abs_error: float | None = Field(default=None, gt=0)
    max_relative_error: float | None = Field(default=None, gt=0)
    cosine: float | None = Field(default=None, ge=0, le=1)
    top1_agreement: float | None = Field(default=None, ge=0, le=1)
    top5_agreement: float | None = Field(default=None, ge=0, le=1)
    max_accuracy_drop: float | None = Field(default=None, ge=0, le=1)


# Outputs are probabilities. The defaults allow for the cost of a precision on machines other than the one it was
# measured on, but not for a wrong conversion.
DEFAULT_LIMITS = {
    "float32": GateLimits(
        max_abs_error=1e-4,
        max_relative_error=1e-3,
        cosine=0.9999,
        top1_agreement=1.0,
        top5_agreement=0.99,
        max_accuracy_drop=0.0,
    ),
    "float16": GateLimits(
        max_abs_error=0.05,
        max_relative_error=0.2,
        cosine=0.99,
        top1_agreement=0.99,
        top5_agreement=0.97,
        max_accuracy_drop=0.005,
    ),
    "bfloat16": GateLimits(
        max_abs_error=0.2,
        max_relative_error=0.5,
        cosine=0.95,
        top1_agreement=0.98,
        top5_agreement=0.93,
        max_accuracy_drop=0.01,
    ),
    "int8": GateLimits(
        max_abs_error=0.5,
        cosine=0.5,
        top1_agreement=0.98,
        top5_agreement=0.85,
        max_accuracy_drop=0.01,
    ),
}


class Gate(Strict):
    """Requirements of an export compared with the eager float32 module; otherwise it is refused.

    Attributes:
        must_be_faster: refuse a form that is slower on this machine than float32 TorchScript in torch.
        float32, bfloat16, float16, int8: limits for one precision, which override the defaults.
    """

    must_be_faster: bool = True
    float32: GateLimits = GateLimits()
    bfloat16: GateLimits = GateLimits()
    float16: GateLimits = GateLimits()
    int8: GateLimits = GateLimits()

    def limits(self, precision: str) -> GateLimits:
        """Return the limits of a precision: the defaults, overridden by the set values, including ``null``."""
        own: GateLimits = getattr(self, precision)
        return DEFAULT_LIMITS[precision].model_copy(update=own.model_dump(exclude_unset=True))


class ExportSpec(Strict):
    """How to make the serialized file.

    Attributes:
        recipe: path of the recipe, relative to the project's root.
        weights: ``recipe`` (the recipe's own), ``hub``, ``random``, ``none``, or a path.
        strip_prefix: take only weights whose names begin with it, and remove it.
        format: format of the serialized file; ``auto`` measures all that this machine supports.
        method: TorchScript by tracing or by scripting.
        precision: precision of the computation.
        engine: engine in the worker; by default ``torch`` for TorchScript, and the one that fits another format.
        engine_missing: behaviour of a worker if the engine is not installed: fall back to torch, or refuse to load.
        device: target device.
        calibration: images for the calibration of int8: files, folders, globs, ``package:NAME/PATH``.
        validation: images for the gate, likewise; by default others, or other crops, of the calibration's.
        validation_labels: JSON file, relative to the project's root: an object of file name to class index or label.
        gate: requirements of the export.
    """

    recipe: str
    weights: str = "recipe"
    strip_prefix: str = ""
    format: Literal["torchscript", "pt2", "onnx", "auto"] = "torchscript"
    method: Literal["trace", "script"] = "trace"
    precision: Literal["float32", "bfloat16", "float16", "int8", "auto"] = "float32"
    engine: Literal["torch", "openvino", "onnxruntime", "aot_inductor", "auto"] = "torch"
    engine_missing: Literal["fallback", "refuse"] = "fallback"
    device: Literal["cpu", "cuda"] = "cpu"
    calibration: list[str] = Field(default_factory=list)
    validation: list[str] = Field(default_factory=list)
    validation_labels: str | None = None
    gate: Gate = Gate()

    @model_validator(mode="before")
    @classmethod
    def _engine_that_fits(cls, data: Any) -> Any:
        if isinstance(data, dict) and "engine" not in data and data.get("format", "torchscript") in _ENGINE_OF_FORMAT:
            return {**data, "engine": _ENGINE_OF_FORMAT[data.get("format", "torchscript")]}
        return data

    @model_validator(mode="after")
    def _form_exists(self) -> ExportSpec:
        if not self.forms():
            known = forms.SUPPORTED[self.device]
            near = [str(f) for f in known if f.precision == self.precision and f.engine == self.engine]
            near = near or [str(f) for f in known if self.precision in (AUTO, f.precision)] or list(map(str, known))
            raise ValueError(
                f"no form {self.format}/{self.precision}/{self.engine} on {self.device}; supported: {', '.join(near)}"
            )
        if self.validation_labels and not self.validation:
            raise ValueError("validation_labels needs validation, the images that they belong to")
        return self

    def forms(self) -> tuple[Form, ...]:
        """Return the requested forms: several only if a part is ``auto``."""
        return forms.matching(self.device, self.format, self.precision, self.engine)

    @property
    def is_auto(self) -> bool:
        """Whether the form is chosen by measuring."""
        return AUTO in (self.format, self.precision, self.engine)
