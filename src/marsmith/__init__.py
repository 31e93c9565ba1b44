"""marsmith takes a PyTorch model from weights to a version that answers requests.

Names are resolved on first use, so that importing the package costs nothing and never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Archive": "marsmith.archive",
    "AsyncClient": "marsmith.client.aio",
    "Client": "marsmith.client.blocking_client",
    "MarsmithError": "marsmith.errors",
    "Runner": "marsmith.runtime.runner",
}

__all__ = ["Archive", "AsyncClient", "Client", "MarsmithError", "Runner", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
