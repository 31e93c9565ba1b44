"""Canaries on a real server behind the front, under steady load from clients that repeat nothing: nobody may notice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from marsmith import run_state
from marsmith.cli import main
from marsmith.client import Client, tokens
from marsmith.deploy import Canary, Outcome, deploy
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.rollout.steps import Options
from marsmith.deploy.traffic.control import give_order
from marsmith.deploy.traffic.envoy import front_of
from marsmith.deploy.traffic.state import RolloutFile, RolloutState
from marsmith.errors import ServerError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle, supervisor_state
from marsmith.server.lifecycle import StartOptions
from marsmith.server.supervisor import RestartPolicy, detach
from marsmith.state.journal import JournalFile
from support.deploy_fixtures import MODEL, after, write_version
from support.live_server import make_project, until
from support.long_tests import mostly_long
from support.raw_calls import INFERENCE, call, message
from support.steady_load import SteadyLoad, steady_load

# Latency is not judged but where it is the point: other tests may keep the machine busy.
OPTIONS = Options(keep=0, limits=RolloutLimits(max_latency_ratio=1000))
QUICK = Canary(steps=(20, 50), interval_s=0.5, min_requests=10)
SLOWLY = Canary(steps=(25,), interval_s=600, max_wait_s=3600)
# Its example at the probe is answered; users' requests are not.
FAILS = after(20, "raise ValueError('full')")


@dataclass
class Arena:
    """A server behind the front with a supervisor. Its default version is the last good one."""

    project: Project
    state: RunState
    folder: Path
    _count: int = 1

    def archive(self, model: str = MODEL, **how: str) -> Path:
        self._count += 1
        return write_version(self.folder, f"{self._count}.0", model=model, **how)  # type: ignore[arg-type]

    @property
    def version(self) -> str:
        return f"{self._count}.0"

    def begin(self, archive: Path, canary: Canary = QUICK) -> Outcome:
        return deploy(self.project, str(archive), OPTIONS, strategy=canary)

    def rollout(self, model: str = MODEL) -> RolloutState:
        state = RolloutFile.of(self.project, model).read()
        assert state
        return state

    def until_over(self, model: str = MODEL) -> RolloutState:
        until(lambda: self.rollout(model).is_over)
        return self.rollout(model)

    def load(self, model: str = MODEL) -> SteadyLoad:
        return SteadyLoad(self.state, model, tokens.token(self.state, "inference"))

    def versions(self, model: str = MODEL) -> dict[str, bool]:
        """Return the registered versions, and whether each is the default."""
        with Client.for_project(self.project) as client:
            return {status.model_version: status.default for status in client.describe(model)}

    def default(self) -> str:
        return next(version for version, default in self.versions().items() if default)

    def supervise(self) -> None:
        detach(self.project, RestartPolicy(), 240)

    def kill_supervisor(self) -> None:
        known = supervisor_state.read(self.project)
        assert known
        os.kill(known.pid, signal.SIGKILL)
        until(lambda: supervisor_state.read(self.project) is None)

    def is_plain(self, model: str = MODEL) -> bool:
        return front_of(self.project).share_of(model) is None


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("canary")
    archives = [write_version(folder, "1.0"), write_version(folder, "1.0", model="other")]
    project = make_project(folder / "project", {path.name: path for path in archives}, load_models="all")
    (project.root / "config" / "marsmith.yaml").write_text("front: envoy\n")
    state = lifecycle.start(project, StartOptions(timeout_s=240))
    try:
        arena = Arena(project, state, folder)
        arena.supervise()
        yield arena
    finally:
        lifecycle.stop(project, timeout_s=0)


@pytest.fixture(autouse=True)
def here(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, str(arena.project.root))


def answered_by(load: SteadyLoad) -> set[str | None]:
    return {sent.version for sent in load.sent}


def test_a_good_version_is_promoted_and_no_request_fails(arena: Arena) -> None:
    old, archive = arena.default(), arena.archive()
    with steady_load(arena.load()) as load:
        outcome = arena.begin(archive)
        assert (outcome.result, outcome.before) == ("canary", old)
        rollout = arena.until_over()
        time.sleep(0.2)
    assert rollout.phase == "promoted", rollout.reason
    assert load.failed() == []
    assert answered_by(load) == {old, arena.version}
    assert set(load.by_way()) == {"rest closed", "rest open", "grpc closed"}
    assert arena.versions() == {arena.version: True}
    assert arena.is_plain()
    assert JournalFile.of(arena.project, MODEL).read().change is None
    assert rollout.canary_tally.failed == 0


def test_a_version_that_fails_goes_back_before_any_user_sees_a_failure_over_rest_and_grpc(arena: Arena) -> None:
    before = arena.versions()
    with steady_load(arena.load()) as load:
        arena.begin(arena.archive(at_request=FAILS), SLOWLY)
        rollout = arena.until_over()
        time.sleep(0.2)
    assert rollout.phase == "back"
    assert f"requests to {arena.version} failed, and 0 of" in rollout.reason
    assert load.failed() == []
    assert set(load.by_way()) == {"rest closed", "rest open", "grpc closed"}
    # It answered users, too, before it failed.
    assert answered_by(load) == {arena.default(), arena.version}
    assert arena.versions() == before
    assert arena.is_plain()


def test_a_version_that_hangs_is_given_up_for_each_request_and_goes_back(arena: Arena) -> None:
    (arena.project.specs / f"{MODEL}.yaml").write_text(
        f'name: {MODEL}\nversion: "1.0"\nexport: {{recipe: export/m.py}}\nhandler: {{entry_point: handlers/h.py}}\n'
        "service_level: {p99_ms: 100, requests_per_second: 50}\n"
    )
    try:
        with steady_load(arena.load()) as load:
            arena.begin(arena.archive(at_request=after(20, "time.sleep(3600)")), SLOWLY)
            rollout = arena.until_over()
    finally:
        (arena.project.specs / f"{MODEL}.yaml").unlink()
    assert rollout.phase == "back"
    assert load.failed() == []


def test_a_version_that_answers_late_goes_back(arena: Arena) -> None:
    before = arena.versions()
    archive = arena.archive(at_request=after(20, "time.sleep(1)"))
    with steady_load(arena.load()) as load:
        # Without a service level, slow is what is above the old version's own 99th percentile.
        arena.begin(archive, replace(SLOWLY, steps=(5,)))
        rollout = arena.until_over()
    assert rollout.phase == "back"
    assert f"requests to {arena.version} were slow, and" in rollout.reason
    assert rollout.canary_tally.failed == 0
    assert load.failed() == []
    assert arena.versions() == before


def test_a_canary_without_requests_is_inconclusive_and_never_promoted(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    before = arena.versions()
    arena.begin(arena.archive(), replace(QUICK, max_wait_s=1.0))
    until(lambda: arena.rollout().phase == "inconclusive")
    assert arena.rollout().reason.startswith("0 answers of the canary in 1 s at 20%, and 10 are needed")
    assert main(["rollout", "resume", MODEL]) == 0
    until(lambda: arena.rollout().phase == "inconclusive")
    assert (arena.rollout().step, arena.default() in before) == (0, True)
    assert main(["rollout", "abort", MODEL]) == 0
    assert "back: aborted by an operator" in capsys.readouterr().out
    assert arena.versions() == before


@pytest.mark.parametrize("kind", ["header", "cookie"])
def test_a_user_who_has_got_the_canary_keeps_it(arena: Arena, kind: str) -> None:
    archive, old = arena.archive(), arena.default()
    token = tokens.token(arena.state, "inference")
    stop = threading.Event()

    def versions_of(user: str) -> list[str]:
        """Ask over REST and gRPC in turns, as one user, and return the versions in the order of the answers."""
        said = {"x-user-id": user} if kind == "header" else {"cookie": f"theme=dark; session={user}"}
        found: list[str] = []
        with grpc.insecure_channel(arena.state.grpc_inference) as channel:
            ask = channel.unary_unary(f"/{INFERENCE}/Predictions")
            body = message({1: MODEL}) + message({3: message({1: "body", 2: b"x"})})
            metadata = [("authorization", f"Bearer {token}"), *said.items()]
            while not stop.is_set():
                answer = call(arena.state.inference, "POST", f"/predictions/{MODEL}", token, body=b"x", headers=said)
                found.append(json.loads(answer.body)["version"])
                # The reply is a message whose first field is JSON of several lines.
                reply = re.findall(rb"(?s)\{.*\}", ask(body, metadata=metadata, timeout=60))[0]
                found.append(json.loads(reply)["version"])
        return found

    with ThreadPoolExecutor(12) as pool:
        users = [pool.submit(versions_of, f"user-{number}") for number in range(12)]
        try:
            arena.begin(archive, replace(QUICK, sticky="header:X-User-Id" if kind == "header" else "cookie:session"))
            assert arena.until_over().phase == "promoted"
        finally:
            stop.set()
    asked = [user.result() for user in users]
    assert {version for found in asked for version in found} == {old, arena.version}
    for found in asked:
        assert found == sorted(found, key=[old, arena.version].index)


def test_several_models_roll_out_at_once_and_one_that_fails_does_not_hold_up_the_other(arena: Arena) -> None:
    good, bad = arena.archive(), arena.archive("other", at_request=FAILS)
    with steady_load(arena.load()) as load, steady_load(arena.load("other")) as other:
        arena.begin(good)
        arena.begin(bad, SLOWLY)
        with pytest.raises(ServerError, match=r"is being rolled out|by another process"):
            arena.begin(write_version(arena.folder, "0.9", model="other"))
        assert arena.until_over("other").phase == "back"
        assert arena.until_over().phase == "promoted"
    assert load.failed() == []
    assert other.failed() == []


def test_a_killed_supervisor_leaves_the_share_and_the_shield_and_the_next_one_goes_on(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    with steady_load(arena.load()) as load:
        arena.begin(arena.archive(at_request=after(100, "raise ValueError('full')")), SLOWLY)
        arena.kill_supervisor()
        try:
            assert main(["status"]) == 0
            assert "25% of the requests" in (out := capsys.readouterr().out)
            assert "rising, unwatched" in out
            count = load.count()
            until(lambda: load.count() > count + 200)
            assert not arena.is_plain()
        finally:
            arena.supervise()
        assert arena.until_over().phase == "back"
    assert load.failed() == []


def test_a_rollout_that_nobody_drives_can_be_aborted_or_is_undone_by_the_next_deploy(arena: Arena) -> None:
    before = arena.versions()
    bad, good = arena.archive(), arena.archive()
    try:
        arena.begin(bad, SLOWLY)
        arena.kill_supervisor()
        give_order(arena.project, MODEL, "abort", print)
        assert (arena.versions(), arena.is_plain(), arena.rollout().phase) == (before, True, "back")
        arena.supervise()
        arena.begin(bad, SLOWLY)
        arena.kill_supervisor()
        deploy(arena.project, str(good), OPTIONS, strategy="switch")
        assert arena.versions() == {arena.version: True}
        assert (arena.is_plain(), arena.rollout().phase) == (True, "back")
    finally:
        if supervisor_state.read(arena.project) is None:
            arena.supervise()


def test_an_operator_pauses_resumes_and_promotes(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    archive = arena.archive()
    with steady_load(arena.load()) as load:
        arena.begin(archive, SLOWLY)
        for order in ("pause", "resume", "promote"):
            assert main(["rollout", order, MODEL]) == 0
    assert "promoted: by an operator" in capsys.readouterr().out
    assert load.failed() == []
    assert arena.versions() == {arena.version: True}


def test_what_an_operator_sets_during_a_rollout_ends_it_and_stands(arena: Arena) -> None:
    old = arena.default()
    arena.begin(arena.archive(), SLOWLY)
    assert main(["set-default", MODEL, arena.version]) == 0
    assert (arena.rollout().phase, arena.is_plain()) == ("left", True)
    assert arena.versions() == {old: False, arena.version: True}
    # By another tool.
    newer = arena.archive()
    stands = arena.default()
    arena.begin(newer, SLOWLY)
    with Client.for_project(arena.project) as client:
        client.set_default(MODEL, old)
    assert arena.until_over().phase == "left"
    assert f"{old} was made the default version by another command" in arena.rollout().reason
    assert arena.versions() == {old: True, stands: False}
    with Client.for_project(arena.project) as client:
        client.unregister(MODEL, stands)
    arena.begin(arena.archive(), SLOWLY)
    assert main(["unregister", f"{MODEL}:{arena.version}"]) == 0
    assert (arena.versions(), arena.rollout().phase) == ({old: True}, "left")


CHILD = """
import os, signal, sys
from pathlib import Path
from marsmith.deploy import Canary, deploy
from marsmith.deploy.rollout.steps import Options
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.project import Project

