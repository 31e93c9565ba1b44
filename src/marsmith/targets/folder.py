"""The folder of `marsmith kubernetes`: one file for each object, and the kustomization that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from marsmith import strict_yaml
from marsmith.errors import UsageError
from marsmith.files import write_atomically
from marsmith.targets import kserve, kubernetes
from marsmith.targets.pod import Object
from marsmith.targets.workload import Workload

KUSTOMIZATION = "kustomization.yaml"
_HEAD = "# Written by `marsmith kubernetes`, which replaces it.\n"


def render_manifests(workload: Workload, files: Mapping[str, str], storage: str | None = None) -> dict[str, str]:
    """Return the text of each file by its name in the folder, the kustomization last.

    Args:
        workload: what is to run.
        files: settings of a pod.
        storage: URI of a folder of archives, for KServe; None: plain Kubernetes, with the archives in the image.
    """
    objects = _plain(workload, files) if storage is None else _kserve(workload, files, storage)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(objects),
    }
    every = {**objects, KUSTOMIZATION: kustomization}
    return {name: _HEAD + strict_yaml.dump(each, blocks=True) for name, each in every.items()}


def _plain(workload: Workload, files: Mapping[str, str]) -> dict[str, Object]:
    return {
        "config.yaml": kubernetes.config_map(workload, files),
        "deployment.yaml": kubernetes.deployment(workload, files),
        "disruption-budget.yaml": kubernetes.disruption_budget(workload),
        "autoscaler.yaml": kubernetes.autoscaler(workload, workload.name),
        "network-policy.yaml": kubernetes.network_policy(workload),
        "service.yaml": kubernetes.service(workload),
    }


def _kserve(workload: Workload, files: Mapping[str, str], storage: str) -> dict[str, Object]:
    return {
        "config.yaml": kubernetes.config_map(workload, files),
        "serving-runtime.yaml": kserve.serving_runtime(workload, files),
        "inference-service.yaml": kserve.inference_service(workload, storage),
        "autoscaler.yaml": kubernetes.autoscaler(workload, kserve.deployment_name(workload)),
    }


def write_manifests(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the files, each atomically, in their order.

    Raises:
        UsageError: the folder has other manifests, which `kubectl apply -f` would apply too, or cannot be written.
    """
    others = sorted(path.name for path in folder.glob("*.y*ml") if path.name not in texts)
    if others:
        raise UsageError(
            f"{folder} has manifests that are not written now: {', '.join(others)}",
            tip="name another folder, or remove them",
        )
    for name, text in texts.items():
        try:
            write_atomically(folder / name, text, sync=False)
        except OSError as error:
            raise UsageError(f"cannot write {folder / name}: {error.strerror}") from None
