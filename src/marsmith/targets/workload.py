"""What is to run in a cluster: models of a project, an image, and how much of a node each pod gets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from marsmith.config.model_spec import ModelSpec, ServiceLevel, load_spec
from marsmith.errors import UsageError
from marsmith.names import did_you_mean
from marsmith.project import Project

# RFC 1123, as the API server checks names of namespaces and services.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST_LABEL = 63
# KServe appends -predictor, and a ReplicaSet its hash, to a name.
_LONGEST_NAME = 40
# https://github.com/distribution/reference, reference.go
_TAG_OR_DIGEST = re.compile(
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?@sha256:[0-9a-f]{64})"
)
_COMPONENT = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*")
_REGISTRY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<suffix>m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_CPU_SUFFIXES = (None, "m")
# TorchServe's frontend, Envoy and the supervisor, and one worker with torch and its weights.
_BASE_MIB = 512
_WORKER_MIB = 1024
_STORAGE = ("pvc://", "s3://", "oci://")


@dataclass(frozen=True)
class Resources:
    """Part of a node that a pod gets, as request and as limit.

    Attributes:
        cpu: cores, as a quantity of Kubernetes.
        memory: bytes, as a quantity of Kubernetes.
        gpus: NVIDIA GPUs.
    """

    cpu: str
    memory: str
    gpus: int = 0


@dataclass(frozen=True)
class Workload:
    """One group of equal pods.

    Attributes:
        name: name of its objects.
        namespace: namespace of its objects.
        image: image with marsmith and the project, by tag or digest.
        models: models that each pod serves; all have a service level.
        resources: part of a node that a pod gets.
    """

    name: str
    namespace: str
    image: str
    models: tuple[ModelSpec, ...]
    resources: Resources

    @property
    def response_timeout_s(self) -> int:
        """The longest time of an answer, in seconds."""
        return max(model.serving.response_timeout_s for model in self.models)

    @property
    def start_s(self) -> int:
        """Time limit of a start, in seconds: TorchServe's own, and that of each model."""
        return 60 + sum(model.serving.startup_timeout_s for model in self.models)

    @property
    def pending_targets(self) -> dict[str, int]:
        """Requests that may wait in a pod before there should be one more pod, by model.

        They wait for half of the time limit at the load of the service level (Little's law).
        """
        return {model.name: pending_target(level) for model in self.models if (level := model.service_level)}


def pending_target(level: ServiceLevel) -> int:
    """Return how many requests may wait for a version so that they wait at most half of its time limit."""
    return max(1, math.floor(level.requests_per_second * level.p99_ms / 1000 / 2))


def read_models(project: Project, names: Sequence[str]) -> tuple[ModelSpec, ...]:
    """Return the specs of models, sorted by name.

    Raises:
        UsageError: there is no such spec, or it has no service level.
        SpecError: a spec violates its format.
    """
    models = tuple(load_spec(project, name) for name in sorted(set(names)))
    for model in models:
        if model.service_level is None:
            raise UsageError(
                f"{model.name} has no service level, so nothing says when another pod is needed",
                tip=f"write service_level with p99_ms and requests_per_second into config/models/{model.name}.yaml",
            )
    return models


def default_name(names: Sequence[str]) -> str:
    """Return the name of the objects for these models: theirs, with '-' for what a label may not have."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in sorted(set(names)))


def default_resources(models: Sequence[ModelSpec], *, gpu: bool) -> Resources:
    """Return what the largest number of workers needs: a core a thread, and one core for the frontend and Envoy."""
    workers = sum(model.serving.max_workers for model in models)
    cores = 1 + sum(model.serving.max_workers * _threads(model) for model in models)
    return Resources(str(cores), f"{_BASE_MIB + workers * _WORKER_MIB}Mi", int(gpu))


def _threads(model: ModelSpec) -> int:
    threads = model.handler.settings.get("threads", 1)
    return threads if isinstance(threads, int) and threads > 0 else 1


def check_name(name: str) -> str:
    """Return the name of the objects; raises UsageError if Kubernetes refuses it, or KServe's longer ones."""
    if not _LABEL.fullmatch(name) or len(name) > _LONGEST_NAME or not name[0].isalpha():
        raise UsageError(
            f"{name!r} is not a name for a service",
            tip=f"--name with at most {_LONGEST_NAME} lower-case letters, digits and '-', beginning with a letter",
        )
    return name


def check_namespace(name: str) -> str:
    """Return the namespace; raises UsageError if Kubernetes refuses it."""
    if not _LABEL.fullmatch(name) or len(name) > _LONGEST_LABEL:
        raise UsageError(
            f"{name!r} is not a namespace",
            tip=f"at most {_LONGEST_LABEL} lower-case letters, digits and '-', as in vision-models",
        )
    return name


def check_image(image: str) -> str:
    """Return the image; raises UsageError if it is not a reference with a tag or a digest."""
    path, slash, last = image.rpartition("/")
    found = re.search(r"[:@]", last)
    name, version = (last[: found.start()], last[found.start() :]) if found else (last, "")
    if not version:
        raise UsageError(
            f"the image {image!r} has neither a tag nor a digest, so each node may run another one",
            tip=f"--image {image or 'NAME'}:1.0, or better @sha256:...",
        )
    first, *rest = path.split("/") if slash else [name]
    right = (_REGISTRY if slash else _COMPONENT).fullmatch(first)
    if not right or not all(map(_COMPONENT.fullmatch, [*rest, name])) or not _TAG_OR_DIGEST.fullmatch(version):
        raise UsageError(f"{image!r} is not the name of an image", tip="as in registry.example.com/models:1.0")
    return image


def check_quantity(text: str, flag: str) -> str:
    """Return a quantity of ``--cpu`` or ``--memory``; raises UsageError if Kubernetes refuses it, or it is 0."""
    match = _QUANTITY.fullmatch(text)
    example = "2 or 1500m" if flag == "--cpu" else "4Gi or 4096Mi"
    if not match or not float(match["number"]) or (match["suffix"] in _CPU_SUFFIXES) != (flag == "--cpu"):
        # Kubernetes takes memory without a suffix, as bytes: `4` for 4 GiB is a pod that never starts.
        raise UsageError(f"{flag} {text!r} is not a quantity of Kubernetes", tip=f"{flag} {example}")
    return text


def check_storage(uri: str) -> str:
    """Return the URI of a folder of archives; raises UsageError if KServe would not mount it at /mnt/models."""
    scheme = next((scheme for scheme in _STORAGE if uri.startswith(scheme)), None)
    if scheme is None:
        given = f"{uri.partition('://')[0]}://"
        raise UsageError(
            f"--storage {uri}: unknown scheme{did_you_mean(given, _STORAGE)}", tip=f"one of {', '.join(_STORAGE)}"
        )
    if not re.fullmatch(r"[^\s/][^\s]*", uri.removeprefix(scheme)):
        raise UsageError(f"--storage {uri} names no folder", tip=f"as in {scheme}models/efficientnet_lite0")
    return uri
