"""TorchServe as a process: preflight, start, supervision, state and diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.server.lifecycle import StartOptions, start, stop

__all__ = ["StartOptions", "start", "stop"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "StartOptions": "marsmith.server.lifecycle",
        "start": "marsmith.server.lifecycle",
        "stop": "marsmith.server.lifecycle",
    },
)
