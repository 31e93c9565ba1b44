"""Paths of a platform at the front: its health check, and its requests, which name no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from marsmith.config.platform import Platform
from marsmith.names import check_model_name
from marsmith.server.front.scripts import Json

# Cluster of the supervisor's listener.
PROBES = "probes"
READY = "/ready"
PING = "/ping"


@dataclass(frozen=True)
class Entrance:
    """What the front answers besides TorchServe's own paths.

    Attributes:
        probe_port: port of the supervisor's listener on the loopback.
        health: path of the platform's health check.
        predict: path of the platform's requests; empty: it has none.
        model: the model that these requests are for; empty: there is none.
    """

    probe_port: int
    health: str = PING
    predict: str = ""
    model: str = ""

    @classmethod
    def of(cls, platform: Platform, models: Iterable[str], probe_port: int) -> Entrance:
        """Return what a platform expects of a server of these models: requests without a model need exactly one."""
        served = sorted(set(models))
        return cls(probe_port, platform.health, platform.predict, served[0] if len(served) == 1 else "")

    @property
    def cluster(self) -> Json:
        """The cluster of the supervisor's listener."""
        address = {"socket_address": {"address": "127.0.0.1", "port_value": self.probe_port}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        return {
            "name": PROBES,
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": PROBES, "endpoints": endpoints},
        }

    @property
    def probes(self) -> dict[str, str]:
        """Paths of probes, and what the supervisor's listener is asked for them."""
        return {PING: PING, READY: READY, self.health: PING}


def probe_route(asked: str) -> Json:
    """Return the route of a probe."""
    return {"match": {"prefix": "/"}, "route": {"cluster": PROBES, "timeout": "5s", **_instead(asked)}}


def for_model(route: Json, model: str) -> Json:
    """Return a route that asks for predictions of a model, whatever the path; the query stays."""
    rewritten = _instead(f"/predictions/{check_model_name(model)}")
    return {**route, "route": {**route["route"], **rewritten}}


def _instead(path: str) -> Json:
    return {"regex_rewrite": {"pattern": {"regex": r"^[^?]*"}, "substitution": path}}