root, archive, action, state = sys.argv[1:]

def die(event):
    if (event.step.action, event.state) == (action, state):
        os.kill(os.getpid(), signal.SIGKILL)

options = Options(keep=0, limits=RolloutLimits(max_latency_ratio=1000))
deploy(Project(Path(root)), archive, options, strategy=Canary(steps=(25,), interval_s=600), on_event=die)
"""


@pytest.mark.parametrize("moment", mostly_long("kills", ["probe done", "canary begin"], ["canary begin"]))
def test_a_deploy_that_was_killed_before_the_supervisor_has_the_canary_is_undone_by_the_next(
    arena: Arena, moment: str
) -> None:
    before = arena.versions()
    child = [sys.executable, "-c", CHILD, str(arena.project.root), str(arena.archive()), *moment.split()]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert deploy(arena.project, f"{MODEL}-{arena.default()}.mar", OPTIONS).result == "unchanged"
    assert (arena.versions(), arena.is_plain()) == (before, True)


def test_a_deploy_that_was_killed_after_the_supervisor_has_the_canary_goes_on(arena: Arena) -> None:
    archive = arena.archive()
    child = [sys.executable, "-c", CHILD, str(arena.project.root), str(archive), "canary", "done"]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    until(lambda: arena.rollout().version == arena.version and arena.rollout().step == 0)
    assert main(["rollout", "promote", MODEL]) == 0
    assert arena.versions() == {arena.version: True}


def test_a_restart_of_torchserve_during_a_rollout_loses_no_request_and_the_rollout_goes_on(arena: Arena) -> None:
    archive = arena.archive()
    with steady_load(arena.load()) as load:
        arena.begin(archive, SLOWLY)
        os.kill(run_state.read(arena.project).pid, signal.SIGKILL)
        until(lambda: not run_state.read(arena.project).ready)
        until(lambda: run_state.read(arena.project).ready)
        time.sleep(3)
        assert arena.rollout().phase == "rising"
        assert main(["rollout", "promote", MODEL]) == 0
    assert load.failed() == []
    assert arena.versions() == {arena.version: True}


def test_a_plan_names_the_shares_and_changes_nothing(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    before, archive = arena.versions(), arena.archive()
    assert main(["deploy", str(archive), "--canary", "--steps", "5,50", "--plan", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [step["action"] for step in steps].count("canary") == 2
    assert arena.versions() == before
