"""Base of all handlers: ``from marsmith_handler import BaseHandler, ItemError, Reply, Request``.

Each name is imported on first use, and none of them imports torch: a worker does so when it loads its model. An archive
carries the modules of this package that its handler imports. Nothing in here imports marsmith: a worker's Python may
not have it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marsmith_handler.base import BaseHandler
    from marsmith_handler.errors import ItemError
    from marsmith_handler.replies import Reply
    from marsmith_handler.request import Request

__all__ = ["BaseHandler", "ItemError", "Reply", "Request"]

_HOMES = {"BaseHandler": "base", "ItemError": "errors", "Reply": "replies", "Request": "request"}


def __getattr__(name: str) -> Any:
    """Import one of the names of ``__all__`` (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
