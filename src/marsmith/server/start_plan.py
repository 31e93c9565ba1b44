"""Plan of a start: which versions to serve, from the store, the server config and the saved state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from marsmith import run_state
from marsmith.archive.admit import digest_of
from marsmith.archive.store import LoadItem, StoredArchive, load_items, snapshot_items
from marsmith.config import admission_policy
from marsmith.config.project_settings import FrontKind
from marsmith.config.server_config import started_with
from marsmith.errors import FatalArchiveError, MarsmithError, PreflightError
from marsmith.project import Project
from marsmith.run_state import LeftOut
from marsmith.server import launch
from marsmith.server.configured import configured_parameters
from marsmith.server.front.door import Front
from marsmith.server.java import find_java
from marsmith.server.placeholder import write_placeholder
from marsmith.server.preflight import PreflightResult, refusal, unserved
from marsmith.server.selection import Selection, in_order, select
from marsmith.server.served import Serving, plan_serving, without_version
from marsmith.state import served_file
from marsmith.state.served import Parameters, ServerState, Version
from marsmith.state.served_file import Remembered
from marsmith.state.version_bytes import check_stored


@dataclass(frozen=True)
class StartPlan:
    """The plan of a start.

    Attributes:
        flight: result of the preflight checks.
        serving: the versions to serve.
        configured: values that the files alone give to each version.
        left_out: archives of the store that are left out.
    """

    flight: PreflightResult
    serving: Serving
    configured: dict[Version, Parameters]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the admission of the served archives."""
        return tuple(text for archive in self.serving.archives for text in archive.warnings)


def plan_start(
    project: Project,
    flight: PreflightResult,
    remembered: Remembered,
    on_note: Callable[[str], None] | None,
    *,
    strict: bool = False,
) -> StartPlan:
    """Plan a start from the store and the saved state.

    Args:
        project: the project to serve.
        flight: result of the preflight checks.
        remembered: state of the previous server.
        on_note: called with information for the user who starts the server.
        strict: whether an archive that cannot be served prevents the start.

    Raises:
        PreflightError: there are archives but none can be served, or a snapshot names an archive that is left out.
    """
    if "model_snapshot" in flight.config:
        _refuse_snapshot(project, flight, remembered.state)
        return StartPlan(flight, Serving(flight.selection.served), {}, flight.selection.left_out)
    plan = _plan(flight, _with_remembered(project, flight, remembered.state), remembered.state)
    _refuse_to_serve_nothing(plan, strict=strict)
    odd = [f"{each.path.name}: {text}" for each in plan.serving.archives for text in each.manifest.noncanonical]
    for note in filter(None, (remembered.note, *map(str, plan.left_out), *odd, *plan.serving.notes)):
        if on_note:
            on_note(note)
    return plan


def plan_restart(project: Project) -> StartPlan:
    """Plan the restart of a server that died: the same versions and the same config.

    Raises:
        PreflightError: Java or TorchServe is missing now, or no archive can be served.
        ConfigError: the project's settings are invalid now, so it is unknown which archives are admitted.
    """
    home = launch.torchserve_home()
    if home is None:
        raise PreflightError("TorchServe is not installed any more", tip="pip install 'marsmith[serve]'")
    state = served_file.load(project).state
    front: FrontKind = "envoy" if Front.of(project).is_prepared else "none"
    policy = admission_policy(project)
    flight = PreflightResult(find_java(), home, started_with(project), Selection(), policy, front)
    _refuse_snapshot(project, flight, state)
    plan = _plan(flight, _with_remembered(project, flight, state), state, with_new=False)
    _refuse_to_serve_nothing(plan, strict=False)
    return replace(plan, left_out=in_order((*plan.left_out, *_still_left_out(project, plan))))


def without_fatal(plan: StartPlan, error: FatalArchiveError, *, strict: bool) -> StartPlan:
    """Return the plan without an archive that has ended TorchServe.

    Raises:
        FatalArchiveError: the start is strict, nothing is left to serve, or a snapshot decides what is loaded.
    """
    found = next((archive for archive in plan.serving.archives if archive.path.name == error.file), None)
    serving = without_version(plan.serving, found.version) if found else plan.serving
    files = {each.file for each in plan.left_out} | {error.file}
    urls = [item for item in _asked(plan.flight.config) if item.path is None and item.argument not in files]
    known = found is not None or error.file in {item.argument for item in _asked(plan.flight.config)}
    if strict or not known or "model_snapshot" in plan.flight.config or not (serving.archives or urls):
        raise error
    reason = f"TorchServe itself ended while it loaded it: {error.reason}"
    left_out = LeftOut(error.file, reason, f"marsmith lint {found.path}" if found else "")
    return replace(plan, serving=serving, left_out=in_order((*plan.left_out, left_out)))


