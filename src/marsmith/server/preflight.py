"""Preflight checks. Reports all problems at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from marsmith.archive.admit import ANY, Policy
from marsmith.archive.store import load_items
from marsmith.config import admission_policy
from marsmith.config.platform import Platform, server_settings
from marsmith.config.project_settings import FrontKind, ProjectSettings, load_settings
from marsmith.config.server_config import (
    Addresses,
    ListenAddress,
    addresses,
    effective_config,
    read_server_config,
    unknown_keys,
)
from marsmith.config.tls import tls_problems
from marsmith.errors import MarsmithError, PreflightError
from marsmith.project import Project
from marsmith.server.access import access_problems, model_problems
from marsmith.server.front.ports import metrics_address, shared_with_inference
from marsmith.server.front.process import find_envoy
from marsmith.server.java import Java, find_java
from marsmith.server.launch import torchserve_home
from marsmith.server.problems import PreflightProblem
from marsmith.server.selection import Selection, select
from marsmith.state.served import ServerState
from marsmith.state.version_bytes import check_stored

# Modules that TorchServe's worker and frontend import; its wheel declares neither torch nor yaml.
_MODULES = {"torch": "torch", "yaml": "pyyaml", "psutil": "psutil", "packaging": "packaging"}
Result = TypeVar("Result")
_FIRST_WORKER_PORT = 9000
_WORKER_PORTS = 100


@dataclass(frozen=True)
class PreflightResult:
    """The result of successful checks.

    Attributes:
        java: the Java to use.
        home: folder of TorchServe's package.
        config: the effective server config.
        selection: archives that the server may load, and those that are left out.
        policy: the archives that the project admits.
        front: what is in front of TorchServe.
    """

    java: Java
    home: Path
    config: Mapping[str, str]
    selection: Selection
    policy: Policy = ANY
    front: FrontKind = "none"


def check(
    project: Project,
    before: ServerState | None = None,
    *,
    strict: bool = False,
    front: FrontKind | None = None,
    platform: Platform | None = None,
) -> PreflightResult:
    """Check all requirements of a start.

    Args:
        project: the project to serve.
        before: state of the previous server; None if there is none.
        strict: whether an archive that would be left out is a problem.
        front: what is to be in front of TorchServe; None: what the project's settings say.
        platform: the platform that runs the container; None: there is none.

    Raises:
        PreflightError: there are problems; the message lists all of them.
    """
    problems: list[PreflightProblem] = []
    java = _collect(problems, find_java)
    home = torchserve_home()
    if home is None:
        problems.append(PreflightProblem("TorchServe is not installed", "pip install 'marsmith[serve]'"))
    config = _config(project, platform, problems)
    policy = _collect(problems, lambda: admission_policy(project))
    selection = _selection(project, config, before, policy, problems) if config and policy else Selection()
    if strict:
        problems += unserved(selection)
    problems += missing_modules()
    if config:
        problems += _endpoint_problems(config)
    settings = load_settings(project) if policy else ProjectSettings(front="none")
    front = front or ("envoy" if platform and platform.guards else settings.front)
    if config:
        problems += access_problems(config, platform, front)
        problems += model_problems(platform, selection)
    if config and front == "envoy":
        problems += _front_problems(config, settings.front_metrics_port)
    if problems or java is None or home is None or config is None or policy is None:
        raise refusal(problems)
    config.setdefault("initial_worker_port", str(_free_worker_port()))
    return PreflightResult(java, home, config, selection, policy, front)


def unserved(selection: Selection) -> list[PreflightProblem]:
    """Return the archives that are left out as problems."""
    return [PreflightProblem(f"{each.file}: {each.reason}", each.tip) for each in selection.left_out if each.is_archive]


def missing_modules() -> list[PreflightProblem]:
    """Return the modules that TorchServe imports and that are not installed."""
    missing = sorted(package for module, package in _MODULES.items() if find_spec(module) is None)
    if not missing:
        return []
    return [
        PreflightProblem(f"TorchServe needs {', '.join(missing)} in its Python", f"pip install {' '.join(missing)}")
    ]


def busy_port(endpoint: ListenAddress) -> PreflightProblem | None:
    """Return the reason why ``endpoint`` cannot be bound; None if it is free."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Like the server: a connection that is still closing does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
            probe.listen(1)
        except OSError as error:
            return _bind_problem(endpoint, error)
    return None


