"""A reason not to start a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreflightProblem:
    """One reason not to start.

    Attributes:
        message: what is wrong.
        tip: what to do; empty if the message says it.
    """

    message: str
    tip: str = ""
