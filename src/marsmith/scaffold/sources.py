"""What ``marsmith new --from`` names: a model in an installed package, or in a file or a folder of the user's."""

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
# TorchServe's management API cannot be asked for such a name while tokens are on.
_UNMANAGEABLE = "token"


@dataclass(frozen=True)
class ModelSource:
    """A model that a project is made for.

    Attributes:
        scheme: one of ``SCHEMES``.
        name: what follows the colon: the model's name in a package, or a path.
    """

    scheme: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """Read ``SCHEME:NAME``.

        Raises:
            UsageError: it names no scheme that there is, or nothing follows it.
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
