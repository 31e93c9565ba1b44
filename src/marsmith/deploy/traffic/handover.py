"""From a deploy to the supervisor: choose the strategy, check that it can be driven, and hand the rollout over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from marsmith.archive import Archive
from marsmith.config.model_spec import ModelSpec, load_spec
from marsmith.config.rollout_spec import RolloutSpec
from marsmith.deploy.rollout.plan import Step
from marsmith.deploy.rollout.recovery import recover
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.canary import Canary, try_timeout_s
from marsmith.deploy.traffic.decision import SHADOWING
from marsmith.deploy.traffic.eavesdrop import archive_of
from marsmith.deploy.traffic.shadow import GivenShadow, Shadow
from marsmith.deploy.traffic.state import Level, RolloutFile, RolloutState
from marsmith.errors import ServerError, SpecError, UsageError
from marsmith.predictions.comparable import why_not_comparable
from marsmith.project import Project
from marsmith.server import supervisor_state

Strategy = Canary | Shadow | Literal["switch"]
Given = Strategy | GivenShadow | Mapping[str, Any]

# The supervisor looks for rollouts several times a second; on a busy machine it may be late.
_TAKE_OVER_S = 30.0
_LOOK_S = 0.05
_RELEASED_S = 5.0
_AT_ONCE = "or give it all requests at once: --at-once"


def chosen_strategy(project: Project, model: str, given: Given | None = None) -> tuple[Strategy, ModelSpec | None]:
    """Return how a version of a model gets its requests, and the model's spec if it has one.

    Args:
        project: the project.
        model: model name.
        given: the strategy; None: as the spec says; values of a canary or of a shadow that go before those of the spec.

    Raises:
        SpecError: the spec violates its format.
        UsageError: the values do not make a canary or a shadow.
    """
    spec = _spec(project, model, given)
    if isinstance(given, Canary | Shadow) or given == "switch":
        return given, spec
    rollout = spec.rollout if spec else RolloutSpec()
    if isinstance(given, GivenShadow) or (given is None and rollout.strategy == "shadow"):
        return Shadow.of(rollout, given), spec
    if given is None and rollout.strategy == "switch":
        return "switch", spec
    return Canary.of(rollout, given), spec


def _spec(project: Project, model: str, given: Given | None) -> ModelSpec | None:
    """Return the model's spec; None if there is none, or none that could say how a version gets its requests."""
    if model not in project.spec_names():
        return None
    try:
        return load_spec(project, model)
    except SpecError:
        # An archive carries what it needs of its spec. A rollout that cannot be read must not become a switch.
        if given == "switch" or (given is None and b"rollout" not in project.spec(model).read_bytes()):
            return None
        raise


def check_possible(site: ModelServer, strategy: Canary | Shadow) -> None:
    """Check that a canary or shadow of this model can be run on this server.

    Raises:
        UsageError: the server runs without the front.
        ServerError: no supervisor could drive it.
    """
    kind = "shadow" if isinstance(strategy, Shadow) else "canary"
    if site.front.missing:
        raise UsageError(
            f"no {kind} of {site.model}: {site.front.missing}",
            tip=f"write 'front: envoy' into config/marsmith.yaml, then marsmith stop and marsmith serve; {_AT_ONCE}",
        )
    if supervisor_state.read(site.project) is None:
        raise ServerError(
            f"no {kind} of {site.model}: no supervisor watches the server, and it is the one who drives a {kind}",
            tip=f"marsmith stop, then marsmith serve without '--restart no'; {_AT_ONCE}",
        )


def refuse_while_watched(project: Project, model: str) -> None:
    """Refuse another deploy of a model while its rollout is driven; raises ServerError."""
    state = RolloutFile.of(project, model).read()
    if state and not state.is_over and state.is_watched:
        raise ServerError(
            f"{model}:{state.version} is being rolled out: {state.phase}, {state.share / 100:g}% of the requests",
            tip=f"marsmith rollout {model} shows it; marsmith rollout abort {model} ends it",
        )


def lock_wait_s(project: Project, model: str, wait_s: float) -> float:
    """Return how long to wait for the lock of a model's deploys, in seconds.

    The driver of a rollout that has just ended releases it a moment after it has written the end, and a process that
    was killed a moment after it counts as dead.

    Args:
        project: the project.
        model: model name.
        wait_s: how long the caller wants to wait, in seconds.

    Raises:
        ServerError: the caller does not want to wait, and a rollout of the model goes on.
    """
    if wait_s <= 0:
        refuse_while_watched(project, model)
    state = RolloutFile.of(project, model).read()
    if state is None or (state.is_over and time.time() - (state.ended_s or 0.0) > _RELEASED_S):
        return wait_s
    return max(wait_s, _RELEASED_S)


