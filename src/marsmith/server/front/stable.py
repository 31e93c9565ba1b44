"""Clusters and routes of a server without a rollout: every request goes to TorchServe as it is."""

from __future__ import annotations

from typing import Any

from marsmith.server.front.bootstrap import ROUTES
from marsmith.server.front.upstream import APIS, Upstream
from marsmith.server.front.xds import typed

# A request waits for a restart of TorchServe: about a minute, because each pause is a random part of its interval.
_TRIES = 240
_PAUSE = {"base_interval": "0.25s", "max_interval": "0.5s"}


def stable_clusters(upstream: Upstream) -> list[dict[str, Any]]:
    """Return the clusters of TorchServe, one for each API."""
    return [upstream.cluster(f"stable/{api}", api) for api in APIS]


def stable_routes(upstream: Upstream) -> dict[str, Any]:
    """Return the routes of both listeners."""
    everything = {"prefix": "/"}
    routes = [
        {"name": "stable-grpc", "match": everything | {"grpc": {}}, "route": _action("stable/grpc")},
        {"name": "stable-rest", "match": everything, "route": _action("stable/rest")},
    ]
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": routes,
        # A larger body than Envoy's 1 MiB must also wait for a restart.
        "request_body_buffer_limit": upstream.max_request_bytes,
    }
    return typed("envoy.config.route.v3.RouteConfiguration", name=ROUTES, virtual_hosts=[host])


def _action(cluster: str) -> dict[str, Any]:
    """Return what happens to a request: one whose connection is refused or breaks is sent again.

    Any answer is final. A 503 above all: TorchServe's queue is full, and repetitions would keep it full.
    """
    return {
        "cluster": cluster,
        # TorchServe has its own limit for each model.
        "timeout": "0s",
        "retry_policy": {
            "retry_on": "connect-failure,reset,refused-stream",
            "num_retries": _TRIES,
            "retry_back_off": _PAUSE,
        },
    }
