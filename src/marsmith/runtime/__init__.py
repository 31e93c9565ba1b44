"""Run, check, watch and replay the handler of one archive, without TorchServe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.runtime.check import check_handler
    from marsmith.runtime.frontend import Request
    from marsmith.runtime.runner import Runner

__all__ = ["Request", "Runner", "check_handler"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Request": "marsmith.runtime.frontend",
        "Runner": "marsmith.runtime.runner",
        "check_handler": "marsmith.runtime.check",
    },
)