def check_comparable(site: ModelServer, strategy: Strategy, archive: Archive, stable: str) -> None:
    """Check that the replies of a new version can be compared with those of the old one, if the strategy needs it.

    Args:
        site: the model on the server.
        strategy: the strategy.
        archive: archive of the new version.
        stable: version that answers now.

    Raises:
        UsageError: one of their handlers writes no log by which requests are joined.
        ArchiveError: the old version's archive is not in the model store.
    """
    canary = strategy.then if isinstance(strategy, Shadow) else strategy
    if not isinstance(strategy, Shadow) and not (isinstance(canary, Canary) and canary.compare is not None):
        return
    for each in (archive, archive_of(site, stable)):
        why = why_not_comparable(each)
        if why:
            version = f"{each.manifest.model_name}:{each.manifest.model_version}"
            kind = "shadow" if isinstance(strategy, Shadow) else "comparison"
            renew = f"marsmith repack {each.path} --renew-handlers --version NEW makes a version that can; deploy that"
            raise UsageError(f"no {kind} of {site.model}: {version} cannot be compared: {why}", tip=renew)


def trial_steps(version: str, stable: str, strategy: Strategy) -> tuple[Step, ...]:
    """Return the steps of a plan in which a version is on trial; none if it gets all requests at once."""
    if isinstance(strategy, Canary):
        return tuple(share_steps(version, strategy))
    if not isinstance(strategy, Shadow):
        return ()
    copies = Step(
        "shadow",
        version,
        f"copy {strategy.sample:g}% of the requests to it for {strategy.time_s:g} s, and compare its replies with"
        f" those of {stable}; users get none of them",
    )
    if strategy.then is None:
        return (copies,)
    condition = Step("shadow", version, f"go on if the agreement is at least {strategy.min_agreement:.2%}")
    return (copies, condition, *share_steps(version, strategy.then))


def farewell(version: str) -> Iterator[Step]:
    """Return the steps after a shadow that nothing follows."""
    yield Step("plain", version, "copy no more requests, and write the report")
    yield Step("unregister", version, f"drain {version} and unregister it")


def share_steps(version: str, canary: Canary) -> Iterator[Step]:
    """Return the steps of a plan that give a version its requests share by share."""
    evidence = f", {canary.compare:g}% of its replies are compared" if canary.compare else ""
    for step in canary.steps:
        yield Step(
            "canary",
            version,
            f"send {step:g}% of the requests to it, for at least {canary.interval_s:g} s and"
            f" {canary.min_requests} answers{evidence}; back on evidence",
        )


def hand_over(site: ModelServer, version: str, stable: str, strategy: Canary | Shadow, spec: ModelSpec | None) -> None:
    """Write the state from which the supervisor drives the rollout. The version is registered and has answered."""
    p99_ms = spec.service_level.p99_ms if spec and spec.service_level else None
    level = Level(p99_ms, try_timeout_s(p99_ms, site.describe(version).response_timeout_s))
    file = RolloutFile.of(site.project, site.model)
    file.carried_out()
    shadow = strategy if isinstance(strategy, Shadow) else None
    canary = strategy if isinstance(strategy, Canary) else strategy.then or Canary()
    position = site.front.end_of_log()
    state = RolloutState(site.model, version, stable, canary, level, began_s=time.time(), position=position)
    file.write(replace(state, phase="shadowing", shadow=shadow) if shadow else state)


def await_driver(site: ModelServer, version: str) -> RolloutState:
    """Wait until the supervisor has taken a rollout over. The lock of the model's deploys is not held.

    Raises:
        ServerError: it did not in time; the state before the deploy is restored.
    """
    file, late = RolloutFile.of(site.project, site.model), time.monotonic() + _TAKE_OVER_S
    while time.monotonic() < late:
        state = file.read()
        if state and state.version == version and (state.is_over or (state.is_watched and _has_begun(site, state))):
            return state
        time.sleep(_LOOK_S)
    with site.file.locked(_TAKE_OVER_S):
        recover(site, site.file.read())
        end_with_journal(site)
    raise ServerError(
        f"{site.model}:{version} was not deployed: the supervisor did not take its rollout over within"
        f" {_TAKE_OVER_S:g} s\neverything is as it was",
        tip=f"its log says why: {site.project.run / 'supervisor.log'}",
    )


def _has_begun(site: ModelServer, state: RolloutState) -> bool:
    return state.step >= 0 or (state.phase in SHADOWING and site.front.copies_of(site.model) is not None)


def end_with_journal(site: ModelServer) -> None:
    """End a rollout that nobody drives and whose deploy has been finished or undone by this process."""
    file, journal = RolloutFile.of(site.project, site.model), site.file.read()
    state = file.read()
    if state is None or state.is_over or journal.change is not None:
        return
    promoted = bool(journal.releases) and journal.releases[-1].version == state.version
    file.write(state.at(time.time(), "promoted" if promoted else "back", "ended by the next deploy or rollback"))
