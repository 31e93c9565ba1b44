"""Decide what a start of a project's server is to serve: the store, the server config and what is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from marsmith import launch, server_state
from marsmith.configured_parameters import configured_parameters, openable
from marsmith.errors import PreflightError
from marsmith.formats.server_state import Parameters, ServerState, Version
from marsmith.java import find_java
from marsmith.model_store import StoredArchive
from marsmith.preflight import Flight
from marsmith.served_versions import Serving, plan_serving
from marsmith.server_config import started_with
from marsmith.settings import Project


@dataclass(frozen=True)
class StartPlan:
    """A start that is decided.

    Attributes:
        flight: what the checks before it have found.
        serving: what is to be served.
        configured: how the files alone run each version.
    """

    flight: Flight
    serving: Serving
    configured: dict[Version, Parameters]


def plan_start(project: Project, flight: Flight, on_note: Callable[[str], None] | None) -> StartPlan:
    """Decide what to serve: the store, and what is remembered.

    Args:
        project: whose server.
        flight: what the checks before the start have found.
        on_note: called with what somebody who starts the server should know.
    """
    if "model_snapshot" in flight.config:
        # It decides by itself.
        return StartPlan(flight, Serving(flight.archives), {})
    remembered = server_state.load(project)
    stored = [*flight.archives, *_others(flight, remembered.state)]
    configured = configured_parameters(flight.config, stored)
    serving = plan_serving(stored, remembered.state, configured, renewed=_renewed(stored, remembered.state))
    if on_note:
        for note in filter(None, (remembered.note, *serving.notes)):
            on_note(note)
    return StartPlan(flight, serving, configured)


def plan_restart(project: Project) -> StartPlan:
    """Decide what to serve after TorchServe died: what ran, with the config that it ran with.

    Raises:
        PreflightError: Java or TorchServe are not there any more.
    """
    home = launch.torchserve_home()
    if home is None:
        raise PreflightError("TorchServe is not installed any more", tip="pip install 'marsmith[serve]'")
    config = started_with(project)
    flight = Flight(find_java(), home, config, ())
    state = server_state.load(project).state
    stored = _others(flight, state)
    configured = configured_parameters(config, stored)
    return StartPlan(flight, plan_serving(stored, state, configured, with_new=False), configured)


def models_argument(flight: Flight, serving: Serving) -> list[str]:
    """Return the archives to load for the command line, which beats ``load_models``.

    An alias or a URL in ``load_models`` is left to the server, and so is a name that cannot stand in a list.
    """
    names = [archive.path.name for archive in serving.archives]
    asked = flight.config["load_models"]
    unfit = any("," in name or "=" in name or name.startswith("-") for name in names)
    if unfit or "=" in asked or "://" in asked or "model_snapshot" in flight.config:
        return []
    if not names and not flight.archives:
        return []
    return ["-m", *(names or [""])]


def _renewed(stored: Iterable[StoredArchive], state: ServerState | None) -> set[Version]:
    """Find versions that were unregistered and whose archives have other bytes since."""
    renewed = set()
    for archive in stored:
        left = state.unregistered.get(archive.version) if state else None
        if left and left.bytes and left.bytes.sha256 != archive.archive.digest():
            renewed.add(archive.version)
    return renewed


def _others(flight: Flight, state: ServerState | None) -> list[StoredArchive]:
    """Open the archives that were served before and that the server config alone would not load."""
    if state is None:
        return []
    known = {archive.path for archive in flight.archives}
    store = Path(flight.config["model_store"])
    files = (store / state.archive(version).rpartition("/")[2] for version in state.served())
    return openable(sorted({path for path in files if path.exists()} - known))
