"""The pod of a server: what it runs, its probes, its end, and what it may not do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from marsmith.targets.settings import INFERENCE_PORT, LISTENER_PORT, SERVER_FILE, SETTINGS_FILE
from marsmith.targets.workload import Workload

Object = dict[str, Any]

# Working folder of the image, as in docs/how-to/operate.md.
PROJECT_FOLDER = "/srv/models"
DIGEST = "marsmith/config-sha256"
# Endpoints of a service reach every node within seconds, not at once.
_DELAY_S = 5
_GRACE_S = 30
_USER = 10_001
_PROBE_S = 2


def labels(workload: Workload) -> dict[str, str]:
    """Return the labels of all objects of a workload."""
    return {"app.kubernetes.io/name": workload.name, "app.kubernetes.io/managed-by": "marsmith"}


def selector(workload: Workload) -> dict[str, str]:
    """Return the label that only the pods of a workload have."""
    return {"app.kubernetes.io/name": workload.name}


def config_name(workload: Workload) -> str:
    """Return the name of the ConfigMap."""
    return f"{workload.name}-config"


def digest(files: Mapping[str, str]) -> str:
    """Return a digest of the settings: pods are replaced if it changes."""
    return hashlib.sha256("\0".join(f"{name}\0{files[name]}" for name in sorted(files)).encode()).hexdigest()


def pod_annotations(files: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations of a pod: the digest of its settings, and what Prometheus should read."""
    return {
        DIGEST: digest(files),
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(LISTENER_PORT),
        "prometheus.io/path": "/metrics",
    }


def grace_s(workload: Workload) -> int:
    """Return the time of a pod to end, in seconds: it answers what it has taken."""
    return workload.response_timeout_s + _GRACE_S


def pod_security() -> Object:
    """Return the security context of a pod under the restricted standard."""
    ids = {"runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER}
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def container(workload: Workload, name: str) -> Object:
    """Return the container of a server."""
    return {
        "name": name,
        "image": workload.image,
        "workingDir": PROJECT_FOLDER,
        "command": ["marsmith"],
        "args": ["serve", "--foreground", "--log", "json", "--timeout", str(workload.start_s)],
        "env": _environment(),
        "ports": [
            {"name": "http1", "containerPort": INFERENCE_PORT, "protocol": "TCP"},
            {"name": "probes", "containerPort": LISTENER_PORT, "protocol": "TCP"},
        ],
        "startupProbe": _probe("/ready", failures=(workload.start_s + _GRACE_S) // _PROBE_S),
        "readinessProbe": _probe("/ready", failures=1),
        # Only the supervisor: it restarts TorchServe itself, and Envoy keeps the requests meanwhile.
        "livenessProbe": _probe("/live", failures=3, period_s=10),
        "lifecycle": {"preStop": {"exec": {"command": _stop_command(workload)}}},
        "resources": _resources(workload),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(),
    }


def volumes(workload: Workload) -> list[Object]:
    """Return the volumes of a pod: settings, the server's state, and temporary files in memory."""
    return [
        {"name": "config", "configMap": {"name": config_name(workload)}},
        # Logs and unpacked archives: in memory they would count as the container's.
        {"name": "state", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
    ]


def _environment() -> list[Object]:
    return [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - a volume of the pod
        # The network policy, or KServe, says who may send requests, so they need no token.
        {"name": "MARSMITH_PLATFORM", "value": "kserve"},
        {"name": "PORT", "value": str(INFERENCE_PORT)},
    ]


def _mounts() -> list[Object]:
    files = ((SERVER_FILE, SERVER_FILE), (f"config/{SETTINGS_FILE}", SETTINGS_FILE))
    return [
        *(
            {"name": "config", "mountPath": f"{PROJECT_FOLDER}/{path}", "subPath": key, "readOnly": True}
            for path, key in files
        ),
        {"name": "state", "mountPath": f"{PROJECT_FOLDER}/.marsmith"},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
    ]


def _probe(path: str, *, failures: int, period_s: int = _PROBE_S) -> Object:
    return {
        "httpGet": {"path": path, "port": "probes"},
        "periodSeconds": period_s,
        # The listener waits for TorchServe for 2 s at most.
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def _stop_command(workload: Workload) -> list[str]:
    timeout = workload.response_timeout_s + _DELAY_S
    return ["marsmith", "stop", "--delay", str(_DELAY_S), "--timeout", str(timeout)]


def _resources(workload: Workload) -> Object:
    wanted = {"cpu": workload.resources.cpu, "memory": workload.resources.memory}
    if workload.resources.gpus:
        wanted["nvidia.com/gpu"] = str(workload.resources.gpus)
    return {"requests": dict(wanted), "limits": dict(wanted)}
