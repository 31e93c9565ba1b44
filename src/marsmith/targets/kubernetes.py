"""Objects of Kubernetes for a server: deployment, service, autoscaler, disruption budget and network policy."""

from __future__ import annotations

from collections.abc import Mapping

from marsmith.targets import pod
from marsmith.targets.pod import Object
from marsmith.targets.settings import INFERENCE_PORT, LISTENER_PORT
from marsmith.targets.workload import Workload

# Label of pods that may send requests.
CLIENT = {"marsmith/client": "true"}
LEAST_PODS = 2
MOST_PODS = 10
_SCALE_DOWN_S = 300


def described(workload: Workload, version: str, kind: str, name: str) -> Object:
    """Return the beginning of an object."""
    about = {"name": name, "namespace": workload.namespace, "labels": pod.labels(workload)}
    return {"apiVersion": version, "kind": kind, "metadata": about}


def config_map(workload: Workload, files: Mapping[str, str]) -> Object:
    """Return the ConfigMap with the settings."""
    return {**described(workload, "v1", "ConfigMap", pod.config_name(workload)), "data": dict(files)}


def deployment(workload: Workload, files: Mapping[str, str]) -> Object:
    """Return the deployment. The autoscaler sets its number of pods; a new pod is ready before an old one ends."""
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.grace_s(workload),
        "securityContext": pod.pod_security(),
        "topologySpreadConstraints": [
            _spread(workload, "topology.kubernetes.io/zone"),
            _spread(workload, "kubernetes.io/hostname"),
        ],
        "containers": [pod.container(workload, "server")],
        "volumes": pod.volumes(workload),
    }
    about = {"labels": pod.labels(workload), "annotations": pod.pod_annotations(files)}
    return {
        **described(workload, "apps/v1", "Deployment", workload.name),
        "spec": {
            "selector": {"matchLabels": pod.selector(workload)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "progressDeadlineSeconds": workload.start_s + 300,
            "template": {"metadata": about, "spec": spec},
        },
    }


def _spread(workload: Workload, key: str) -> Object:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pod.selector(workload)},
    }


def service(workload: Workload) -> Object:
    """Return the service of the inference API."""
    port = {"name": "http", "port": INFERENCE_PORT, "targetPort": "http1", "protocol": "TCP"}
    spec = {"type": "ClusterIP", "selector": pod.selector(workload), "ports": [port]}
    return {**described(workload, "v1", "Service", workload.name), "spec": spec}


def autoscaler(workload: Workload, target: str) -> Object:
    """Return the autoscaler of the deployment ``target``: by the requests that wait, and slow to remove pods."""
    return {
        **described(workload, "autoscaling/v2", "HorizontalPodAutoscaler", workload.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "minReplicas": LEAST_PODS,
            "maxReplicas": MOST_PODS,
            "metrics": [_metric(model, pending) for model, pending in workload.pending_targets.items()],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": _SCALE_DOWN_S,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
                },
            },
        },
    }


def _metric(model: str, pending: int) -> Object:
    metric = {"name": "marsmith_queue_pending", "selector": {"matchLabels": {"model": model}}}
    return {
        "type": "Pods",
        "pods": {"metric": metric, "target": {"type": "AverageValue", "averageValue": str(pending)}},
    }


def disruption_budget(workload: Workload) -> Object:
    """Return the budget: drains of nodes take one pod at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": pod.selector(workload)}}
    return {**described(workload, "policy/v1", "PodDisruptionBudget", workload.name), "spec": spec}


def network_policy(workload: Workload) -> Object:
    """Return the policy: requests from marked pods of the namespace, metrics for Prometheus, and nothing out."""
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
    spec = {
        "podSelector": {"matchLabels": pod.selector(workload)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": CLIENT}}], "ports": [_port(INFERENCE_PORT)]},
            {"from": [prometheus], "ports": [_port(LISTENER_PORT)]},
        ],
        "egress": [],
    }
    return {**described(workload, "networking.k8s.io/v1", "NetworkPolicy", workload.name), "spec": spec}


def _port(number: int) -> Object:
    return {"protocol": "TCP", "port": number}
