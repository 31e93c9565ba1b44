"""Settings of the front with their origins, and its addresses, for those who look at a project's configuration."""

from __future__ import annotations

from contextlib import suppress

from marsmith import run_state, strict_yaml
from marsmith.config.effective import SERVE, Setting
from marsmith.config.project_settings import load_settings
from marsmith.errors import ConfigError, NotRunningError, ServerError
from marsmith.project import Project
from marsmith.run_state import Backend
from marsmith.server.differences import ParameterDifference

_DEFAULT = "marsmith's default"
_KEYS = ("front", "front_metrics_port")


def front_settings(project: Project) -> tuple[Setting, ...]:
    """Return what a project says of its front, and where TorchServe listens behind it.

    Raises:
        ConfigError: the project's settings violate their format.
    """
    settings = load_settings(project)
    found = [Setting(key, str(getattr(settings, key)), _origin(project, key)) for key in _KEYS]
    backend = _backend(project)
    if backend is not None:
        found.append(Setting("inference_address behind it", backend.inference, SERVE))
        found.append(Setting("grpc_inference behind it", backend.grpc_inference, SERVE))
    elif settings.front == "envoy":
        found.append(Setting("inference behind it", "free ports of the loopback, at each start", SERVE))
    return tuple(found)


def front_differences(project: Project) -> list[ParameterDifference]:
    """Compare the front of a running server with the project's settings.

    Raises:
        ConfigError: the project's settings violate their format.
        NotRunningError, ServerError: the state of the server cannot be read.
    """
    expected = load_settings(project).front
    live = "none" if run_state.read(project).backend is None else "envoy"
    return [ParameterDifference("server", "front", expected, live)] if live != expected else []


def _backend(project: Project) -> Backend | None:
    try:
        return run_state.read(project).backend
    except (NotRunningError, ServerError):
        return None


def _origin(project: Project, key: str) -> str:
    path = project.settings_file
    name = str(path.relative_to(project.root))
    with suppress(OSError, ConfigError):
        line = strict_yaml.line_of(strict_yaml.load_mapping(path.read_text(encoding="utf-8"), name, ConfigError), key)
        return f"{name}:{line}" if line else _DEFAULT
    return _DEFAULT
