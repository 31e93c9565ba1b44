"""Build archives from a spec, loose files or an old archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.build.from_spec import build_from_spec

__all__ = ["build_from_spec"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "build_from_spec": "marsmith.build.from_spec",
    },
)
