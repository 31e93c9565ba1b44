"""What Prometheus reads: the listeners of a project's server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from marsmith import run_state
from marsmith.config.project_settings import ProjectSettings, listener_address, load_settings
from marsmith.config.server_config import addresses, effective_config, read_server_config
from marsmith.config.tls import ca_file
from marsmith.errors import NotRunningError, UsageError
from marsmith.monitoring import jobs
from marsmith.project import Project
from marsmith.server import supervisor_state
from marsmith.server.front.door import Front

_SETTINGS = "config/marsmith.yaml"


@dataclass(frozen=True)
class Target:
    """A listener.

    Attributes:
        job: name of its job.
        url: its base URL; the metrics are at ``/metrics``. None of them needs a token.
        ca_file: certificates to trust; None without TLS.
    """

    job: str
    url: str
    ca_file: Path | None = None


@dataclass(frozen=True)
class Targets:
    """The listeners of a server.

    Attributes:
        found: those that can be read, that of the supervisor first.
        left_out: why the others cannot, one sentence each.
    """

    found: tuple[Target, ...]
    left_out: tuple[str, ...] = ()


def configured_targets(project: Project) -> Targets:
    """Return the listeners as the project's files say.

    Raises:
        UsageError: the supervisor does not listen, or at another port with each start.
        ConfigError: the files violate their formats.
        PreflightError: the server config or a certificate cannot be read.
    """
    settings = load_settings(project)
    supervisor = listener_address(settings)
    if supervisor is None or not supervisor.port:
        what = "has another port with each start" if supervisor else "is none"
        raise UsageError(
            f"Prometheus cannot know where the supervisor listens: listener {what} in {_SETTINGS}",
            tip="write listener: 127.0.0.1:8083 there; marsmith monitor --up needs no fixed port if the server runs",
        )
    config = effective_config(project, read_server_config(project), os.environ)
    left_out = tuple(_left_out(settings, config))
    server, front = _server(config), f"http://127.0.0.1:{settings.front_metrics_port}"
    has_front = settings.front == "envoy" and settings.front_metrics_port
    found = [Target(jobs.SUPERVISOR, supervisor.url), *([server] if server else [])]
    return Targets((*found, *([Target(jobs.FRONT, front)] if has_front else [])), left_out)


def running_targets(project: Project) -> Targets | None:
    """Return the listeners of the running server; None if it does not run, or has no supervisor that listens.

    Raises:
        ServerError: the state of the server cannot be read.
    """
    supervisor = supervisor_state.read(project)
    if supervisor is None or not supervisor.listener:
        return None
    try:
        state = run_state.read(project)
    except NotRunningError:
        return None
    found = [Target(jobs.SUPERVISOR, supervisor.listener), Target(jobs.SERVER, state.metrics, state.ca_file)]
    if state.backend is not None:
        found.append(Target(jobs.FRONT, Front.of(project).metrics.removesuffix("/metrics")))
    return Targets(tuple(found))


def _server(config: Mapping[str, str]) -> Target | None:
    where = addresses(config).metrics
    if not _has_metrics(config):
        return None
    return Target(jobs.SERVER, where.url, ca_file(config) if where.is_secure else None)


def _has_metrics(config: Mapping[str, str]) -> bool:
    return config.get("metrics_mode", "").strip().lower() in {"prometheus", "legacy"}


def _left_out(settings: ProjectSettings, config: Mapping[str, str]) -> Iterator[str]:
    if not _has_metrics(config):
        yield "TorchServe has no metrics: write metrics_mode=prometheus into config.properties"
    if settings.front == "envoy" and not settings.front_metrics_port:
        yield (
            "Envoy's own metrics have another port with each start: to have them beside those of the supervisor,"
            f" write front_metrics_port: 9901 into {_SETTINGS}"
        )
