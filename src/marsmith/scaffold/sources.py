"""Sources of ``marsmith new --from``: a model of an installed package, or a file or folder of the user."""

from __future__ import annotations

import re
from dataclasses import dataclass

from marsmith.errors import UsageError
from marsmith.names import did_you_mean

SCHEMES = {
    "torchvision": "torchvision:NAME",
    "timm": "timm:NAME",
    "huggingface": "huggingface:FOLDER",
    "torchscript": "torchscript:FILE",
    "onnx": "onnx:FILE",
    "checkpoint": "checkpoint:FILE",
}
# While tokens are on, no request to TorchServe's management API can contain such a name.
_UNMANAGEABLE = "token"


@dataclass(frozen=True)
class ModelSource:
    """The source of a new project's model.

    Attributes:
        scheme: one of ``SCHEMES``.
        name: the part after the colon: the model's name in a package, or a path.
    """

    scheme: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """Read ``SCHEME:NAME``.

        Raises:
            UsageError: the scheme does not exist, or nothing follows it.
        """
        scheme, _, name = text.partition(":")
        if scheme not in SCHEMES or not name:
            missing = f"{text!r} names no model" if scheme in SCHEMES else f"{text!r} is not a source of a model"
            hint = "" if scheme in SCHEMES else did_you_mean(scheme, SCHEMES)
            raise UsageError(f"--from: {missing}{hint}", tip=f"one of {', '.join(SCHEMES.values())}")
        return cls(scheme, name)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"


def model_name(text: str) -> str:
    """Return the nearest name that TorchServe accepts for a model, and that can be managed."""
    name = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]", "_", text)).strip("._-")
    return f"model_{name}".rstrip("_") if not name or name.startswith(_UNMANAGEABLE) else name
