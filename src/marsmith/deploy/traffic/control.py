"""An operator's orders to a rollout: pause, resume, promote, abort, and to leave the model to another command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from marsmith.deploy.traffic.decision import OPEN
from marsmith.deploy.traffic.drive import drive
from marsmith.deploy.traffic.state import Order, RolloutFile, RolloutState
from marsmith.errors import ServerError, UsageError
from marsmith.project import Project

# An order is carried out at the driver's next look; on a busy machine this may be late.
_OBEYED_S = 30.0
# Draining takes up to a minute, and unregistering may take as long.
_OVER_S = 180.0
_LOOK_S = 0.05
_ENDS: frozenset[Order] = frozenset({"promote", "abort", "leave"})


def give_order(project: Project, model: str, order: Order, tell: Callable[[str], None]) -> RolloutState:
    """Give an order to the rollout of a model, and return its state once it is carried out.

    A rollout that nobody drives is ended by this process, if the order ends it.

    Args:
        project: the project.
        model: model name.
        order: the order.
        tell: called with each event of a rollout that this process ends.

    Raises:
        UsageError: the model has no rollout, or it is in another phase than the order needs.
        ServerError: nobody drives the rollout, or the order was not carried out in time.
    """
    file = RolloutFile.of(project, model)
    state = current(project, model)
    if order == "pause" and state.phase != "rising":
        raise UsageError(f"the rollout of {model} is {state.phase}, so it cannot be paused")
    if order == "resume" and state.phase not in {"paused", "inconclusive"}:
        raise UsageError(f"the rollout of {model} is {state.phase}, so there is nothing to resume")
    if not state.is_watched and order not in _ENDS:
        raise ServerError(f"nobody drives the rollout of {model}", tip="marsmith serve; its supervisor goes on with it")
    if state.phase in OPEN:
        file.order(order, state)
    if not state.is_watched:
        drive(project, model, threading.Event(), tell)
    _wait(lambda: file.pending(state) is None or _now(file).is_over, _OBEYED_S, f"the order to {order} {model}")
    if order in _ENDS:
        _wait(lambda: _now(file).is_over, _OVER_S, f"the end of the rollout of {model}")
    return _now(file)


def current(project: Project, model: str) -> RolloutState:
    """Return the rollout of a model that goes on; raises UsageError if there is none."""
    state = RolloutFile.of(project, model).read()
    if state is None or state.is_over:
        last = f"; the last one, of {state.version}, ended: {state.phase}" if state else ""
        raise UsageError(f"no rollout of {model} goes on{last}", tip="marsmith rollout lists those that do")
    return state


def make_way(project: Project, model: str, version: str | None, tell: Callable[[str], None]) -> None:
    """End the rollout of a model before another command changes the model.

    Args:
        project: the project.
        model: model name.
        version: version that the command changes. If it is the canary, it stays registered for the command.
        tell: called with one sentence if there is a rollout.

    Raises:
        ServerError: the rollout did not end in time.
    """
    state = RolloutFile.of(project, model).read()
    if state is None or state.is_over:
        return
    tell(f"the rollout of {model}:{state.version} is aborted: this command changes the model")
    give_order(project, model, "leave" if version == state.version else "abort", tell)


def _now(file: RolloutFile) -> RolloutState:
    state = file.read()
    if state is None:
        raise ServerError(f"the state of {file.model}'s rollout has been removed: {file.path}")
    return state


def _wait(done: Callable[[], bool], seconds: float, what: str) -> None:
    late = time.monotonic() + seconds
    while not done():
        if time.monotonic() > late:
            raise ServerError(f"{what} was not carried out within {seconds:g} s", tip="it stays; marsmith rollout")
        time.sleep(_LOOK_S)
