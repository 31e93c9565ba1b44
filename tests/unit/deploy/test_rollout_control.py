"""What operators see of a rollout and say to it, without a server: the verb, orders, hand-over, and the duty."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marsmith import run_state
from marsmith.cli import main
from marsmith.cli.status import _rollouts
from marsmith.client.blocking_client import Client
from marsmith.deploy.front import NoFront, Share
from marsmith.deploy.rollout.plan import Situation, Target, plan
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic import control, drive, handover, view
from marsmith.deploy.traffic.canary import Canary
from marsmith.deploy.traffic.envoy import front_of
from marsmith.deploy.traffic.handover import (
    check_possible,
    chosen_strategy,
    end_with_journal,
    lock_wait_s,
    refuse_while_watched,
)
from marsmith.deploy.traffic.state import Driver, RolloutFile
from marsmith.errors import ServerError, SpecError, UsageError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import Backend, RunState
from marsmith.server import supervisor_state
from marsmith.state.journal import JournalFile, Release
from support.live_server import make_project, until
from support.rollouts import OLD, Memory, Scene, opened

SPEC = """\
name: echo
version: "1.0"
export: {recipe: export/m.py}
handler: {entry_point: handlers/m_handler.py}
service_level: {p99_ms: 50, requests_per_second: 50}
"""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    project = make_project(tmp_path / "p")
    monkeypatch.setenv(PROJECT_VARIABLE, str(project.root))
    return Scene(project).begin()


@contextmanager
def driven(scene: Scene) -> Iterator[None]:
    """Drive the rollout in a thread, as a supervisor does."""
    stop = threading.Event()
    scene.look()
    thread = threading.Thread(target=scene.driver().run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def unwatched(scene: Scene) -> None:
    scene.look()
    scene.file.write(replace(scene.state, driver=Driver(2**31 - 2, 1.0)))
    scene.killed()


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["rollout", *words]) == 0
    return capsys.readouterr().out


def test_the_verb_shows_both_versions_side_by_side_and_the_evidence_against_its_limit(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.look()
    scene.requests(400, fails=lambda version: version == "2.0")
    scene.look()
    out = printed(capsys, "echo")
    assert "going back: " in out
    assert [line.split()[0] for line in out.splitlines() if line[:3] in {"2.0", "1.0"}] == ["2.0", "1.0"]
    assert "failed" in out
    assert "5% of the requests" in out.splitlines()[-2]
    data = json.loads(printed(capsys, "echo", "--json"))
    assert data["versions"]["2.0"]["failed"] == scene.state.canary_tally.failed > 0
    assert data["evidence"][0]["reached"]
    assert next(moment["what"] for moment in data["timeline"] if moment["what"]) == "5% of the requests"
    assert printed(capsys).splitlines()[1].split()[:4] == ["echo", "2.0", "1.0", "0%"]
    assert json.loads(printed(capsys, "--json"))[0]["model"] == "echo"


def test_the_timeline_is_drawn(scene: Scene, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scene.until_over(fails=lambda version: version == "2.0")
    printed(capsys, "echo", "--plot", str(tmp_path / "rollout.svg"))
    drawn = (tmp_path / "rollout.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    assert main(["rollout", "echo", "--plot", str(tmp_path / "rollout.txt")]) == 2
    assert main(["rollout", "--plot", str(tmp_path / "rollout.svg")]) == 2


def test_a_watch_ends_with_the_rollout_and_says_whether_it_was_promoted(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.until_over(fails=lambda version: version == "2.0")
    assert main(["rollout", "echo", "--watch", "--interval", "0.01"]) == 1
    assert "back: " in capsys.readouterr().out.splitlines()[-1]
    scene.killed()
    scene.memory = Memory()
    scene.begin().until_over()
    assert main(["rollout", "echo", "--watch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[0]["phase"] == "promoted"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pause"], "pause which model?"),
        (["pause", "other"], "no rollout of other goes on"),
        (["stop", "echo"], "'stop' is not an order"),
        (["other"], "other never had a rollout"),
        (["resume", "echo"], "the rollout of echo is rising, so there is nothing to resume"),
        (["echo", "--watch", "--interval", "0"], "--interval must be more than 0"),
        (["pause", "echo", "--watch"], "an order goes with neither"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_changes_nothing(
    scene: Scene, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = scene.file.path.read_text()
    assert main(["rollout", *words]) == 2
    assert message in capsys.readouterr().err
    assert scene.file.path.read_text() == before


def test_orders_are_carried_out_by_whoever_drives_the_rollout(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    with driven(scene):
        assert "paused: by an operator" in printed(capsys, "pause", "echo")
        assert main(["rollout", "pause", "echo"]) == 2
        assert "rising" in printed(capsys, "resume", "echo")
        assert "back: aborted by an operator" in printed(capsys, "abort", "echo")
    assert (scene.memory.versions, scene.memory.shares) == ({"1.0": 1}, {})
    assert main(["rollout", "abort", "echo"]) == 2
    assert "the last one, of 2.0, ended: back" in capsys.readouterr().err


def test_a_rollout_that_nobody_drives_is_called_so_and_can_still_be_aborted(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unwatched(scene)
    assert "unwatched" in printed(capsys)
    assert view.sentence(scene.state) == (
        "rollout of echo: 2.0 gets 5% of the requests, 1.0 the rest; rising, unwatched"
    )
    assert main(["rollout", "pause", "echo"]) == 1
    assert "nobody drives the rollout of echo" in capsys.readouterr().err
    monkeypatch.setattr(control, "drive", lambda project, model, stop, tell: scene.driver().run(stop))
    assert "back: aborted by an operator" in printed(capsys, "abort", "echo")


@pytest.mark.parametrize(("version", "left"), [("2.0", {"1.0", "2.0"}), ("1.0", {"1.0"}), (None, {"1.0"})])
def test_a_command_that_changes_the_model_ends_its_rollout_first(
    scene: Scene, version: str | None, left: set[str]
) -> None:
    told: list[str] = []
    with driven(scene):
        control.make_way(scene.project, "echo", version, told.append)
        assert scene.state.is_over
        control.make_way(scene.project, "echo", version, told.append)
    assert told == ["the rollout of echo:2.0 is aborted: this command changes the model"]
    assert (set(scene.memory.versions), scene.memory.shares) == (left, {})
    assert scene.journal.change is None


def test_another_deploy_of_the_model_is_refused_while_the_rollout_is_driven(scene: Scene) -> None:
    refuse_while_watched(scene.project, "echo")
    scene.look()
    with pytest.raises(ServerError, match=r"echo:2.0 is being rolled out: rising, 5% of the requests") as caught:
        refuse_while_watched(scene.project, "echo")
    assert "marsmith rollout abort echo" in str(caught.value.tip)
    refuse_while_watched(scene.project, "other")


def test_a_deploy_directly_after_a_rollout_waits_until_its_driver_has_released_the_lock(scene: Scene) -> None:
    assert lock_wait_s(scene.project, "other", 0.0) == 0
    scene.look()
    with pytest.raises(ServerError, match="is being rolled out"):
        lock_wait_s(scene.project, "echo", 0.0)
    assert lock_wait_s(scene.project, "echo", 3.0) == 5
    unwatched(scene)
    assert lock_wait_s(scene.project, "echo", 0.0) == 5
    scene.file.write(scene.state.at(time.time(), "back"))
    assert lock_wait_s(scene.project, "echo", 0.0) == 5
    assert lock_wait_s(scene.project, "echo", 60.0) == 60
    scene.file.write(scene.state.at(time.time() - 60, "back"))
    assert lock_wait_s(scene.project, "echo", 0.0) == 0


def test_a_rollout_whose_deploy_this_process_undid_is_ended(scene: Scene) -> None:
    unwatched(scene)
    journal = JournalFile.of(scene.project, "echo")
    site = ModelServer(opened(scene.project, Client()), journal)
    end_with_journal(site)
    assert scene.state.phase == "rising"
    journal.write(journal.read().ended())
    end_with_journal(site)
    assert (scene.state.phase, scene.state.reason) == ("back", "ended by the next deploy or rollback")


def test_without_the_front_or_a_supervisor_a_canary_is_refused_with_one_line(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = ModelServer(opened(scene.project, Client()), JournalFile.of(scene.project, "echo"))
    with pytest.raises(UsageError, match="no canary of echo: the server runs without the front") as caught:
        check_possible(site, Canary())
    assert "front: envoy" in str(caught.value.tip)
    site.front = scene.memory
    with pytest.raises(ServerError, match="no supervisor watches the server") as refused:
        check_possible(site, Canary())
    assert "\n" not in refused.value.message
    monkeypatch.setattr(supervisor_state, "read", lambda project: object())
    check_possible(site, Canary())


def with_spec(project: Project, rollout: str = "") -> Project:
    (project.specs / "echo.yaml").write_text(SPEC + rollout)
    return project


def test_a_broken_spec_stops_a_deploy_if_it_could_say_how_requests_are_given(scene: Scene) -> None:
    spec = scene.project.specs / "echo.yaml"
    spec.write_text("{}")
    assert chosen_strategy(scene.project, "echo") == ("switch", None)
    spec.write_text("rollout: {strategy: canary}\n")
    assert chosen_strategy(scene.project, "echo", "switch") == ("switch", None)
    with pytest.raises(SpecError, match="missing key 'name'"):
        chosen_strategy(scene.project, "echo")


def test_the_strategy_is_the_given_one_or_the_specs(scene: Scene) -> None:
    project = scene.project
    assert chosen_strategy(project, "echo") == ("switch", None)
    assert chosen_strategy(project, "echo", {"steps": (10.0,)}) == (Canary(steps=(10.0,)), None)
    with_spec(project)
    assert chosen_strategy(project, "echo")[0] == "switch"
    with_spec(project, "rollout: {strategy: canary, steps: [20, 40], interval: 10s}\n")
    assert chosen_strategy(project, "echo")[0] == Canary(steps=(20, 40), interval_s=10)
    assert chosen_strategy(project, "echo", {"interval_s": 20.0})[0] == Canary(steps=(20, 40), interval_s=20)
    assert chosen_strategy(project, "echo", "switch")[0] == "switch"
    assert chosen_strategy(project, "echo", Canary())[0] == Canary()
    with_spec(project, "rollout: {strategy: canary, steps: [40, 20]}\n")
    with pytest.raises(SpecError, match="do not rise"):
        chosen_strategy(project, "echo")


def test_a_hand_over_writes_the_limits_of_the_spec_and_begins_at_the_end_of_the_log(scene: Scene) -> None:
    project = with_spec(scene.project)
    site = ModelServer(opened(project, scene.memory), JournalFile.of(project, "echo"), front=scene.memory)
    scene.requests(7)
    handover.hand_over(site, "2.0", "1.0", Canary(), chosen_strategy(project, "echo")[1])
    state = scene.state
    assert (state.position, state.level.p99_ms, state.level.try_timeout_s) == (7, 50, 1)
    handover.hand_over(site, "2.0", "1.0", Canary(), None)
    # Half the response timeout of the version.
    assert (scene.state.level.p99_ms, scene.state.level.try_timeout_s) == (None, 10)


def test_a_plan_of_a_canary_names_every_share() -> None:
    target = Target("deploy", "echo", Release("2.0", "echo-2.0.mar", None, 1), examples=1)
    shares = tuple(handover.share_steps("2.0", Canary(steps=(5, 50), interval_s=60)))
    steps = plan(target, Situation("1.0", {"1.0": 1}, (OLD,)), keep=2, watch_s=10, shares=shares)
    assert [step.action for step in steps] == [
        *("verify", "register", "ready", "probe", "canary", "canary", "switch", "plain", "accept", "drain")
    ]
    assert "send 5% of the requests to it, for at least 60 s and 50 answers" in steps[4].detail


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "5,50"], "--steps goes with --canary"),
        (["--sticky", "cookie:a"], "--sticky goes with --canary"),
        (["--canary", "--at-once"], "not allowed with"),
        (["--canary", "--steps", "a"], "is not a list of percentages"),
        (["--canary", "--interval", "2"], "is not a duration above 0"),
        (["--canary", "--min-requests", "0"], "1 or more"),
    ],
)
def test_options_of_a_canary_that_make_no_sense_are_refused(
    scene: Scene, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    try:
        code = main(["deploy", "echo-2.0.mar", *words])
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    assert message in capsys.readouterr().err


def test_the_duty_drives_each_rollout_in_a_thread_of_its_own_and_tries_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, told = scene.project, list[str]()
    for model in ("hung", "bad"):
        RolloutFile.of(project, model).write(replace(scene.state, model=model))
    RolloutFile.of(project, "over").write(replace(scene.state, model="over", phase="back"))
    RolloutFile.of(project, "a-damaged").path.write_text("{")
    # Its rollout ended while the server ran without the front, which has its share still.
    scene.memory.shares["over"] = Share("2.0", 500, None, 1.0)
    began: list[str] = []

    def fake(project: Project, model: str, stop: threading.Event, tell: Any) -> None:
        began.append(model)
        if model == "bad":
            raise ServerError("it is locked")
        stop.wait(60)

    monkeypatch.setattr(drive, "drive", fake)
    monkeypatch.setattr(drive, "front_of", lambda project: scene.memory)
    monkeypatch.setattr(drive, "_LOOK_S", 0.0)
    monkeypatch.setattr(drive, "_AGAIN_S", 0.01)
    duty = drive.RolloutDuty(project, told.append)

    def tried_again() -> bool:
        duty.tick()
        return began.count("bad") >= 3

    until(tried_again, 30)
    duty.close()
    assert sorted(set(began)) == ["bad", "echo", "hung"]
    assert (began.count("hung"), began.count("echo")) == (1, 1)
    assert scene.memory.shares == {}
    damaged, locked = sorted(told)
    assert locked == "rollout of bad: it is locked; it is tried again"
    assert damaged.startswith("rollout of a-damaged: the state of a-damaged's rollout cannot be read")


def test_a_server_without_a_front_gives_no_share() -> None:
    front = NoFront()
    front.set_share("echo", None)
    assert (front.share_of("echo"), front.end_of_log(), front.answers(3)) == (None, 0, ((), 3))


def test_status_names_a_rollout_that_goes_on(scene: Scene) -> None:
    assert [state.model for state in _rollouts(scene.project)] == ["echo"]
    scene.file.write(replace(scene.state, phase="back"))
    assert _rollouts(scene.project) == []


def test_the_front_of_a_server_is_envoy_if_it_runs_behind_one(scene: Scene) -> None:
    project = scene.project
    assert front_of(project).missing
    state = RunState(1, 2.0, "a", "b", "c", "d", "e", project.run, tokens=True)
    run_state.write(project, state)
    assert front_of(project) == NoFront()
    run_state.write(project, replace(state, backend=Backend("http://127.0.0.1:1", "127.0.0.1:2")))
    front = front_of(project)
    assert front.missing is None
    # Nothing has divided requests yet.
    assert (front.share_of("echo"), front.end_of_log(), front.answers(0)) == (None, 0, ([], 0))