def models_argument(project: Project, plan: StartPlan) -> list[str]:
    """Return the models for the command line, which overrides ``load_models``; URLs are loaded last.

    It always names all models, because otherwise TorchServe treats any folder in the store as a model.

    Raises:
        OSError: the placeholder of a left-out version cannot be written.
    """
    config = plan.flight.config
    if "model_snapshot" in config:
        return []
    temporary = launch.temporary_folder(project)
    placeholders = [str(write_placeholder(temporary, version)) for version in plan.serving.placeholders]
    archives = [_argument(archive, Path(config["model_store"])) for archive in plan.serving.archives]
    left_out = {each.file for each in plan.left_out}
    urls = [item.argument for item in _asked(config) if item.path is None and item.argument not in left_out]
    return ["-m", *([*placeholders, *archives, *urls] or [""])]


def _plan(
    flight: PreflightResult, selection: Selection, state: ServerState | None, *, with_new: bool = True
) -> StartPlan:
    configured = configured_parameters(flight.config, selection.served)
    serving = plan_serving(
        selection.served,
        state,
        configured,
        left_out=selection.left_out,
        with_new=with_new,
        renewed=_renewed(selection.served, state) if with_new else (),
    )
    return StartPlan(flight, serving, configured, selection.left_out)


def _renewed(stored: Iterable[StoredArchive], state: ServerState | None) -> set[Version]:
    """Find versions that were unregistered and whose archives have changed since."""
    renewed = set()
    for archive in stored:
        left = state.unregistered.get(archive.version) if state else None
        if left and left.bytes and left.bytes.sha256 != digest_of(archive.archive):
            renewed.add(archive.version)
    return renewed


def _with_remembered(project: Project, flight: PreflightResult, state: ServerState | None) -> Selection:
    """Add archives that were served before and that the server config alone would not load."""
    found = flight.selection
    if state is None:
        return found
    store = Path(flight.config["model_store"])
    known = {archive.path.name for archive in found.served} | {each.file for each in found.left_out}
    files = [store / name for name in sorted(set(state.files()) - known)]
    items = [LoadItem(path.name, path) for path in files if path.exists()]
    others = select(items, state.files(), flight.policy, partial(check_stored, project, state))
    return Selection((*found.served, *others.served), in_order((*found.left_out, *others.left_out)))


def _refuse_to_serve_nothing(plan: StartPlan, *, strict: bool) -> None:
    problems = unserved(Selection(left_out=plan.left_out))
    urls = any(item.path is None for item in _asked(plan.flight.config))
    if problems and (strict or not (plan.serving.archives or urls)):
        raise refusal(problems)


def _refuse_snapshot(project: Project, flight: PreflightResult, state: ServerState | None) -> None:
    """Refuse a snapshot that names an archive which is not served: the snapshot alone decides what TorchServe loads."""
    snapshot = flight.config.get("model_snapshot")
    if snapshot is None:
        return
    items = snapshot_items(Path(flight.config["model_store"]), snapshot)
    selection = select(items, policy=flight.policy, check=partial(check_stored, project, state))
    problems = unserved(Selection(left_out=selection.left_out))
    if problems:
        raise refusal(problems)


def _still_left_out(project: Project, plan: StartPlan) -> list[LeftOut]:
    """Return what the dead server left out and what is unchanged since."""
    try:
        before = run_state.read(project).left_out
    except MarsmithError:
        return []
    known = {archive.path.name for archive in plan.serving.archives} | {each.file for each in plan.left_out}
    return [each for each in before if each.file not in known]


def _asked(config: Mapping[str, str]) -> list[LoadItem]:
    try:
        return load_items(Path(config["model_store"]), config["load_models"])
    except OSError:
        return []


def _argument(archive: StoredArchive, store: Path) -> str:
    """Return an archive in the form of TorchServe's command line: ``file``, or ``model=file``."""
    path = archive.path
    if path.parent != store:
        return str(path)
    if archive.alias or "=" in path.name:
        return f"{archive.version[0]}={path.name}"
    return f"./{path.name}" if path.name.startswith("-") else path.name