def _bind_problem(endpoint: ListenAddress, error: OSError) -> PreflightProblem:
    where = f"{endpoint.host}:{endpoint.port} ({endpoint.key})"
    if error.errno != errno.EADDRINUSE:
        return PreflightProblem(
            f"cannot listen at {where}: {error.strerror or error}", "correct the address in config.properties"
        )
    owner = _owner(endpoint.port)
    by = f" by {owner}" if owner else ""
    return PreflightProblem(
        f"port {where} is in use{by}", f"stop what uses it, or change {endpoint.key} in config.properties"
    )


def _owner(port: int) -> str | None:
    """Describe the process that listens at ``port``; None if it is unknown."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and listens.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return None


def _collect(problems: list[PreflightProblem], step: Callable[[], Result]) -> Result | None:
    try:
        return step()
    except MarsmithError as error:
        problems.append(PreflightProblem(error.message, error.tip or ""))
        return None


def _config(project: Project, platform: Platform | None, problems: list[PreflightProblem]) -> dict[str, str] | None:
    try:
        entries = read_server_config(project)
        problems += [PreflightProblem(f"{project.server_config}: {text}") for text in unknown_keys(entries)]
        return effective_config(project, entries, os.environ) | (server_settings(platform) if platform else {})
    except MarsmithError as error:
        problems.append(PreflightProblem(error.message, error.tip or ""))
        return None


def _selection(
    project: Project,
    config: Mapping[str, str],
    before: ServerState | None,
    policy: Policy,
    problems: list[PreflightProblem],
) -> Selection:
    store = Path(config["model_store"])
    try:
        items = load_items(store, config["load_models"])
    except OSError as error:
        problems.append(PreflightProblem(f"cannot read the model store {store}: {error.strerror}", f"mkdir -p {store}"))
        return Selection()
    return select(items, before.files() if before else (), policy, partial(check_stored, project, before))


def _endpoint_problems(config: Mapping[str, str]) -> list[PreflightProblem]:
    """Find ports that are in use, and TLS problems."""
    try:
        endpoints = addresses(config).all()
    except MarsmithError as error:
        return [PreflightProblem(error.message, error.tip or "")]
    busy = [problem for problem in map(busy_port, endpoints) if problem]
    return busy + [PreflightProblem(problem.message, problem.tip) for problem in tls_problems(config)]


def _front_problems(config: Mapping[str, str], metrics_port: int) -> list[PreflightProblem]:
    """Find out what the front lacks."""
    problems: list[PreflightProblem] = []
    _collect(problems, find_envoy)
    try:
        where = addresses(config)
    except MarsmithError:
        # It is reported with the addresses.
        return problems
    for each in shared_with_inference(where):
        message = f"{each.key} is {each.host}:{each.port}, the address of the inference API, which the front takes"
        tip = f"give {each.key} another port in config.properties, or do without the front: marsmith serve --front none"
        problems.append(PreflightProblem(message, tip))
    return problems + (_metrics_port_problems(where, metrics_port) if metrics_port else [])


def _metrics_port_problems(where: Addresses, port: int) -> list[PreflightProblem]:
    """Find out why the fixed port of the front's metrics cannot be used."""
    tip = "write another front_metrics_port, or 0, into config/marsmith.yaml"
    others = [each.key for each in where.all() if each.port == port]
    if others:
        return [PreflightProblem(f"front_metrics_port is {port}, the port of {others[0]}", tip)]
    busy = busy_port(metrics_address(port))
    return [replace(busy, tip=f"stop what uses it, or {tip}")] if busy else []


def _free_worker_port() -> int:
    """Return the first port of a free block: sockets of workers are named by port, or are ports without epoll."""
    for first in range(_FIRST_WORKER_PORT, 60000, _WORKER_PORTS):
        if busy_port(ListenAddress("initial_worker_port", "tcp", "127.0.0.1", first)) is None:
            return first
    raise PreflightError("no free port for workers from 9000 to 60000")


def refusal(problems: Sequence[PreflightProblem]) -> PreflightError:
    """Return the error that lists every problem, one on each line."""
    tips = "\n     ".join(dict.fromkeys(problem.tip for problem in problems if problem.tip))
    return PreflightError("\n".join(problem.message for problem in problems), tip=tips or None)
