"""A driver of a canary with a front and a server in memory: share by share, back, promotion, orders, and kills."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from marsmith.deploy.front import Answer
from marsmith.deploy.rollout.plan import Situation
from marsmith.deploy.traffic.evidence import Weighing, judge
from marsmith.deploy.traffic.lookout import change_by_others
from marsmith.deploy.traffic.state import Level, RolloutState
from marsmith.project import Project
from marsmith.state.journal import Journal, JournalFile
from support.rollouts import CANARY, CHANGE, NEW, OLD, KilledError, Logged, Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(Project(tmp_path)).begin()


def test_a_good_version_rises_and_becomes_the_default_before_its_share_is_taken_away(scene: Scene) -> None:
    scene.until_over()
    assert scene.memory.history[:4] == ["share 500", "share 5000", "default 2.0", "plain"]
    assert (scene.state.phase, scene.memory.default, scene.memory.shares) == ("promoted", "2.0", {})
    assert scene.journal.change is None
    assert [release.version for release in scene.journal.releases] == ["1.0", "2.0"]
    # Those of its last second were not read any more.
    assert scene.state.canary_tally.answers + scene.state.stable_tally.answers == len(scene.memory.log) - 50
    assert [moment.share for moment in scene.state.timeline if "%" in moment.what] == [500, 5000]


def test_a_version_that_fails_goes_back_within_a_few_failures_and_everything_is_as_it_was(scene: Scene) -> None:
    scene.until_over(fails=lambda version: version == "2.0")
    assert scene.memory.history == ["share 500", "share 0", "plain", "unregister 2.0"]
    assert scene.state.phase == "back"
    assert "requests to 2.0 failed, and 0 of" in scene.state.reason
    assert scene.state.canary_tally.failed < 20
    assert (scene.memory.default, scene.memory.versions) == ("1.0", {"1.0": 1})
    assert scene.journal.change is None


def test_an_outage_of_both_versions_moves_nothing_neither_back_nor_on(scene: Scene) -> None:
    scene.look()
    for _ in range(30):
        scene.requests(50, fails=lambda version: True)
        scene.look()
    assert (scene.state.phase, scene.state.step) == ("rising", 0)
    assert scene.state.canary_tally.failed == 0
    assert scene.state.stable_tally.failed > 1000


def test_without_requests_a_canary_holds_then_is_inconclusive_and_stays_so(scene: Scene) -> None:
    scene.look()
    for _ in range(9):
        scene.look(10.0)
    assert scene.state.phase == "inconclusive"
    assert "0 answers of the canary" in scene.state.reason
    assert scene.memory.history == ["share 500"]
    scene.file.order("resume", scene.state)
    scene.look()
    assert scene.state.phase == "rising"
    scene.until_over()
    assert scene.state.phase == "promoted"


def test_a_stable_version_above_its_own_limit_sends_the_canary_back(tmp_path: Path) -> None:
    scene = Scene(Project(tmp_path)).begin(p99_ms=50.0)
    scene.look()
    for _ in range(20):
        scene.requests(50, duration_ms=40.0)
        scene.requests(10, duration_ms=200.0)
        scene.look()
    assert scene.state.phase == "back"
    assert "1.0 itself is above its limit" in scene.state.reason


def test_orders_pause_resume_promote_and_abort(scene: Scene) -> None:
    scene.look()
    scene.file.order("pause", scene.state)
    for _ in range(10):
        scene.requests(50)
        scene.look()
    assert scene.state.phase == "paused"
    assert scene.memory.shares["echo"].share == 500
    scene.file.order("resume", scene.state)
    scene.look()
    assert (scene.state.phase, scene.state.step_answers) == ("rising", 0)
    scene.file.order("promote", scene.state)
    scene.look()
    scene.look()
    assert (scene.state.phase, scene.state.reason, scene.memory.default) == ("promoted", "by an operator", "2.0")


def test_an_abort_takes_the_canary_off_and_an_order_to_leave_keeps_both_versions(scene: Scene, tmp_path: Path) -> None:
    scene.look()
    scene.file.order("abort", scene.state)
    scene.look()
    scene.look()
    assert (scene.state.phase, scene.memory.versions) == ("back", {"1.0": 1})
    other = Scene(Project(tmp_path / "other")).begin()
    other.look()
    other.file.order("leave", other.state)
    other.look()
    assert (other.state.phase, set(other.memory.versions), other.memory.shares) == ("left", {"1.0", "2.0"}, {})
    assert other.journal.change is None


def test_what_an_operator_changes_by_hand_stands(scene: Scene) -> None:
    scene.look()
    scene.memory.default = "2.0"
    scene.lookout.news = "2.0 was made the default version by another command"
    scene.look()
    assert (scene.state.phase, scene.memory.shares) == ("left", {})
    assert (scene.memory.default, set(scene.memory.versions)) == ("2.0", {"1.0", "2.0"})
    assert scene.journal.change is None


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        (Situation("1.0", {"1.0": 1, "2.0": 1}), None),
        (Situation("2.0", {"1.0": 1, "2.0": 1}), "2.0 was made the default"),
        (Situation("3.0", {"1.0": 1, "2.0": 1, "3.0": 1}), "3.0 was made the default"),
        (Situation("1.0", {"1.0": 1}), "2.0 was unregistered"),
        (Situation("1.0", {"1.0": 1, "2.0": 2}), "2.0 was given 2 workers"),
        (Situation("1.0", {"1.0": 3, "2.0": 1}), "1.0 was given 3 workers"),
    ],
)
def test_a_change_by_others_is_told_from_what_the_rollout_did(seen: Situation, what: str | None) -> None:
    found = change_by_others(CHANGE, seen)
    assert found is None if what is None else found and found.startswith(what)


def test_a_front_that_does_not_answer_is_asked_again_and_nothing_is_lost(scene: Scene) -> None:
    scene.look()
    scene.memory.refuses = True
    for _ in range(3):
        scene.requests(50, fails=lambda version: version == "2.0")
        scene.look()
    assert scene.state.phase == "rising"
    assert sum("Envoy does not answer; it is tried again" in text for text in scene.told) == 1
    scene.memory.refuses = False
    scene.until_over(fails=lambda version: version == "2.0")
    assert scene.state.phase == "back"


@pytest.mark.parametrize(("bad", "number"), [(bad, number) for bad in (False, True) for number in range(1, 5)])
def test_a_driver_killed_after_any_change_is_followed_by_one_that_finishes_or_undoes(
    scene: Scene, bad: bool, number: int
) -> None:
    def die(what: str) -> None:
        if len(scene.memory.history) == number:
            raise KilledError(what)

    scene.memory.after = die
    with pytest.raises(KilledError):
        scene.until_over(fails=lambda version: bad and version == "2.0")
    scene.killed()
    scene.until_over(fails=lambda version: bad and version == "2.0")
    assert scene.state.phase == ("back" if bad else "promoted")
    assert (scene.memory.default, scene.memory.shares) == ("1.0" if bad else "2.0", {})
    assert set(scene.memory.versions) == ({"1.0"} if bad else {"1.0", "2.0"})
    assert scene.journal.change is None


def test_a_server_that_came_back_without_the_front_sends_the_canary_back(scene: Scene) -> None:
    scene.look()
    scene.killed()
    scene.memory.shares.clear()
    scene.memory.missing = "the server runs without the front"
    for _ in range(2):
        scene.look()
    assert (scene.state.phase, scene.state.reason) == ("back", "the server runs without the front")
    assert scene.memory.versions == {"1.0": 1}


def test_a_rollout_whose_deploy_another_command_undid_or_finished_is_ended(scene: Scene, tmp_path: Path) -> None:
    scene.look()
    file = JournalFile.of(scene.project, "echo")
    file.write(file.read().ended())
    scene.killed()
    scene.look()
    assert (scene.state.phase, scene.state.reason, scene.memory.shares) == ("back", "ended by another command", {})
    other = Scene(Project(tmp_path / "other")).begin()
    JournalFile.of(other.project, "echo").write(Journal("echo", (OLD, NEW)))
    other.look()
    assert other.state.phase == "promoted"


@pytest.mark.parametrize(
    ("answer", "failed", "refused", "timed"),
    [
        (Logged(), False, False, True),
        (Logged("2.0"), False, False, True),
        (Logged(status=500), True, False, False),
        (Logged("2.0", attempts=2), True, False, False),
        # It fails on the stable version, too.
        (Logged("2.0", status=500, attempts=2), False, False, False),
        # It could not be repeated.
        (Logged("2.0", status=503), True, False, False),
        # A restart of the server was bridged, as for the canary.
        (Logged(attempts=7, duration_ms=4000), True, False, False),
        (Logged("2.0", status=415), False, True, False),
    ],
)
def test_answers_are_judged(answer: Logged, failed: bool, refused: bool, timed: bool) -> None:
    verdict = judge(answer)
    assert (verdict.failed, verdict.refused, verdict.timed) == (failed, refused, timed)


def state_with(p99_ms: float | None = None) -> RolloutState:
    return RolloutState("echo", "2.0", "1.0", CANARY, Level(p99_ms, 5.0), began_s=0.0).at_step(0, 1000.0)


def test_one_user_is_one_event_and_other_models_and_named_versions_are_left_out() -> None:
    weighing = Weighing(state_with())
    weighing.add([Logged("2.0", user="one", attempts=2)] * 100)
    assert weighing.trouble() is None
    weighing.add([Logged("2.0", user=f"u{i}", attempts=2, model="other") for i in range(100)])
    weighing.add([Logged("3.0", user=f"u{i}", attempts=2) for i in range(100)])
    assert weighing.trouble() is None
    assert weighing.add([Logged("2.0", user=f"u{i}", attempts=2) for i in range(10)]) == 10
    assert weighing.trouble()


def test_slow_answers_are_evidence_above_the_service_level_or_above_the_stable_versions_own_latencies() -> None:
    def many(version: str, milliseconds: float, count: int, draw: random.Random) -> list[Answer]:
        return [Logged(version, duration_ms=draw.uniform(0.9, 1.1) * milliseconds) for _ in range(count)]

    draw = random.Random(2)
    by_level = Weighing(state_with(50.0))
    by_level.add(many("", 20, 950, draw))
    by_level.add(many("2.0", 60, 20, draw))
    assert "20 of 20 requests to 2.0 were slow, and 0 of 950 to 1.0" in str(by_level.trouble())
    by_quantile = Weighing(state_with())
    by_quantile.add(many("2.0", 30, 20, draw))
    assert by_quantile.into(state_with()).slow_ms is None
    by_quantile.add(many("", 20, 1000, draw))
    assert by_quantile.into(state_with()).slow_ms == pytest.approx(22, abs=0.5)
    by_quantile.add(many("2.0", 30, 20, draw))
    assert "were slow" in str(by_quantile.trouble())


def test_no_version_is_promoted_before_its_latency_could_be_judged(scene: Scene) -> None:
    for _ in range(40):
        # Fewer answers of the old version than a limit needs.
        scene.requests(4)
        scene.look()
    assert (scene.state.phase, scene.state.step, scene.state.slow_ms) == ("rising", 1, None)
    assert scene.state.step_answers > CANARY.min_requests
    scene.until_over()
    assert scene.state.phase == "promoted"
    assert scene.state.slow_ms


def test_a_slow_version_goes_back_however_short_the_steps_are(tmp_path: Path) -> None:
    scene = Scene(Project(tmp_path)).begin(replace(CANARY, interval_s=1, min_requests=5))
    for _ in range(100):
        if scene.state.is_over:
            break
        scene.requests(50)
        scene.memory.log = [replace(each, duration_ms=400.0) if each.version else each for each in scene.memory.log]  # type: ignore[type-var]
        scene.look()
    assert scene.state.phase == "back"
    assert "requests to 2.0 were slow, and" in scene.state.reason


def test_evidence_goes_on_from_the_state() -> None:
    weighing = Weighing(state_with())
    weighing.add([Logged("2.0", attempts=2)] * 2)
    stored = json.loads(json.dumps({"ledger": weighing.into(state_with()).ledger}))
    after = Weighing(replace(state_with(), ledger=stored["ledger"]))
    assert after.values() == weighing.values()
    assert after.values()["failed"] > 1


def test_a_request_is_weighed_with_the_share_that_was_in_force_when_it_came() -> None:
    weighing = Weighing(state_with())
    weighing.share_is(5000, 3000.0)
    weighing.add([Logged(status=500, at_s=999.0)])
    assert weighing.values()["failed"] == 1
    weighing.add([Logged("2.0", attempts=2, at_s=2999.0)])
    at_5_percent = weighing.values()["failed"]
    other = Weighing(state_with())
    other.share_is(5000, 3000.0)
    other.add([Logged("2.0", attempts=2, at_s=3000.0)])
    assert at_5_percent > other.values()["failed"] > 1


def test_a_drive_ends_when_it_is_stopped_and_leaves_the_rollout_as_it_is(scene: Scene) -> None:
    stop = threading.Event()
    stop.set()
    driver = scene.driver()
    driver.run(stop)
    assert scene.state.phase == "rising"
    assert scene.state.is_watched
