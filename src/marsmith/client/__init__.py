"""Clients of TorchServe's three APIs over REST and gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.client.aio import AsyncClient
    from marsmith.client.blocking_client import Client
    from marsmith.client.calls import Prediction
    from marsmith.client.retries import RetryPolicy

__all__ = ["AsyncClient", "Client", "Prediction", "RetryPolicy"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AsyncClient": "marsmith.client.aio",
        "Client": "marsmith.client.blocking_client",
        "Prediction": "marsmith.client.calls",
        "RetryPolicy": "marsmith.client.retries",
    },
)
