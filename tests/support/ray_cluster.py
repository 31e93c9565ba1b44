"""Run with Ray's own Python: a cluster of two nodes, a batch on it, and the loss of one node in the middle.

    python ray_cluster.py ARCHIVE SOURCE TO [LOSE]

Prints the exit code of the batch as the last line. With LOSE, a node is lost when the first part is there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
# On a busy machine.
os.environ["RAY_raylet_start_wait_time_s"] = "200"  # noqa: SIM112

from ray.cluster_utils import Cluster

from marsmith.cli import main

LIGHT = "MARSMITH_TESTS_LIGHT_WORKERS"


def node() -> dict[str, int]:
    """Return the settings of a node."""
    ports = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port", "metrics_export_port")
    return {"num_cpus": 1, "object_store_memory": 100 << 20, **{name: free_port() for name in ports}}


def free_port() -> int:
    """Return a port that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def lose(cluster: Cluster, victim: object, to: Path) -> None:
    """Lose a node when the first part is there; the other one does the rest."""
    while not list(to.glob("part-*")):
        time.sleep(0.05)
    cluster.remove_node(victim, allow_graceful=False)
    print("a node is lost", file=sys.stderr, flush=True)


def run(archive: str, source: str, to: str, *options: str) -> int:
    """Run a batch on a new cluster; return its exit code."""
    # Ray's own processes import what they find, and must start within 15 s: what the workers need is for them alone.
    paths = os.environ.pop("PYTHONPATH")
    workers = {"env_vars": {"PYTHONPATH": paths, **{name: os.environ[name] for name in (LIGHT,) if name in os.environ}}}
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": workers})
    cluster = Cluster(initialize_head=True, head_node_args={**node(), "include_dashboard": False})
    second = cluster.add_node(**node())
    os.environ["PYTHONPATH"] = paths
    try:
        if options:
            threading.Thread(target=lose, args=(cluster, second, Path(to)), daemon=True).start()
        on = f"ray:{cluster.address}"
        return main(["batch", archive, source, "--to", to, "--shard-rows", "4", "--on", on])
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    print(run(*sys.argv[1:]))
