"""Deploys on a real server under steady load from clients that repeat nothing: nobody may notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marsmith.cli import main
from marsmith.client import Client, tokens
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.versions import Event, Options, Outcome, deploy, plan_deploy, rollback
from marsmith.errors import ServerError, UsageError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle
from marsmith.server.lifecycle import StartOptions
from marsmith.state.journal import JournalFile
from support.deploy_fixtures import CRASH, LOAD, MODEL, SLOW, WRONG, Reigns, after, write_version
from support.live_server import make_project, running
from support.long_tests import long, mostly_long
from support.steady_load import SteadyLoad, steady_load

# Latency is not judged but where it is the point: other tests may keep the machine busy.
ANY_LATENCY = RolloutLimits(max_latency_ratio=1000)
QUICK = Options(keep=1, watch_s=0.2, limits=ANY_LATENCY)


@dataclass
class Arena:
    """A running server whose default version is always the last good one that was deployed.

    Attributes:
        folder: where archives are built, outside the model store.
        reigns: which version was the default when.
    """

    project: Project
    state: RunState
    folder: Path
    reigns: Reigns
    _count: int = 1
    events: list[Event] = field(default_factory=list)

    def next_version(self) -> str:
        self._count += 1
        return f"{self._count}.0"

    def hear(self, event: Event) -> None:
        self.events.append(event)
        self.reigns.heard(event, time.monotonic())

    def deploy(self, archive: Path, options: Options = QUICK) -> Outcome:
        self.events.clear()
        return deploy(self.project, str(archive), options, on_event=self.hear)

    def load(self) -> SteadyLoad:
        return SteadyLoad(self.state, MODEL, tokens.token(self.state, "inference"))

    def versions(self) -> dict[str, tuple[bool, int]]:
        """Return the registered versions: whether each is the default, and its workers."""
        with Client.for_project(self.project) as client:
            return {s.model_version: (s.default, len(s.workers)) for s in client.describe(MODEL)}

    def default(self) -> str:
        return next(version for version, (default, _) in self.versions().items() if default)

    def stored(self) -> set[str]:
        return {path.name for path in self.project.model_store.iterdir()}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("deploy")
    first = write_version(folder, "1.0")
    project = make_project(folder / "project", {first.name: first}, load_models=first.name)
    with running(project) as state:
        reigns = Reigns()
        reigns.note("1.0", time.monotonic())
        yield Arena(project, state, folder, reigns)


def assert_nobody_noticed(arena: Arena, load: SteadyLoad) -> None:
    assert load.failed() == []
    assert load.wrong(arena.reigns.had) == []
    assert set(load.by_way()) == {"rest closed", "rest open", "grpc closed"}


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=long("kills"))])
def test_deploys_in_a_row_under_load_lose_no_request(arena: Arena, rounds: int) -> None:
    with steady_load(arena.load()) as load:
        for _ in range(rounds):
            older = write_version(arena.folder, arena.next_version(), batch_size=4)
            newer = write_version(arena.folder, arena.next_version())
            # From the second time on they are registered already, and are brought back into service.
            for archive in (older, newer, older, newer, older):
                assert arena.deploy(archive).result == "deployed"
        time.sleep(0.2)
    print(f"{5 * rounds} deploys: {dict(load.by_way())}, {len(load.failed())} failed")
    assert_nobody_noticed(arena, load)
    assert len({sent.version for sent in load.sent}) == 1 + 2 * rounds
    assert sorted(arena.versions().values()) == [(False, 1), (True, 1)]


BAD = {
    "does not load": ({"at_load": LOAD}, "ValueError: these weights are not ours"),
    "crashes at the first request": ({"at_request": CRASH}, "Worker died"),
    "answers wrongly": ({"at_request": WRONG}, "'cba' instead of 'abc'"),
    "is slow": ({"at_request": SLOW}, "median latency of its examples is"),
}


def test_a_version_that_is_caught_before_the_switch_hurts_nobody_and_leaves_no_trace(arena: Arena) -> None:
    before, stored = arena.versions(), arena.stored()
    with steady_load(arena.load()) as load:
        for how, reason in BAD.values():
            archive = write_version(arena.folder, arena.next_version(), **how)  # type: ignore[arg-type]
            with pytest.raises(ServerError, match=reason) as caught:
                # On a busy machine the old version takes long too, and what the new one adds is a smaller part.
                arena.deploy(archive, Options(watch_s=0.2, limits=RolloutLimits(max_latency_ratio=1.2)))
            assert f"everything is as it was: {arena.default()} answers" in caught.value.message
            assert "switch" not in [event.step.action for event in arena.events]
            assert (arena.versions(), arena.stored()) == (before, stored)
    assert_nobody_noticed(arena, load)


# What is wrong from the so-many-th request on, what it may cost, and what is said of it.
LATE = {
    "raises": ("raise ValueError('full')", ANY_LATENCY, "status 503|requests failed"),
    "loses its worker": (CRASH, ANY_LATENCY, "Worker died|workers died|requests failed"),
    "gets slow": (SLOW, RolloutLimits(max_latency_ratio=5), "is .* times the old version's"),
}


def test_a_version_that_shows_its_fault_only_after_the_switch_is_taken_off_again(arena: Arena) -> None:
    before = arena.versions()
    for name, (fault, limits, reason) in LATE.items():
        archive = write_version(arena.folder, arena.next_version(), at_request=after(60, fault))
        with steady_load(arena.load(), per_second=10) as load:
            with pytest.raises(ServerError, match=reason):
                arena.deploy(archive, Options(watch_s=60.0, limits=limits))
            back = time.monotonic()
            time.sleep(0.2)
        switched = [event for event in arena.events if event.step.action == "switch" and event.state == "done"]
        assert len(switched) == 2
        assert arena.versions() == before
        # Users saw errors of the bad version only, and none from when it had been taken off.
        assert load.wrong(arena.reigns.had) == []
        assert all(sent.began_s < back for sent in load.failed())
        _, made_default, left = arena.reigns.spans[-2]
        seconds = left - made_default
        print(f"{name}: {len(load.failed())} requests failed in the {seconds:.2f} s that it was the default version")
        assert len(load.failed()) < load.count() / 4


def test_the_tracebacks_of_a_version_are_seen_where_its_users_come_over_grpc_alone(arena: Arena) -> None:
    fault = after(40, "raise ValueError('full')")
    archive = write_version(arena.folder, arena.next_version(), at_request=fault, example=False)
    with steady_load(arena.load(), closed=0, per_second=0) as load, pytest.raises(ServerError, match="requests failed"):
        arena.deploy(archive, Options(watch_s=60.0, limits=ANY_LATENCY))
    assert load.failed()
    assert set(load.by_way()) == {"grpc closed"}


def test_requests_in_the_queue_of_the_old_version_are_answered_by_it_after_the_switch(arena: Arena) -> None:
    slow, quick = arena.next_version(), arena.next_version()
    options = Options(keep=0, watch_s=0.0, limits=RolloutLimits(max_latency_ratio=1e6))
    gate = arena.folder / "gate"
    gate.touch()
    waits = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    arena.deploy(write_version(arena.folder, slow, at_request=waits, batch_size=1), options)
    with Client.for_project(arena.project) as client, ThreadPoolExecutor(10) as pool:
        asked: list[object] = []

        def fill(event: Event) -> None:
            if (event.step.action, event.state) == ("switch", "begin"):
                gate.unlink()
                asked.extend(pool.submit(client.predict, MODEL, b"x") for _ in range(10))
                # All of them but the one that the worker has in hand.
                while client.describe(MODEL, slow)[0].queue_pending < 9:
                    time.sleep(0.01)
            if (event.step.action, event.state) == ("switch", "done"):
                gate.touch()

        deploy(arena.project, str(write_version(arena.folder, quick)), options, on_event=fill)
        assert slow not in arena.versions()
        assert {reply.result().json()["version"] for reply in asked} == {slow}  # type: ignore[attr-defined]


CHILD = """
import os, signal, sys
from pathlib import Path
from marsmith.deploy.versions import Options, deploy
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.project import Project

