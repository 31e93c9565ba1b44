"""Objects of KServe for a server: a runtime of its own, and the inference service.

KServe's own runtime for TorchServe loses requests of a batch, and its wrapper needs a server without tokens; the
annotation ``serving.kserve.io/server-type`` leads to both, so it is not set.
"""

from __future__ import annotations

from collections.abc import Mapping

from marsmith.targets import pod
from marsmith.targets.kubernetes import LEAST_PODS, MOST_PODS, described
from marsmith.targets.pod import Object
from marsmith.targets.workload import Workload

_FORMAT = "marsmith"


def serving_runtime(workload: Workload, files: Mapping[str, str]) -> Object:
    """Return the runtime: the container of a server, which finds its archives at /mnt/models."""
    return {
        **described(workload, "serving.kserve.io/v1alpha1", "ServingRuntime", workload.name),
        "spec": {
            "annotations": pod.pod_annotations(files),
            "multiModel": False,
            "supportedModelFormats": [{"name": _FORMAT, "version": "1", "autoSelect": False}],
            "protocolVersions": ["v1", "v2"],
            # KServe looks for a container of this name.
            "containers": [pod.container(workload, "kserve-container")],
            "volumes": pod.volumes(workload),
        },
    }


def inference_service(workload: Workload, storage: str) -> Object:
    """Return the inference service of the archives at ``storage``; an autoscaler of its own sets its pods."""
    service = described(workload, "serving.kserve.io/v1beta1", "InferenceService", workload.name)
    service["metadata"]["annotations"] = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "external",
    }
    service["spec"] = {
        "predictor": {
            "minReplicas": LEAST_PODS,
            "maxReplicas": MOST_PODS,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": pod.grace_s(workload),
            "securityContext": pod.pod_security(),
            "deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "model": {
                "modelFormat": {"name": _FORMAT, "version": "1"},
                "runtime": workload.name,
                "protocolVersion": "v2",
                "storageUri": storage,
            },
        }
    }
    return service


def deployment_name(workload: Workload) -> str:
    """Return the name of the deployment that KServe makes of the inference service."""
    return f"{workload.name}-predictor"
