"""A server of archives without TorchServe: one front process, and worker processes with the handlers.

``app("m.mar")`` is an ASGI application for a service that exists already. ``Model.load("m.mar")`` answers without any
server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.host.library import Model, app

__all__ = ["Model", "app"]

__getattr__, __dir__ = lazy_names(__name__, {"Model": "marsmith.host.library", "app": "marsmith.host.library"})