root, archive, keep, action, state = sys.argv[1:]

def die(event):
    if (event.step.action, event.state) == (action, state):
        os.kill(os.getpid(), signal.SIGKILL)

options = Options(keep=int(keep), watch_s=0.1, limits=RolloutLimits(max_latency_ratio=1000))
deploy(Project(Path(root)), archive, options, on_event=die)
"""


def deploy_and_die(arena: Arena, archive: Path, moment: str, keep: int = 0) -> None:
    """Deploy in another process, which is killed right before ("begin") or after ("done") a step."""
    child = [sys.executable, "-c", CHILD, str(arena.project.root), str(archive), str(keep), *moment.split()]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert JournalFile.of(arena.project, MODEL).read().change


def next_run(arena: Arena, version: str, keep: int = 0) -> None:
    """Deploy what is to be there anyway, so that only what was interrupted is left to do."""
    arena.deploy(arena.project.model_store / f"{MODEL}-{version}.mar", Options(keep=keep, watch_s=0))
    assert JournalFile.of(arena.project, MODEL).read().change is None
    arena.reigns.note(version, time.monotonic())


@pytest.mark.parametrize(
    "moment",
    mostly_long(
        "kills", ["store done", "register begin", "register done", "switch done"], ["store done", "switch done"]
    ),
)
def test_a_new_version_whose_deploy_was_killed_before_it_was_accepted_is_undone(arena: Arena, moment: str) -> None:
    before, stored = arena.versions(), arena.stored()
    deploy_and_die(arena, write_version(arena.folder, arena.next_version()), moment)
    present = next(version for version, (default, _) in before.items() if default)
    planned = plan_deploy(arena.project, f"{MODEL}-{present}.mar")
    assert planned.interrupted
    assert planned.interrupted[1] == "undo"
    next_run(arena, present)
    assert (arena.versions(), arena.stored()) == (before, stored)


def test_a_deploy_that_was_killed_after_its_version_was_accepted_is_finished(arena: Arena) -> None:
    old, new = arena.default(), arena.next_version()
    deploy_and_die(arena, write_version(arena.folder, new), "unregister begin")
    next_run(arena, new)
    assert arena.default() == new
    assert old not in arena.versions()


UNDONE = ["ready begin", "probe begin", "switch begin", "switch done", "watch begin", "watch done", "accept begin"]
FINISHED = ["accept done", "drain begin", "drain done"]


@pytest.mark.parametrize("moment", mostly_long("kills", [*UNDONE, *FINISHED], ["switch done", "accept done"]))
def test_a_kill_while_a_version_comes_back_into_service_leaves_it_as_it_was_or_finishes(
    arena: Arena, moment: str
) -> None:
    while len(arena.versions()) < 2:
        arena.deploy(write_version(arena.folder, arena.next_version()))
    old, before = arena.default(), arena.versions()
    new = next(version for version in before if version != old)
    deploy_and_die(arena, arena.project.model_store / f"{MODEL}-{new}.mar", moment, keep=1)
    present = old if moment in UNDONE else new
    next_run(arena, present, keep=1)
    assert arena.versions() == {version: (version == present, 1) for version in before}, moment


def test_ctrl_c_undoes_at_once(arena: Arena) -> None:
    before, stored = arena.versions(), arena.stored()

    def interrupt(event: Event) -> None:
        if (event.step.action, event.state) == ("watch", "begin"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(arena.project, str(write_version(arena.folder, arena.next_version())), QUICK, on_event=interrupt)
    assert (arena.versions(), arena.stored()) == (before, stored)
    assert JournalFile.of(arena.project, MODEL).read().change is None


def test_a_second_deploy_meanwhile_is_refused_or_waits(arena: Arena) -> None:
    first, second = (write_version(arena.folder, arena.next_version()) for _ in range(2))
    refused = threading.Event()

    def hear(event: Event) -> None:
        if (event.step.action, event.state) == ("probe", "begin"):
            with pytest.raises(ServerError, match=f"another process, pid {os.getpid()}"):
                deploy(arena.project, str(second), QUICK)
            refused.set()

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(deploy, arena.project, str(first), QUICK, on_event=hear)
        assert refused.wait(240)
        two = pool.submit(deploy, arena.project, str(second), QUICK, wait_s=240)
        assert one.result().version == two.result().before


def test_rollback_goes_back_to_the_version_before_and_to_one_that_is_only_in_the_store(
    arena: Arena, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARSMITH_PROJECT", str(arena.project.root))
    old, new = arena.default(), arena.next_version()
    archive = write_version(arena.folder, new)
    assert main(["deploy", str(archive), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [step["action"] for step in plan["steps"]][:3] == ["verify", "store", "register"]
    assert new not in arena.versions()

    limits = ["--watch-s", "0.1", "--max-latency-ratio", "1000"]
    with steady_load(arena.load()) as load:
        began = time.monotonic()
        assert main(["deploy", str(archive), "--workers", "2", *limits]) == 0
        assert arena.versions()[new] == (True, 2)
        assert main(["rollback", MODEL, "--keep", "0"]) == 0
        ended = time.monotonic()
    assert load.failed() == []
    assert {sent.version for sent in load.sent if began < sent.began_s < ended} == {old, new}
    assert arena.default() == old
    assert new not in arena.versions()
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"echo is answered by version {v}" for v in (new, old)]
    assert f"make {old} the default version instead of {new}" in printed.err
    # It has been taken off: now it comes from the store.
    assert rollback(arena.project, MODEL, to=new, keep=1).result == "rolled back"
    assert arena.default() == new
    with pytest.raises(UsageError, match=r"no version 0\.0 of echo"):
        rollback(arena.project, MODEL, to="0.0")


def test_a_version_without_workers_gets_them_back_before_it_answers(arena: Arena) -> None:
    first = arena.default()
    options = Options(keep=3, watch_s=0.0, limits=ANY_LATENCY)
    for _ in range(2):
        arena.deploy(write_version(arena.folder, arena.next_version()), options)
    assert arena.versions()[first] == (False, 0)
    with steady_load(arena.load()) as load:
        rollback(arena.project, MODEL, to=first)
    assert load.failed() == []
    assert arena.versions()[first] == (True, 1)


def test_a_model_that_is_new_is_taken_off_again_when_its_first_version_is_bad(arena: Arena) -> None:
    bad = write_version(arena.folder, "1.0", model="fresh", at_request=WRONG)
    with pytest.raises(ServerError, match="it has been taken off again"):
        deploy(arena.project, str(bad), QUICK)
    with Client.for_project(arena.project) as client:
        assert [model.name for model in client.models()] == [MODEL]
    good = write_version(arena.folder, "1.0", model="fresh")
    outcome = deploy(arena.project, str(good), QUICK)
    assert (outcome.result, outcome.before) == ("deployed", None)
    assert deploy(arena.project, str(good), QUICK).result == "unchanged"
    with Client.for_project(arena.project) as client:
        client.unregister("fresh")


def test_a_deploy_is_finished_though_the_server_was_restarted_meanwhile(arena: Arena) -> None:
    old, new = arena.default(), arena.next_version()
    deploy_and_die(arena, write_version(arena.folder, new), "drain begin")
    lifecycle.stop(arena.project)
    lifecycle.start(arena.project, StartOptions(timeout_s=240))
    next_run(arena, new)
    assert arena.default() == new
    assert old not in arena.versions()
