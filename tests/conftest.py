"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from marsmith.project import Project
from support.light_start import sitecustomize as light_start
from support.projects import copy_project, skip_without_locked_torch

if TYPE_CHECKING:
    from support.live_server import SharedServer

# Tests import ONNX Runtime themselves, and it reports home from its import on unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Tests and their servers share the cores: threads that spin while they wait take them from all others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Tests start hundreds of processes, which would all compile the same modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How busy the machine is decides no test.
hypothesis.settings.register_profile("marsmith", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("marsmith")

pytest_plugins = ["support.durations", "support.second_try", "support.without_torch"]

# Whoever runs the tests in the background may ignore these, and then their children do: tests send them.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

LIVE = Path(__file__).parent / "live"

# Here, and in all Python processes that tests start.
sys.path.append(str(Path(light_start.__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[-1], os.environ.get("PYTHONPATH"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in ``live`` starts a real TorchServe."""
    for item in items:
        if item.path.is_relative_to(LIVE):
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="module", autouse=True)
def light_workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let workers import torch when they first use it, and not when they start.

    Not in a module that is marked with ``tensors``: it is about tensors, or about a server exactly as users have it.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("tensors") is None:
            patch.setenv(light_start.VARIABLE, "1")
        yield


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """A server for tests that neither restart nor configure it, started by the first of them in each process."""
    from support.live_server import shared

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(light_start.VARIABLE, "1")
        with shared(tmp_path_factory.mktemp("shared")) as server:
            patch.undo()
            yield server


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh copy of this repository's project, with an empty store."""
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="session")
def built_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose store holds the default model's archive, built once a test run. Read only."""
    skip_without_locked_torch("the lock of the default model")
    from marsmith.build import build_from_spec
    from marsmith.config import load_spec

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    done = shared / "built.done"
    with (shared / "built.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return Project((shared / "built").resolve())
        project = copy_project(shared / "built")
        build_from_spec(project, load_spec(project, "efficientnet_lite0"))
        done.touch()
    return project


@pytest.fixture(scope="session")
def default_archive(built_project: Project) -> Path:
    """The default model's archive. Read only."""
    return built_project.model_store / "efficientnet_lite0-1.0.mar"
